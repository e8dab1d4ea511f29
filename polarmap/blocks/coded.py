"""Hold the coded blocks of a map, which are the inputs of its tasks.

Coded blocks are data blocks and parity blocks (combinations of data blocks). `CodedData` is the interface to
the rest of polarmap. `CodedBlocks` encodes data in memory, when a task first needs a parity block.
`SecretSharingBlocks` hides the data in noise.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.blocks.equal import DataBlocks
from polarmap.codes.integer_secret_sharing import IntegerSecretSharingCode
from polarmap.codes.linear_code import LinearCode
from polarmap.codes.secret_sharing import SecretSharingCode
from polarmap.dtypes import Array, choose_accumulator_dtype, to_real_dtype
from polarmap.executors.interface import TaskBlocks
from polarmap.worker.pytree import Layout


class CodedData(TaskBlocks):
    """Base class for the n coded blocks of a map: data blocks and redundant parity blocks, one per task.

    Subclasses hold them in memory, in storage or on a cluster. If the data of a map has a method
    `coded_blocks() -> CodedData`, `coded_map` calls this method instead of encoding the data.

    Attributes
    ----------
    code : LinearCode
        The code with which the blocks are encoded.
    data_blocks : DataBlocks
        The data blocks.
    encode_seconds : float
        The time spent on encoding so far, in seconds.
    parity_warning : str
        A warning about data that makes parity blocks useless, such as NaN, or "".
    code_reason : str
        The reason for choosing this code, for the report, or "".
    """

    encode_seconds = 0.0
    parity_warning = code_reason = ""

    def __init__(self, code: LinearCode, data_blocks: DataBlocks) -> None:
        self.code, self.data_blocks = code, data_blocks
        self.n, self.structure = code.n, data_blocks.structure
        self._n_data_blocks = len(code.systematic_indices)

    def coded_blocks(self) -> CodedData:
        """Return self, because the data is already encoded."""
        return self

    def wrap_function_for_blocks(self, f: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return the function that workers call with a block.

        It is f itself or, in subclasses, a wrapper that converts the block to the argument that f expects.
        """
        return f

    def block_layout(self, task: int) -> Layout:
        """Return the dtype and shape of each array in the input block of a task.

        This does not compute the block, not even if it is a parity block.
        """
        return self._data_and_parity_layouts[task >= self._n_data_blocks]

    @cached_property
    def _data_and_parity_layouts(self) -> tuple[Layout, Layout]:
        """The dtype and shape of each array in a data block, and the same for a parity block."""
        data_layout = self.data_blocks.block_layout
        return data_layout, tuple(
            (self.code.parity_dtype(np.dtype(name)).str, shape) for name, shape in data_layout
        )


class CodedBlocks(CodedData):
    """The n coded blocks of data in memory: the k data blocks, and parity blocks computed from them.

    As soon as one parity block is needed, all of them are computed.

    Parameters
    ----------
    data_blocks : DataBlocks
        The k blocks of data to encode.
    code : LinearCode
        The code, which defines each parity block as a combination of data blocks.
    keep_parity : bool
        Whether to keep the parity blocks after a map for the next map over the same data.
    """

    def __init__(self, data_blocks: DataBlocks, code: LinearCode, keep_parity: bool = False) -> None:
        super().__init__(code, data_blocks)
        self._keep_parity, self._encode_lock = keep_parity, threading.Lock()
        self._parity: list[Array] | None = None

    def block_leaves(self, task: int) -> list[Array]:
        """Return the arrays of coded block `task`, which is the input of the task with this index."""
        if task < self._n_data_blocks:
            return self.data_blocks.block_leaves(task)
        rows = (parity[task - self._n_data_blocks] for parity in self._get_parity())
        return [row.reshape(shape) for row, (_, shape) in zip(rows, self.data_blocks.block_layout)]

    def prepare_encoding(self) -> None:
        """Compute the coefficients of the code in advance, so that a later encoding takes less time."""
        self.code.precompute_encoding()

    def release_memory(self) -> None:
        """Free the memory of the parity blocks unless `keep_parity` is set.

        If the parity blocks are needed again, they are recomputed.
        """
        with self._encode_lock:
            if not self._keep_parity:
                self._parity = None

    def _get_parity(self) -> list[Array]:
        """Return all parity blocks. They are computed by the first call and kept in memory.

        A block may consist of several arrays (leaves). The returned list has one 2-D array for each of them,
        in which row i is the flattened array of parity block i.
        """
        with self._encode_lock:
            if self._parity is None:
                started_at = time.perf_counter()
                leaf_indices = range(len(self.data_blocks.dtypes))
                self._parity = [self._encode_leaf(leaf_index) for leaf_index in leaf_indices]
                self.parity_warning = self.parity_warning or self._describe_nonfinite_parity(self._parity)
                self.encode_seconds += time.perf_counter() - started_at
            return self._parity

    def _encode_leaf(self, leaf_index: int) -> Array:
        """Compute one array (leaf) of every parity block from the same array of all data blocks.

        Row i of the returned 2-D array is the flattened array of parity block i.
        """
        return self.code.encode_parity(self.data_blocks.stack_leaf_as_rows(leaf_index))

    def _describe_nonfinite_parity(self, parity: Sequence[Array]) -> str:
        """Return a warning if parity blocks contain NaN or inf, else an empty string."""
        for leaf_index, rows in enumerate(parity):
            if rows.dtype.kind in "fc" and not is_all_finite(rows.view(to_real_dtype(rows.dtype))):
                return _describe_nonfinite_location(self.data_blocks, leaf_index)
        return ""


class SecretSharingBlocks(CodedBlocks):
    """The n coded blocks of data, each mixed with random noise that hides the data from the workers.

    The coded blocks are encoded only once and then kept, because each encoding draws different noise, and
    blocks with different noise cannot be decoded together.
    """

    code: SecretSharingCode | IntegerSecretSharingCode

    def __init__(self, data_blocks: DataBlocks, code: SecretSharingCode | IntegerSecretSharingCode) -> None:
        super().__init__(data_blocks, code, keep_parity=True)

    def _encode_leaf(self, leaf_index: int) -> Array:
        rows = list(self.data_blocks.stack_leaf_as_rows(leaf_index))
        if self.code.supports_integers:
            dtype = self.code.parity_dtype(rows[0].dtype)
            rows = [row.astype(dtype, copy=False) for row in rows]
            noise_rows = draw_uniform_noise(rows[0].size, self.code.n_noise_blocks, dtype)
        else:
            noise_rows = draw_normal_noise(rows, self.code.n_noise_blocks, self.code.noise_std)
        return self.code.encode_parity([*rows, *noise_rows])


def draw_uniform_noise(
    block_size: int, n_blocks: int, dtype: np.dtype[np.signedinteger | np.unsignedinteger]
) -> list[Array]:
    """Return `n_blocks` arrays of uniformly distributed 64-bit integers, to hide data from workers.

    The random numbers come from the cryptographic generator of the operating system.
    """
    return [np.frombuffer(os.urandom(8 * block_size), dtype) for _ in range(n_blocks)]


def draw_normal_noise(rows: list[Array], n_blocks: int, relative_deviation: float) -> list[Array]:
    """Return `n_blocks` arrays of normally distributed noise with the same size and dtype as a row.

    The standard deviation of the noise is `relative_deviation` times the root mean square of all rows, or
    `relative_deviation` itself if all rows are zero. Real and imaginary parts of complex rows count as
    separate numbers. The generator (PCG64, seeded by the operating system) is not cryptographic.
    """
    generator = np.random.default_rng()
    real_dtype = to_real_dtype(rows[0].dtype)
    working_dtype = choose_accumulator_dtype(real_dtype)
    real_rows = [row.view(real_dtype) for row in rows]
    with np.errstate(all="ignore"):  # NaN and inf in the data lead to a separate warning about the results.
        powers = [np.square(row, dtype=np.float64).mean() if row.size else 0.0 for row in real_rows]
        mean_square = np.mean(powers)
    scale = relative_deviation * (float(np.sqrt(mean_square)) if 0 < mean_square < np.inf else 1.0)

    def draw_block() -> npt.NDArray[np.floating]:
        noise = generator.standard_normal(real_rows[0].size, working_dtype.type)
        return (scale * noise).astype(real_dtype)

    return [draw_block().view(rows[0].dtype) for _ in range(n_blocks)]


def is_all_finite(array: Array) -> bool:
    """Return whether an array contains neither NaN nor inf, without allocating a boolean mask."""
    return not array.size or bool(np.isfinite(array.max()) and np.isfinite(array.min()))


def _describe_nonfinite_location(data_blocks: DataBlocks, leaf_index: int) -> str:
    """Return a warning that explains why parity blocks contain NaN or inf.

    Either the data contains NaN or inf, and the warning says where, or sums of the data overflow. Only the
    array (leaf) with index `leaf_index` of each block is examined.
    """
    n_nonfinite, first_position = 0, ""
    for block_index in range(data_blocks.k):
        array = data_blocks.block_leaves(block_index)[leaf_index]
        positions = np.argwhere(~np.isfinite(array))
        if len(positions) and not n_nonfinite:
            row, *inner_index = positions[0].tolist() or [0]
            position_text = (
                f"block {block_index}"
                if data_blocks.rows_per_block is None
                else f"row {block_index * data_blocks.rows_per_block + row}"
            )
            entry = [row, *inner_index] if data_blocks.rows_per_block is None else inner_index
            first_position = f"{position_text}, entry {tuple(entry)}" if entry else position_text
        n_nonfinite += len(positions)
    return format_nonfinite_warning(data_blocks.dtypes[leaf_index], n_nonfinite, first_position)


def format_nonfinite_warning(dtype: np.dtype[Any], n_nonfinite: int, first_position: str) -> str:
    """Return a warning that some parity blocks are useless because of NaN or inf in the data, or overflow.

    `n_nonfinite` is the number of NaN and inf values in the data, and `first_position` describes where the
    first one is. If `n_nonfinite` is 0, the cause is that sums of the data overflow `dtype`.
    """
    problem = f"sums of the data overflow {dtype}"
    if n_nonfinite:
        places = f"{n_nonfinite} position{'s' * (n_nonfinite > 1)}"
        problem = f"the data contains NaN or inf at {places}, the first in {first_position}"
    return f"{problem}: parity is useless there, so a missing result may not be decodable"
