"""What is mapped: data -> blocks -> coded blocks, in memory or in storage."""
