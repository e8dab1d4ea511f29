"""Coded arrays in storage: raw parts of blocks, and a manifest that says what they are.

`array` is what callers hold, `encoding` makes one. `manifest` and `zarr_view` are the format; `stripes` and
`sources` cut and read the data, `stripe_encoder` has them stored, `zarr_chunks` puts them where Zarr looks
for them, `reading`, `audits` and `repairing` are what they say; `weighted_sums` are blocks made of others.
`array_jobs` has all that done by workers or by this process; `write_transaction` are what each run of them
writes.
"""

from __future__ import annotations

import typing

from polarmap import lazy_names

if typing.TYPE_CHECKING:
    from polarmap.arrays.array import CodedArray as CodedArray
    from polarmap.arrays.array import list_coded as list_coded
    from polarmap.arrays.audits import Audit as Audit
    from polarmap.arrays.sources import RawObjects as RawObjects
    from polarmap.arrays.stored_result import Stored as Stored
    from polarmap.arrays.zarr_objects import ZarrObjects as ZarrObjects
else:
    __getattr__, __dir__, __all__ = lazy_names.make_lazy_exports(
        __name__,
        {
            "array": ["CodedArray", "list_coded"],
            "audits": ["Audit"],
            "sources": ["RawObjects"],
            "stored_result": ["Stored"],
            "zarr_objects": ["ZarrObjects"],
        },
    )
