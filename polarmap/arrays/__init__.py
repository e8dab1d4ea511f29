"""Coded arrays: arrays that are stored with parity blocks, so that lost or damaged parts can be rebuilt.

    encode -> stripes of all data blocks -> segments of n blocks -> manifest -> open_coded -> CodedArray

A stripe is the same slice of every block, small enough to be encoded in memory. A segment holds the stored
bytes of one stripe of one block. The manifest is a JSON document that lists all segments of an array.

`array` has the class `CodedArray`, and `encoding` has `encode`, which creates one. `manifest` and `zarr_view`
define the storage format. `stripes` and `sources` cut and read the data, `stripe_encoder` encodes it, and
`zarr_chunks` writes the data blocks as chunks of a Zarr array. `reading`, `audits` and `repairing` read,
check and repair an array, and `weighted_sums` computes blocks from other blocks. `array_jobs` runs these
tasks on workers or in this process. `write_transaction` keeps track of the objects that one process writes.
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
