"""Coded arrays in storage: raw segments of blocks, and a manifest that describes them.

    encode -> stripes of all data blocks -> segments of n blocks -> manifest -> open_coded -> CodedArray

`array` has the class that users hold, and `encoding` the map function that creates one. `manifest` and
`zarr_view` define the format. `stripes` and `sources` cut and read the data, `stripe_encoder` encodes it, and
`zarr_chunks` writes the data blocks as chunks of a Zarr array. `reading`, `audits` and `repairing` read,
check and repair an array, and `weighted_sums` computes blocks from other blocks. `array_jobs` runs these
tasks on workers or in this process. `write_transaction` keeps track of the objects that one run writes.
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
