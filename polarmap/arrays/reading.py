"""Read the blocks and rows of a coded array from storage, and decode what is damaged.

Each segment (the stored bytes of one stripe of one block) is compared with its checksum in the manifest, the
document that describes the array. A damaged segment is decoded from intact segments of the same stripe.
If another process has repaired the array in the meantime, the new manifest is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from polarmap.arrays.manifest import Manifest
from polarmap.arrays.stores import SegmentStore
from polarmap.arrays.write_transaction import parse_manifest, read_manifest_bytes
from polarmap.blocks.coded import CodedData
from polarmap.blocks.equal import DataBlocks
from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.compute.tiling import ignore_nonfinite_warnings
from polarmap.dtypes import Array, Indices, get_default_rtol, is_integer_dtype, machine_epsilon
from polarmap.errors import NotDecodableError, StorageError
from polarmap.executors.transfers import MAX_PARALLEL_TRANSFERS, map_in_parallel
from polarmap.storage import Store
from polarmap.worker.pytree import Layout, Structure
from polarmap.worker.segments import DamagedError, Segment


class StoredCodedBlocks(CodedData):
    """The n blocks of a coded array in storage, which are read on demand.

    Another process may repair the array at any time, which moves the bytes of a block to new objects. So
    whenever damage is found, the manifest (the document that says where the bytes are) is read again.

    Attributes
    ----------
    manifest : Manifest
        The latest known manifest of the array.
    segment_store : SegmentStore
        The storage that holds the bytes of the blocks.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        super().__init__(manifest.code, _StoredDataBlocks(self, manifest))
        self.segment_store, self.manifest = SegmentStore(store, manifest.encryption), manifest
        self.location, self._must_refresh = self.segment_store.location, False
        # The bytes of the manifest when it was last read from storage, to find out whether it has changed.
        self._last_manifest_bytes: bytes | None = None

    def __reduce__(self) -> tuple[type, tuple[Store, Manifest]]:
        return StoredCodedBlocks, (self.segment_store.store, self.manifest)

    def block_segments(self, task: int) -> tuple[Segment, ...]:
        """Return the segments (byte ranges of stored objects) that the worker of a task has to read.

        If a worker has reported damage, the manifest is read again first.
        """
        if self._must_refresh:
            self._must_refresh = False
            self.refresh_manifest(self.manifest)
        return self.manifest.segments[task]

    def on_damage_found(self) -> None:
        """Record that a worker has found damage.

        Before the next task, the manifest is read again, in case another process has repaired the array.
        """
        self._must_refresh = True

    def block_leaves(self, task: int) -> list[Array]:
        """Read a block in this process. Damaged parts of data blocks are decoded from other blocks."""
        if task >= self.code.k:
            return self.component_leaves(task)
        rows_per_block = self.manifest.rows_per_block
        return [
            self.read_rows(task * rows_per_block, (task + 1) * rows_per_block).reshape(
                self.manifest.block_shape
            )
        ]

    def component_leaves(self, component: int) -> list[Array]:
        """Read a block in this process, for a worker that cannot access the storage.

        Raises DamagedError if the block is damaged.
        """
        return [self._read_with_manifest_refresh(self._read_block, component)]

    def _read_block(self, block_index: int) -> Array:
        manifest = self.manifest
        block_bytes = bytearray().join(
            map_in_parallel(self.segment_store.get, manifest.segments[block_index])
        )
        return _to_native_byte_order(block_bytes, manifest.get_block_dtype(block_index)).reshape(
            manifest.block_shape
        )

    def refresh_manifest(self, stale_manifest: Manifest) -> bool:
        """Read the manifest again, in case another process has changed it.

        Return whether it now differs from `stale_manifest`.
        """
        store = self.segment_store.store
        with suppress(StorageError):
            is_stale = self.manifest is stale_manifest
            manifest_bytes = read_manifest_bytes(store, stale_manifest.name) if is_stale else None
            if manifest_bytes is not None and manifest_bytes != self._last_manifest_bytes:
                new_manifest = parse_manifest(store, stale_manifest.name, manifest_bytes, self.encryption_key)
                has_moved = new_manifest.segments != stale_manifest.segments
                if has_moved and new_manifest.describes_same_array(stale_manifest):
                    self.manifest = new_manifest
                self._last_manifest_bytes = manifest_bytes
        return self.manifest is not stale_manifest

    def read_rows(self, start: int, stop: int) -> Array:
        """Read the rows from `start` up to `stop` (exclusive), and decode damaged parts.

        Besides the rows, up to two stripes (slices) of each block are held in memory.
        """
        return self._read_with_manifest_refresh(self._read_rows, start, stop)

    def _read_with_manifest_refresh(self, read: Callable[..., Array], *arguments: int) -> Array:
        """Call `read(*arguments)`, and return its result.

        If stored data is damaged, but another process has changed the manifest in the meantime (for example
        by a repair), read again with the new manifest.
        """
        while True:
            manifest = self.manifest
            try:
                return read(*arguments)
            except (DamagedError, NotDecodableError):
                if not self.refresh_manifest(manifest):
                    raise

    def _read_rows(self, start: int, stop: int) -> Array:
        manifest, inner_shape = self.manifest, self.manifest.shape[1:]
        out = np.empty((stop - start, *inner_shape), manifest.dtype.newbyteorder("="))
        flat_out, row_size = out.reshape(-1), prod(inner_shape)
        start_element, stop_element = start * row_size, stop * row_size
        # Each piece is read from one stripe (slice) of one block. It is described by the array to read it
        # into, the index of the stripe, the index of the block, and the elements to read within the stripe.
        pieces = list[tuple[Array, int, int, slice]]()
        for block_index in range(start // manifest.rows_per_block, -(-stop // manifest.rows_per_block)):
            block_start = block_index * manifest.stripe_bounds[-1]  # position in the flattened array
            for stripe_index, stripe_bounds in enumerate(pairwise(manifest.stripe_bounds)):
                stripe_start, stripe_stop = block_start + stripe_bounds[0], block_start + stripe_bounds[1]
                first, last = max(start_element, stripe_start), min(stop_element, stripe_stop)
                if first < last:
                    target = flat_out[first - start_element : last - start_element]
                    columns = slice(first - stripe_start, last - stripe_start)
                    pieces.append((target, stripe_index, block_index, columns))

        def read_block_piece(piece: tuple[Array, int, int, slice]) -> bool:
            target, stripe_index, block_index, columns = piece
            segment_values = self._read_if_intact(stripe_index, block_index)
            if segment_values is not None:
                target[:] = segment_values[columns]
            return segment_values is not None

        is_file = self.segment_store.location.is_memory_mapped
        # Each thread holds one piece in memory. Use at most one thread per block, so that the pieces take no
        # more memory than one stripe (slice) of all `n` blocks. Files are read without threads, because
        # starting a thread takes longer than reading.
        bounded_map = partial(map_in_parallel, max_threads=min(MAX_PARALLEL_TRANSFERS, self.n))
        map_function = map if is_file or len(pieces) == 1 else bounded_map
        for (target, stripe_index, block_index, columns), is_intact in zip(
            pieces, map_function(read_block_piece, pieces)
        ):
            if not is_intact:
                target[:] = self._decode_stripe_slice(stripe_index, block_index, columns)
        return out

    def _decode_stripe_slice(self, stripe_index: int, block_index: int, columns: slice) -> Array:
        """Decode part of a damaged data block from one stripe (the same slice) of the other blocks.

        `columns` selects the elements to decode within the stripe.
        """
        manifest, k, intact_columns = self.manifest, self.code.k, dict[int, Array]()
        tracker = make_arrival_tracker(manifest, requires_well_conditioned=True)
        other_blocks = [other_block for other_block in range(self.n) if other_block != block_index]
        while other_blocks and not (tracker.is_ready and all_finite(intact_columns.values())):
            batch, other_blocks = other_blocks[:k], other_blocks[k:]
            for intact_block, segment_values in self.read_intact_segments(stripe_index, batch).items():
                intact_columns[intact_block] = segment_values[columns]
                tracker.add(intact_block)
        blocks = decode_stripe_blocks(manifest, stripe_index, [block_index], intact_columns, columns.start)
        return blocks[block_index]

    def read_intact_segments(self, stripe_index: int, block_indices: Sequence[int]) -> dict[int, Array]:
        """Read one stripe (the same slice) of several blocks, and leave out damaged ones.

        Returns a dict from block index to a one-dimensional array.
        """
        segment_values = map_in_parallel(partial(self._read_if_intact, stripe_index), block_indices)
        return {
            block_index: values
            for block_index, values in zip(block_indices, segment_values)
            if values is not None
        }

    def _read_if_intact(self, stripe_index: int, block_index: int) -> Array | None:
        """Read one stripe (slice) of a block as a flat array. Return None if it is missing or damaged."""
        try:
            segment_bytes = self.segment_store.get(self.manifest.segments[block_index][stripe_index])
        except DamagedError:
            return None
        return _to_native_byte_order(segment_bytes, self.manifest.get_block_dtype(block_index))


class _StoredDataBlocks(DataBlocks):
    """The data blocks of a stored array. Their dtype and shape are known without reading them."""

    # The rows that pad the last block are zeros if the array was stored by `encode`. If the array contains
    # the results of a map, they are the results of f for rows of zeros, which may be nonzero.
    has_zero_padding = False

    def __init__(self, coded_blocks: StoredCodedBlocks, manifest: Manifest) -> None:
        structure: Structure = ("numpy",) if manifest.has_scalar_blocks else ("array",)
        rows_per_block = None if manifest.has_scalar_blocks else manifest.rows_per_block
        super().__init__([()] * manifest.code.k, structure, manifest.n_padding_rows, rows_per_block)
        self._coded_blocks, self._layout = coded_blocks, ((manifest.dtype.str, manifest.block_shape),)

    @property
    def block_layout(self) -> Layout:
        """The dtype and shape of a block, as a tuple that contains one (dtype, shape) pair."""
        return self._layout

    def block_leaves(self, block_index: int) -> list[Array]:
        """Read one data block, and return it as a list of one array."""
        return self._coded_blocks.block_leaves(block_index)


def _to_native_byte_order(data: bytes | bytearray, dtype: np.dtype[Any]) -> Array:
    """Convert stored bytes to an array in the byte order of this machine."""
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)


@contextmanager
def convert_damage_to_decoding_error() -> Iterator[None]:
    """Return a context manager that converts a DamagedError to a NotDecodableError.

    Use it to read stored data that was intact when it was checked before. The message of the
    NotDecodableError advises the user to repeat the call.
    """
    try:
        yield
    except DamagedError as error:
        raise NotDecodableError(f"{error}. It was intact when this call checked it: call it again") from error


def make_arrival_tracker(
    manifest: Manifest, block_indices: Iterable[int] = (), requires_well_conditioned: bool = False
) -> ArrivalTracker:
    """Return a tracker that determines when enough blocks are available to decode all other blocks.

    The blocks `block_indices` are available from the start, and more can be added. If
    `requires_well_conditioned` is True, there must also be enough blocks to decode with small rounding
    errors, i.e. with the default relative tolerance `rtol`.
    """
    dtype = manifest.dtype
    is_integer = is_integer_dtype(dtype)
    max_amplification = np.inf
    if requires_well_conditioned and not is_integer:
        max_amplification = get_default_rtol(dtype) / machine_epsilon(dtype)
    tracker = ArrivalTracker(manifest.code, modular=is_integer, max_amplification=max_amplification)
    for block_index in block_indices:
        tracker.add(block_index)
    return tracker


def all_finite(arrays: Iterable[Array]) -> bool:
    """Return whether all entries of all arrays are finite, that is, neither NaN nor inf."""
    return all(is_integer_dtype(array.dtype) or bool(np.isfinite(array).all()) for array in arrays)


def decode_stripe_blocks(
    manifest: Manifest,
    stripe_index: int,
    block_indices: Sequence[int],
    intact_rows: Mapping[int, Array],
    first_element: int = 0,
) -> dict[int, Array]:
    """Decode damaged data blocks from intact blocks, within one stripe (the same slice of every block).

    Entries of intact blocks that are NaN or inf are not used for decoding.

    Parameters
    ----------
    manifest : Manifest
        The manifest of the array.
    stripe_index : int
        The stripe to decode.
    block_indices : sequence of int
        The data blocks to decode.
    intact_rows : mapping of int to array
        The stripe of each intact block, or a range of it, as a flat array.
    first_element : int
        The position in the stripe at which the range begins; 0 for whole stripes.

    Returns
    -------
    dict of int to array
        The decoded stripes (or ranges), by block index.

    Raises
    ------
    NotDecodableError
        If some entries cannot be decoded from the intact blocks. The message names these entries.
    """
    tracker = make_arrival_tracker(manifest, intact_rows)
    if not tracker.is_ready:
        code = manifest.code
        raise NotDecodableError(
            f"stripe {stripe_index} of the coded array {manifest.name!r} cannot be decoded: only "
            f"{len(intact_rows)} of its {code.n} parts are intact, and they do not determine the {code.k} "
            "data blocks"
        )
    target_indices = np.array(block_indices, np.intp)
    with ignore_nonfinite_warnings():
        decoded_rows = _decode_rows(tracker, manifest, intact_rows, target_indices)
        if not all_finite([*intact_rows.values(), decoded_rows]):
            first_positions = (
                target_indices[:, None] * prod(manifest.block_shape)
                + manifest.stripe_bounds[stripe_index]
                + first_element
            )
            undecodable = _decode_nonfinite_columns(
                manifest, intact_rows, target_indices, decoded_rows, first_positions
            )
            if undecodable.size:
                raise NotDecodableError(_format_undecodable_message(manifest, undecodable))
    return dict(zip(target_indices.tolist(), decoded_rows))


def _decode_rows(
    tracker: ArrivalTracker, manifest: Manifest, intact_rows: Mapping[int, Array], target_indices: Indices
) -> Array:
    decoder = tracker.decoder
    decoded_rows = decoder.decode(dict(intact_rows), manifest.dtype.newbyteorder("="))
    if len(decoded_rows) == len(target_indices):
        return decoded_rows
    return decoded_rows[np.searchsorted(decoder.missing_indices, target_indices)]


def _decode_nonfinite_columns(
    manifest: Manifest,
    intact_rows: Mapping[int, Array],
    target_indices: Indices,
    decoded_rows: Array,
    first_positions: Indices,
) -> Indices:
    """Decode again all columns with NaN or inf, using only the blocks that are finite in each column.

    A column consists of the entries of all blocks at one position. `decoded_rows` is updated in place.

    If a column cannot be decoded, its entries become NaN. But if no parity block is finite in the column,
    entries in padding rows become zero.

    Parameters
    ----------
    manifest, intact_rows
        As for `decode_stripe_blocks`.
    target_indices : index array (rows,)
        The data blocks to decode.
    decoded_rows : array (rows, columns)
        The decoded entries of these blocks.
    first_positions : index array (rows, 1)
        The position of the start of each row in the flattened array.

    Returns
    -------
    index array
        The positions in the flattened array of all entries that cannot be decoded.
    """
    undecodable = []
    for columns, finite_blocks in _group_columns_by_finite_blocks(intact_rows, decoded_rows):
        finite_columns = {block_index: intact_rows[block_index][columns] for block_index in finite_blocks}
        tracker, positions = make_arrival_tracker(manifest, finite_columns), first_positions + columns
        if tracker.is_ready:
            decoded_rows[:, columns] = _decode_rows(tracker, manifest, finite_columns, target_indices)
        else:
            decoded_rows[:, columns] = np.nan
            if max(finite_blocks, default=0) < manifest.code.k:
                is_data_mask = positions < prod(manifest.shape)
                decoded_rows[:, columns] = np.where(is_data_mask, decoded_rows[:, columns], 0)
        undecodable.append(positions[~np.isfinite(decoded_rows[:, columns])])
    return np.concatenate(undecodable)


def _group_columns_by_finite_blocks(
    intact_rows: Mapping[int, Array], decoded_rows: Array
) -> Iterator[tuple[Indices, list[int]]]:
    """Group the columns that contain NaN or inf by the intact blocks that are finite in them.

    A column consists of the entries of all blocks at one position. Yields, for each group, the indices of its
    columns and the blocks that are finite in all of them.
    """
    nonfinite_mask = np.zeros(decoded_rows.shape[1], bool)
    for row in (*intact_rows.values(), *decoded_rows):
        nonfinite_mask |= ~np.isfinite(row)
    columns = np.flatnonzero(nonfinite_mask)
    finite_masks = np.stack([np.isfinite(row[columns]) for row in intact_rows.values()])
    patterns, pattern_indices = np.unique(finite_masks, axis=1, return_inverse=True)
    order = np.argsort(pattern_indices.reshape(-1), kind="stable")
    groups = np.split(columns[order], np.cumsum(np.bincount(pattern_indices.reshape(-1)))[:-1])
    for pattern, column_group in zip(patterns.T, groups):
        yield (
            column_group,
            [
                block_index
                for block_index, is_finite_block in zip(intact_rows, pattern.tolist())
                if is_finite_block
            ],
        )


def _format_undecodable_message(manifest: Manifest, undecodable_positions: Indices) -> str:
    entries_text = "1 entry" if undecodable_positions.size == 1 else f"{undecodable_positions.size} entries"
    blocks = np.unique(undecodable_positions // prod(manifest.block_shape)).tolist()
    shape = (manifest.code.k * manifest.rows_per_block, *manifest.shape[1:])
    first_index = [int(coordinate) for coordinate in np.unravel_index(undecodable_positions.min(), shape)]
    return (
        f"{entries_text} of blocks {blocks} of the coded array {manifest.name!r} cannot be decoded, the "
        f"first at index {first_index}: parts of these blocks are damaged, and intact blocks contain NaN or "
        "inf at the same positions. The array was not changed. Slices without these entries can be read"
    )
