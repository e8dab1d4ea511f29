"""The keys and the metadata of the Zarr v3 array that the data blocks of a coded array form.

    <path>/zarr.json           group
    <path>/data/zarr.json      array
    <path>/data/c/5/1          chunk: one or several stripes of one data block

`zarr_chunks` stores these objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import accumulate, cycle, pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np

from polarmap.arrays.stripes import Hyperslab, count_elements, iterate_hyperslabs
from polarmap.worker.segments import Segment

GROUP_NAME = "array.zarr"  # The group has its own folder, so that it contains only objects that Zarr knows.
ARRAY_NAME = "data"  # The name of the array in its group.
METADATA_FILE = "zarr.json"


class ZarrChunk(NamedTuple):
    """A chunk of the Zarr array that contains the data blocks of a coded array.

    A chunk holds one or more consecutive stripes (slices) of one data block.

    Attributes
    ----------
    key : str
        The key of the object in which the chunk is stored.
    block_index : int
        The data block.
    stripe_range : range
        The stripes of the data block.
    """

    key: str
    block_index: int
    stripe_range: range


class ZarrView(NamedTuple):
    """Describes the Zarr array that contains the data blocks of a coded array, for other libraries.

    The array is the only one in its Zarr group. Each of its chunks belongs to one data block.

    Attributes
    ----------
    path : str
        The key of the Zarr group.
    chunk_shape : tuple of int
        The chunk shape. Its number of rows divides the number of rows per block.
    metadata : tuple of Segment
        Where the metadata of the group and the array is stored. Empty while chunks are missing.
    """

    path: str
    chunk_shape: tuple[int, ...]
    metadata: tuple[Segment, ...] = ()

    @property
    def metadata_keys(self) -> tuple[str, str]:
        """The keys of the metadata objects of the group and of the array."""
        return f"{self.path}/{METADATA_FILE}", f"{self.path}/{ARRAY_NAME}/{METADATA_FILE}"

    def get_chunk_key(self, hyperslab: Hyperslab) -> str:
        """Return the key of the chunk that holds a piece of the array, given as one slice per axis.

        >>> ZarrView("a", (2, 5)).get_chunk_key((slice(10, 12), slice(5, 8)))
        'a/data/c/5/1'
        """
        chunk_coordinates = (
            axis_slice.start // length for axis_slice, length in zip(hyperslab, self.chunk_shape)
        )
        return "/".join([self.path, ARRAY_NAME, "c", *map(str, chunk_coordinates)])

    def _iterate_chunk_bounds(self, shape: Sequence[int], rows_per_block: int) -> Iterator[int]:
        """Yield the boundaries of the Zarr chunks of a block, as positions in the flattened block."""
        slabs = iterate_hyperslabs((rows_per_block, *shape[1:]), self.chunk_shape)
        return accumulate(map(count_elements, slabs), initial=0)

    def compute_chunk_bytes(self, dtype: np.dtype[Any]) -> int:
        """Return the size of a chunk in bytes. All chunks are padded to the same size."""
        return prod(self.chunk_shape) * dtype.itemsize

    def list_chunks(
        self, shape: Sequence[int], rows_per_block: int, stripe_bounds: Sequence[int]
    ) -> list[ZarrChunk]:
        """List all chunks of the array, with the block and the stripes that each one holds.

        `shape` is the shape of the whole array. `stripe_bounds` are the boundaries of the stripes (slices) of
        a block, as positions in the flattened block.
        """
        stripe_by_start = {start: stripe for stripe, start in enumerate(stripe_bounds)}
        stripes = cycle(
            pairwise(stripe_by_start[end] for end in self._iterate_chunk_bounds(shape, rows_per_block))
        )
        # Each slab is the part of the array that one chunk holds. The slabs are ordered by block, and each
        # block is cut into chunks in the same way, so `stripes` repeats for each block. Only the last block
        # may have fewer chunks, because padding rows have no chunks.
        slabs = iterate_hyperslabs(shape, self.chunk_shape)
        return [
            ZarrChunk(self.get_chunk_key(slab), slab[0].start // rows_per_block, range(*stripe_limits))
            for slab, stripe_limits in zip(slabs, stripes)
        ]

    def check(
        self, array_prefix: str, shape: Sequence[int], rows_per_block: int, stripe_bounds: Sequence[int]
    ) -> None:
        """Raise ValueError if this description of a Zarr array contradicts the coded array.

        `array_prefix` is the common key prefix of the coded array's objects. The other arguments are those of
        `list_chunks`.
        """
        chunk_shape, keys = self.chunk_shape, tuple(segment.key for segment in self.metadata)
        if not self.path.startswith(array_prefix) or keys not in ((), self.metadata_keys):
            raise ValueError(f"the Zarr array at {self.path!r} does not belong to this coded array")
        if len(chunk_shape) != len(shape) or not all(type(size) is int and size > 0 for size in chunk_shape):
            raise ValueError(f"chunks of shape {chunk_shape} do not fit an array of shape {shape}")
        n_chunks = prod(-(-length // step) for length, step in zip((rows_per_block, *shape[1:]), chunk_shape))
        # Compare the numbers of chunks and stripes first. In an invalid manifest, there may be so many chunks
        # that the set of their boundaries does not fit into memory.
        if (
            rows_per_block % chunk_shape[0]
            or n_chunks >= len(stripe_bounds)
            or not set(self._iterate_chunk_bounds(shape, rows_per_block)) <= set(stripe_bounds)
        ):
            raise ValueError(
                f"the stripes of blocks of {rows_per_block} rows do not fit chunks of shape {chunk_shape}"
            )

    def build_metadata(
        self, shape: Sequence[int], dtype: np.dtype[Any], manifest_key: str
    ) -> dict[str, bytes]:
        """Build the Zarr metadata of the group and of the array, as JSON documents by key.

        `manifest_key` is the key of the coded array's manifest. It is stored as an attribute of the group.
        """
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
            # Without consolidated metadata, xarray would issue a warning.
            "consolidated_metadata": consolidated_metadata,
        }
        return {
            key: json.dumps(document, indent=2).encode()
            for key, document in zip(self.metadata_keys, (group_metadata, array_metadata))
        }


def _get_byte_order(dtype: np.dtype[Any]) -> str:
    return "big" if dtype.newbyteorder("=").str.startswith(">") else "little"


def _get_fill_value(dtype: np.dtype[Any]) -> Any:
    """Return the value that Zarr reads for missing chunks: NaN, or 0 for integers."""
    return {"f": "NaN", "c": ["NaN", "NaN"]}.get(dtype.kind, 0)
