"""The Zarr v3 array that the data blocks are: where its chunks lie, and its metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np

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

    def grid(self, shape: Sequence[int], rows: int) -> tuple[int, ...]:
        """Chunks of a block of `rows` rows along each axis of an array of that shape."""
        lengths = (rows, *shape[1:])
        return tuple(-(-length // chunk) for length, chunk in zip(lengths, self.chunk_shape))

    def chunk_key(self, shape: Sequence[int], rows: int, block: int, number: int) -> str | None:
        """Where chunk `number` of a block goes; None if all its rows are padding.

        >>> view = ZarrView("a", (2, 5))
        >>> [view.chunk_key((11, 8), 4, 2, number) for number in range(4)]
        ['a/data/c/4/0', 'a/data/c/4/1', 'a/data/c/5/0', 'a/data/c/5/1']
        >>> view.chunk_key((10, 8), 4, 2, 2)
        """
        grid = self.grid(shape, rows)
        first, *inner = (int(one) for one in np.unravel_index(number, grid))
        first += block * grid[0]
        if first * self.chunk_shape[0] >= shape[0]:
            return None
        return "/".join([self.path, VARIABLE, "c", *map(str, (first, *inner))])

    def chunk_sizes(self, shape: Sequence[int], rows: int) -> list[int]:
        """Elements of each chunk of a block that belong to the block, in order."""
        grid, chunk = self.grid(shape, rows), self.chunk_shape
        sizes = np.ones(grid, np.int64)
        for axis, (count, length) in enumerate(zip(grid, (rows, *shape[1:]))):
            along = np.minimum(chunk[axis], length - chunk[axis] * np.arange(count))
            sizes *= along.reshape([-1, *[1] * (len(grid) - axis - 1)])
        flat: list[int] = sizes.reshape(-1).tolist()
        return flat

    def chunk_bytes(self, dtype: np.dtype[Any]) -> int:
        """Bytes of the object of every chunk: those at the end of an axis are filled up."""
        return prod(self.chunk_shape) * dtype.itemsize

    def chunks(self, shape: Sequence[int], rows: int, bounds: Sequence[int]) -> list[ZarrChunk]:
        """All of them, if the stripes of a block begin and end at these elements."""
        stripe_at = {start: stripe for stripe, start in enumerate(bounds)}
        ends = [stripe_at[end] for end in accumulate(self.chunk_sizes(shape, rows), initial=0)]
        return [
            ZarrChunk(key, block, range(*stripes))
            for block in range(-(-shape[0] // max(1, rows)))
            for number, stripes in enumerate(pairwise(ends))
            if (key := self.chunk_key(shape, rows, block, number)) is not None
        ]

    def check(self, prefix: str, shape: Sequence[int], rows: int, bounds: Sequence[int]) -> None:
        """ValueError if it is not the view of an array that has this prefix, shape and cut."""
        chunk, keys = self.chunk_shape, tuple(part.key for part in self.metadata)
        if not self.path.startswith(prefix) or keys not in ((), self.metadata_keys):
            raise ValueError(f"the Zarr array at {self.path!r} is not one of this array")
        if len(chunk) != len(shape) or not all(type(one) is int and one > 0 for one in chunk):
            raise ValueError(f"chunks of shape {chunk} do not make an array of shape {shape}")
        ends = set(accumulate(self.chunk_sizes(shape, rows), initial=0))
        if rows % chunk[0] or not ends <= set(bounds):
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


def chunk_shape(block_shape: Sequence[int], slab: Sequence[int]) -> tuple[int, ...]:
    """Shape of the chunks of the Zarr array of such blocks, stored in slabs of that shape.

    One chunk for each slab, or one for each block where slabs do not divide the rows of a block.

    >>> chunk_shape((12, 5), (4, 5)), chunk_shape((13, 5), (4, 5)), chunk_shape((2, 7), (1, 4))
    ((4, 5), (13, 5), (1, 4))
    """
    divides = slab and block_shape[0] % max(1, slab[0]) == 0
    return tuple(max(1, length) for length in (slab if divides else block_shape))


def _endian(dtype: np.dtype[Any]) -> str:
    return "big" if dtype.newbyteorder("=").str.startswith(">") else "little"


def _fill_value(dtype: np.dtype[Any]) -> Any:
    """What Zarr reads in place of a missing chunk: nothing that could be taken for data, if there is such."""
    return {"f": "NaN", "c": ["NaN", "NaN"]}.get(dtype.kind, 0)
