"""The mathematics: polar codes over the reals. No I/O, clock, thread or executor."""
