"""Coded arrays in storage: raw parts of blocks, and a manifest that says what they are.

`array` is what callers hold. `manifest`, `keys` and `zarr_view` are the format; `stripes` and `sources` cut
and read the data, `encode` and `encode_remotely` store it, `zarr_chunks` puts it where Zarr looks for it,
`fetch`, `decode` and `audit` read and repair.
"""
