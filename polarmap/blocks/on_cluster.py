"""Encode data that is already on a Dask or Ray cluster, without moving it to this process.

    chunks --> k data blocks --split--> stripes --encode--> parity stripes --join--> n - k parity blocks

Every step is a call on the cluster. This process only receives a summary of each block.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from polarmap.blocks.array_like import as_array_like
from polarmap.blocks.coded import CodedData, format_nonfinite_warning
from polarmap.blocks.equal import DataBlocks
from polarmap.codes.linear_code import LinearCode
from polarmap.dtypes import Array, check_supported_dtype
from polarmap.errors import CodeError
from polarmap.executors.engine import PartitionedData
from polarmap.worker.pytree import Layout, count_layout_bytes
from polarmap.worker.segments import Segment

# Parity blocks are computed by this many calls on the cluster, so that several workers compute them in
# parallel. Each call receives the same slice (stripe) of every data block.
DEFAULT_N_STRIPES = 16
MAX_STRIPE_BYTES = 256 << 20  # maximum bytes of the input of such a call: larger data needs more calls


class BlockSummary(NamedTuple):
    """Properties of a block on a cluster, which are sent to this process instead of the block itself.

    Attributes
    ----------
    dtype, shape
        The dtype and shape of the block.
    is_original_chunk : bool
        Whether the block is identical to a single chunk of the data, so that no copy is needed.
    n_nonfinite : int
        The number of entries that are NaN or inf.
    first_nonfinite : tuple of int
        The index of the first NaN or inf, or () without one.
    max_abs : int
        The largest absolute value of a block of integers. 0 for other dtypes.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_original_chunk: bool
    n_nonfinite: int
    first_nonfinite: tuple[int, ...]
    max_abs: int

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class ClusterDataBlocks(DataBlocks):
    """The k data blocks of a map whose data is on a Dask or Ray cluster.

    A block is copied to this process only when `block_leaves` is called.
    """

    def __init__(self, partitioned_data: PartitionedData) -> None:
        self.cluster, k = partitioned_data.engine, len(partitioned_data.chunk_references)
        rows_per_block = None if partitioned_data.n_rows is None else -(-partitioned_data.n_rows // k)
        block_and_summary_references = [
            self.cluster.submit_call(build_block_and_summary, rows_per_block, *chunks, n_outputs=2)
            for chunks in partitioned_data.chunk_references
        ]
        self.summaries: list[BlockSummary] = self.cluster.fetch_values(
            [summary_references for _, summary_references in block_and_summary_references]
        )
        summary_references = zip(
            partitioned_data.chunk_references, block_and_summary_references, self.summaries
        )
        self.references = [
            chunks[0] if summary.is_original_chunk else block
            for chunks, (block, _), summary in summary_references
        ]
        first_summary = self.summaries[0]
        for block_index, summary in enumerate(self.summaries):
            if summary[:2] != first_summary[:2]:
                raise CodeError(
                    f"all blocks must have the same shape and dtype, but block {block_index} is {summary} "
                    f"and block 0 is {first_summary}"
                )
        self._layout = ((check_supported_dtype(first_summary.dtype, "the data").str, first_summary.shape),)
        super().__init__(
            [[]] * k,
            ("array",),
            0 if rows_per_block is None else k * rows_per_block - (partitioned_data.n_rows or 0),
            rows_per_block,
        )

    @property
    def block_layout(self) -> Layout:
        """The dtype and shape of each block."""
        return self._layout

    def block_leaves(self, block_index: int) -> list[Array]:
        """Copy block `block_index` from the cluster to this process. Return it as a list of one array."""
        return self.cluster.fetch_values(self.references[block_index : block_index + 1])

    def compute_max_abs(self, leaf_index: int) -> int:
        """Return the largest absolute value of the integers in all blocks."""
        return max(summary.max_abs for summary in self.summaries)

    @property
    def nonfinite_warning(self) -> str:
        """A warning about NaN and inf in the data, or "" if all values are finite."""
        n_nonfinite = sum(summary.n_nonfinite for summary in self.summaries)
        positions = [
            f"block {block_index}, entry {summary.first_nonfinite}"
            for block_index, summary in enumerate(self.summaries)
            if summary.n_nonfinite
        ]
        return format_nonfinite_warning(self.dtypes[0], n_nonfinite, positions[0]) if positions else ""


class ClusterCodedBlocks(CodedData):
    """The n coded blocks of data on a Dask or Ray cluster: data blocks and parity blocks.

    The parity blocks are computed on the cluster when one of them is first needed, by several calls in
    parallel. Each call receives the same slice (stripe) of all data blocks, so that no part of the data is
    sent twice.
    """

    data_blocks: ClusterDataBlocks

    def __init__(self, data_blocks: ClusterDataBlocks, code: LinearCode) -> None:
        super().__init__(code, data_blocks)
        self.location = data_blocks.cluster.location
        self.parity_warning = data_blocks.nonfinite_warning
        self._lock = threading.Lock()
        self._parity_references: list[Any] = []
        # The names by which workers fetch blocks: of data blocks (key True) and of parity blocks (key False).
        self._worker_names: dict[bool, list[Any]] = {}

    def cluster_reference(self, task: int) -> Any:
        """Return a reference to block `task`, for use as an argument of calls on the cluster."""
        if task < self._n_data_blocks:
            return self.data_blocks.references[task]
        with self._lock:
            self._parity_references = self._parity_references or self._encode_parity()
            return self._parity_references[task - self._n_data_blocks]

    def block_leaves(self, task: int) -> list[Array]:
        """Copy block `task` from the cluster to this process. Return it as a list of one array."""
        return self.data_blocks.cluster.fetch_values([self.cluster_reference(task)])

    def block_segments(self, task: int) -> tuple[Segment, ...]:
        """Return where a persistent worker on the cluster finds block `task`, as a tuple of one segment.

        The segment consists of the name by which the worker fetches the block, and its size in bytes.
        """
        is_data, layout = task < self._n_data_blocks, self.block_layout(task)
        self.cluster_reference(task)  # Ensure that the parity blocks exist.
        with self._lock:
            if is_data not in self._worker_names:
                references = self.data_blocks.references if is_data else self._parity_references
                self._worker_names[is_data] = self.data_blocks.cluster.make_worker_reference_names(references)
        worker_name = self._worker_names[is_data][task if is_data else task - self._n_data_blocks]
        return (Segment(worker_name, count_layout_bytes(layout)),)

    def _encode_parity(self) -> list[Any]:
        cluster, [(_, shape)] = self.data_blocks.cluster, self.data_blocks.block_layout
        n_parity = self.n - self._n_data_blocks
        min_stripes = -(
            -self.data_blocks.k * count_layout_bytes(self.data_blocks.block_layout) // MAX_STRIPE_BYTES
        )
        n_stripes = max(1, min(prod(shape), max(min_stripes, min(n_parity, DEFAULT_N_STRIPES))))
        stripe_references = [
            cluster.submit_call(split_block_into_stripes, block_reference, n_stripes, n_outputs=n_stripes)
            for block_reference in self.data_blocks.references
        ]
        parity_references = [
            cluster.submit_call(encode_parity_stripe, self.code, *stripe_columns, n_outputs=n_parity)
            for stripe_columns in zip(*stripe_references)
        ]
        return [
            cluster.submit_call(join_stripes_into_block, shape, *block_stripes)[0]
            for block_stripes in zip(*parity_references)
        ]


# --- functions that run on the cluster -----------------------------------------------------------


def build_block_and_summary(rows_per_block: int | None, *chunks: Any) -> tuple[Array | None, BlockSummary]:
    """Build a block from the chunks that contain its rows. Return the block and its summary.

    The chunks are concatenated and padded with zeros to `rows_per_block` rows. If None, nothing is padded. If
    the block is identical to a single chunk, return None instead of the block, so that it is not stored
    twice.
    """
    arrays = [_chunk_to_array(chunk) for chunk in chunks]
    array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    n_padding_rows = 0 if rows_per_block is None else rows_per_block - len(array)
    if n_padding_rows:
        array = np.concatenate([array, np.zeros((n_padding_rows, *array.shape[1:]), array.dtype)])
    block = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
    nonfinite_indices = (
        np.argwhere(~np.isfinite(block)) if block.dtype.kind in "fc" else np.zeros((0, 0), int)
    )
    first_nonfinite = tuple(nonfinite_indices[0].tolist()) if len(nonfinite_indices) else ()
    is_original_chunk = isinstance(chunks[0], np.ndarray) and block.base is chunks[0]
    is_integer = block.dtype.kind in "iu" and block.size
    max_abs = max(int(block.max()), -int(block.min())) if is_integer else 0
    summary = BlockSummary(
        block.dtype, block.shape, is_original_chunk, len(nonfinite_indices), first_nonfinite, max_abs
    )
    return None if is_original_chunk else block, summary


def _chunk_to_array(chunk: Any) -> Array:
    """Convert a chunk of the data to a numpy array. A dict of columns becomes a 2-D array."""
    if isinstance(chunk, dict):
        columns = list(chunk.values())
        return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
    return np.asarray(as_array_like(chunk, "a block"))


def split_block_into_stripes(block: Array, n_stripes: int) -> Any:
    """Split the flattened block into `n_stripes` slices of nearly equal length."""
    return _unwrap_single_output(np.array_split(block.reshape(-1), n_stripes))


def encode_parity_stripe(code: LinearCode, *stripes: Array) -> Any:
    """Compute one slice (stripe) of every parity block from the same slice of all data blocks.

    Each position of a parity block depends only on the same position of the data blocks.
    """
    return _unwrap_single_output(list(code.encode_parity(stripes)))


def join_stripes_into_block(shape: tuple[int, ...], *stripes: Array) -> Array:
    """Concatenate the flat slices (stripes) of a block, and reshape the result to `shape`."""
    return np.concatenate(stripes).reshape(shape)


def _unwrap_single_output(outputs: Sequence[Array]) -> Any:
    """Return a sequence of outputs unchanged, but a single output without the sequence around it.

    Dask and Ray expect a function with one output to return this output itself.
    """
    return outputs if len(outputs) > 1 else outputs[0]
