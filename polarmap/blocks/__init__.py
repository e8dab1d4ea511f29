"""Cut the data of a map into blocks, and add parity blocks in memory.

    data --array_like--> array --equal--> k data blocks --coded--> n coded blocks, the input of n tasks

`code_choice` chooses the number of blocks and the code. `sparse`, `on_cluster` and `pairs` have other kinds
of coded blocks, and `uneven` has parts that are not encoded. The package `arrays` keeps coded blocks in
storage.
"""
