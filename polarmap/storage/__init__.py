"""Coded arrays in storage: raw parts of blocks, and a manifest that says what they are.

`base` says what a store must do, `folder` and `objects` are two; `manifest` is the format,
`stripes` and `sources` cut and read, `encoding` writes, `parts`, `decoding` and `audit` read and repair.
"""
