"""The Zarr v3 array that the data blocks are: where its chunks lie, and its metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import accumulate, cycle, pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np

from polarmap.arrays.stripes import Hyperslab, element_count, hyperslabs
from polarmap.worker.parts import Part

GROUP = "array.zarr"  # apart from all that Zarr does not know
VARIABLE = "data"  # the name of the array in its group
METADATA = "zarr.json"


class ZarrChunk(NamedTuple):
    """An object of the Zarr array, and the stripes of a data block that it holds."""

    key: str
    block: int
    stripes: range


class ZarrView(NamedTuple):
    """A Zarr group with one array, of whose chunks each lies in one data block.

    path : key of the group.
    chunk_shape : of every chunk; that along the first axis divides the rows of a block.
    metadata : of group and array; empty while chunks are still missing, when there is no Zarr array yet.
    """

    path: str
    chunk_shape: tuple[int, ...]
    metadata: tuple[Part, ...] = ()

    @property
    def metadata_keys(self) -> tuple[str, str]:
        """Where the metadata of group and array go."""
        return f"{self.path}/{METADATA}", f"{self.path}/{VARIABLE}/{METADATA}"

    def chunk_key(self, slab: Hyperslab) -> str:
        """Where the chunk goes that is this slab of the array.

        >>> ZarrView("a", (2, 5)).chunk_key((slice(10, 12), slice(5, 8)))
        'a/data/c/5/1'
        """
        places = (one.start // length for one, length in zip(slab, self.chunk_shape))
        return "/".join([self.path, VARIABLE, "c", *map(str, places)])

    def _ends(self, shape: Sequence[int], rows: int) -> Iterator[int]:
        """Where chunks begin and end in a block of `rows` rows, in elements."""
        slabs = hyperslabs((rows, *shape[1:]), self.chunk_shape)
        return accumulate(map(element_count, slabs), initial=0)

    def chunk_bytes(self, dtype: np.dtype[Any]) -> int:
        """Bytes of the object of every chunk: those at the end of an axis are filled up."""
        return prod(self.chunk_shape) * dtype.itemsize

    def chunks(self, shape: Sequence[int], rows: int, bounds: Sequence[int]) -> list[ZarrChunk]:
        """All of them, if the stripes of a block begin and end at these elements."""
        stripe_at = {start: stripe for stripe, start in enumerate(bounds)}
        stripes = cycle(pairwise(stripe_at[end] for end in self._ends(shape, rows)))
        slabs = hyperslabs(shape, self.chunk_shape)  # block by block, each cut alike but for its padding
        return [
            ZarrChunk(self.chunk_key(slab), slab[0].start // rows, range(*some))
            for slab, some in zip(slabs, stripes)
        ]

    def check(self, prefix: str, shape: Sequence[int], rows: int, bounds: Sequence[int]) -> None:
        """ValueError if it is not the view of an array that has this prefix, shape and cut."""
        chunk, keys = self.chunk_shape, tuple(part.key for part in self.metadata)
        if not self.path.startswith(prefix) or keys not in ((), self.metadata_keys):
            raise ValueError(f"the Zarr array at {self.path!r} is not one of this array")
        if len(chunk) != len(shape) or not all(type(one) is int and one > 0 for one in chunk):
            raise ValueError(f"chunks of shape {chunk} do not make an array of shape {shape}")
        count = prod(-(-length // step) for length, step in zip((rows, *shape[1:]), chunk))
        # Counted first: what somebody else has written may say more than memory holds.
        if rows % chunk[0] or count >= len(bounds) or not set(self._ends(shape, rows)) <= set(bounds):
            raise ValueError(f"blocks of {rows} rows are not cut into chunks of shape {chunk}")

    def documents(self, shape: Sequence[int], dtype: np.dtype[Any], manifest: str) -> dict[str, bytes]:
        """The metadata of group and array by key; `manifest` is that of the coded array."""
        array = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.chunk_shape)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": [{"name": "bytes", "configuration": {"endian": _endian(dtype)}}],
            "fill_value": _fill_value(dtype),
            "attributes": {},
            "dimension_names": [f"dim_{axis}" for axis in range(len(shape))],
        }
        inline = {"kind": "inline", "must_understand": False, "metadata": {VARIABLE: array}}
        group = {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {"polarmap": {"manifest": manifest}},
            "consolidated_metadata": inline,  # xarray asks for it, and warns where there is none
        }
        return {
            key: json.dumps(document, indent=2).encode()
            for key, document in zip(self.metadata_keys, (group, array))
        }


def _endian(dtype: np.dtype[Any]) -> str:
    return "big" if dtype.newbyteorder("=").str.startswith(">") else "little"


def _fill_value(dtype: np.dtype[Any]) -> Any:
    """What Zarr reads in place of a missing chunk: nothing that could be taken for data, if there is such."""
    return {"f": "NaN", "c": ["NaN", "NaN"]}.get(dtype.kind, 0)
