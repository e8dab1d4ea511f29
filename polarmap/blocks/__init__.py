"""What is mapped: data -> blocks -> coded blocks, in memory; `arrays` has those in storage."""
