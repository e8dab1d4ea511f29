"""Coded arrays in storage: raw parts of blocks, and a manifest that says what they are.

`array` is what callers hold, `encoding` makes one. `manifest` and `zarr_view` are the format; `stripes` and
`sources` cut and read the data, `stripe_encoder` has them stored, `zarr_chunks` puts them where Zarr looks
for them, `reading`, `audits` and `repairing` are what they say; `weighted_sums` are blocks made of others.
`array_tasks` has all that done by workers or by this process; `generations` are what each run of them writes.
"""
