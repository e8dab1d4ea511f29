"""Coded arrays in storage: raw parts of blocks, and a manifest that says what they are.

`array` is what callers hold. `manifest`, `keys` and `zarr_view` are the format; `stripes` and `sources` cut
and read the data, `stripe_encoder` has them stored, `zarr_chunks` puts them where Zarr looks for them,
`fetching`, `decode`, `audits` and `rebuilding` read and repair. `array_tasks` has all that done by workers
or by this process.
"""
