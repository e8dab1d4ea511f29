"""The Zarr v3 array that the data blocks are: where its chunks lie, and its metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import accumulate, cycle, pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np

from polarmap.arrays.stripes import Hyperslab, count_elements, iterate_hyperslabs
from polarmap.worker.segments import Segment

GROUP_NAME = "array.zarr"  # apart from all that Zarr does not know
ARRAY_NAME = "data"  # the name of the array in its group
METADATA_FILE = "zarr.json"


class ZarrChunk(NamedTuple):
    """An object of the Zarr array, and the stripes of a data block that it holds."""

    key: str
    block_index: int
    stripe_range: range


class ZarrView(NamedTuple):
    """A Zarr group with one array, of whose chunks each lies in one data block.

    path : key of the group.
    chunk_shape : of every chunk; that along the first axis divides the rows of a block.
    metadata : of group and array; empty while chunks are still missing, when there is no Zarr array yet.
    """

    path: str
    chunk_shape: tuple[int, ...]
    metadata: tuple[Segment, ...] = ()

    @property
    def metadata_keys(self) -> tuple[str, str]:
        """Where the metadata of group and array go."""
        return f"{self.path}/{METADATA_FILE}", f"{self.path}/{ARRAY_NAME}/{METADATA_FILE}"

    def get_chunk_key(self, hyperslab: Hyperslab) -> str:
        """Where the chunk goes that is this slab of the array.

        >>> ZarrView("a", (2, 5)).get_chunk_key((slice(10, 12), slice(5, 8)))
        'a/data/c/5/1'
        """
        chunk_coordinates = (
            axis_slice.start // length for axis_slice, length in zip(hyperslab, self.chunk_shape)
        )
        return "/".join([self.path, ARRAY_NAME, "c", *map(str, chunk_coordinates)])

    def _iterate_chunk_bounds(self, shape: Sequence[int], rows_per_block: int) -> Iterator[int]:
        """Where chunks begin and end in a block of `rows_per_block` rows, in elements."""
        slabs = iterate_hyperslabs((rows_per_block, *shape[1:]), self.chunk_shape)
        return accumulate(map(count_elements, slabs), initial=0)

    def compute_chunk_bytes(self, dtype: np.dtype[Any]) -> int:
        """Bytes of the object of every chunk: those at the end of an axis are filled up."""
        return prod(self.chunk_shape) * dtype.itemsize

    def list_chunks(
        self, shape: Sequence[int], rows_per_block: int, stripe_bounds: Sequence[int]
    ) -> list[ZarrChunk]:
        """All of them, if the stripes of a block begin and end at these elements."""
        stripe_by_start = {start: stripe for stripe, start in enumerate(stripe_bounds)}
        stripes = cycle(
            pairwise(stripe_by_start[end] for end in self._iterate_chunk_bounds(shape, rows_per_block))
        )
        # block by block, each cut alike but for its padding
        slabs = iterate_hyperslabs(shape, self.chunk_shape)
        return [
            ZarrChunk(self.get_chunk_key(slab), slab[0].start // rows_per_block, range(*stripe_limits))
            for slab, stripe_limits in zip(slabs, stripes)
        ]

    def check(
        self, array_prefix: str, shape: Sequence[int], rows_per_block: int, stripe_bounds: Sequence[int]
    ) -> None:
        """ValueError if it is not the view of an array that has this prefix, shape and cut."""
        chunk_shape, keys = self.chunk_shape, tuple(segment.key for segment in self.metadata)
        if not self.path.startswith(array_prefix) or keys not in ((), self.metadata_keys):
            raise ValueError(f"the Zarr array at {self.path!r} is not one of this array")
        if len(chunk_shape) != len(shape) or not all(type(size) is int and size > 0 for size in chunk_shape):
            raise ValueError(f"chunks of shape {chunk_shape} do not make an array of shape {shape}")
        n_chunks = prod(-(-length // step) for length, step in zip((rows_per_block, *shape[1:]), chunk_shape))
        # Counted first: what somebody else has written may say more than memory holds.
        if (
            rows_per_block % chunk_shape[0]
            or n_chunks >= len(stripe_bounds)
            or not set(self._iterate_chunk_bounds(shape, rows_per_block)) <= set(stripe_bounds)
        ):
            raise ValueError(
                f"blocks of {rows_per_block} rows are not cut into chunks of shape {chunk_shape}"
            )

    def build_metadata(
        self, shape: Sequence[int], dtype: np.dtype[Any], manifest_key: str
    ) -> dict[str, bytes]:
        """The metadata of group and array by key; `manifest_key` is that of the coded array."""
        array_metadata = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.chunk_shape)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": [{"name": "bytes", "configuration": {"endian": _get_byte_order(dtype)}}],
            "fill_value": _get_fill_value(dtype),
            "attributes": {},
            "dimension_names": [f"dim_{axis}" for axis in range(len(shape))],
        }
        consolidated_metadata = {
            "kind": "inline",
            "must_understand": False,
            "metadata": {ARRAY_NAME: array_metadata},
        }
        group_metadata = {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {"polarmap": {"manifest": manifest_key}},
            # xarray asks for it, and warns where there is none
            "consolidated_metadata": consolidated_metadata,
        }
        return {
            key: json.dumps(document, indent=2).encode()
            for key, document in zip(self.metadata_keys, (group_metadata, array_metadata))
        }


def _get_byte_order(dtype: np.dtype[Any]) -> str:
    return "big" if dtype.newbyteorder("=").str.startswith(">") else "little"


def _get_fill_value(dtype: np.dtype[Any]) -> Any:
    """What Zarr reads in place of a missing chunk: nothing that could be taken for data, if there is such."""
    return {"f": "NaN", "c": ["NaN", "NaN"]}.get(dtype.kind, 0)
