"""Reading parts: checked against the manifest, and decoded from others where they are damaged."""

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
    """The n blocks of a stored array, of which nothing is read before it is asked for, and its rows.

    Somebody else may repair the array meanwhile. Then parts lie elsewhere, those that were good too, as the
    manifest in storage tells: it is read again where too much is damaged.

    manifest, segment_store : what its parts are, and where they lie.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        super().__init__(manifest.code, _StoredDataBlocks(self, manifest))
        self.segment_store, self.manifest = SegmentStore(store, manifest.encryption), manifest
        self.location, self._must_refresh = self.segment_store.location, False
        self._last_manifest_bytes: bytes | None = None  # the manifest in storage, when one was found damaged

    def __reduce__(self) -> tuple[type, tuple[Store, Manifest]]:
        return StoredCodedBlocks, (self.segment_store.store, self.manifest)

    def block_segments(self, task: int) -> tuple[Segment, ...]:
        """What block `task` consists of, as far as is known since a worker found a block damaged."""
        if self._must_refresh:
            self._must_refresh = False
            self.refresh_manifest(self.manifest)
        return self.manifest.segments[task]

    def on_damage_found(self) -> None:
        """Look again before parts are told to another worker."""
        self._must_refresh = True

    def block_leaves(self, task: int) -> list[Array]:
        """Block `task`, read now; what is damaged of a data block is decoded."""
        if task >= self.code.k:
            return self.component_leaves(task)
        rows_per_block = self.manifest.rows_per_block
        return [
            self.read_rows(task * rows_per_block, (task + 1) * rows_per_block).reshape(
                self.manifest.block_shape
            )
        ]

    def component_leaves(self, component: int) -> list[Array]:
        """A block for a worker that cannot read it itself: damage is an erasure, told by DamagedError."""
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
        """Whether another thread knows by now, or storage tells, where else parts lie than was known."""
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
        """Rows start..stop of the array; no more is held than these and two stripes of each block."""
        return self._read_with_manifest_refresh(self._read_rows, start, stop)

    def _read_with_manifest_refresh(self, read: Callable[..., Array], *arguments: int) -> Array:
        """Read anew as often as somebody has repaired the array since the manifest was looked at."""
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
        pieces = list[tuple[Array, int, int, slice]]()  # where to read it to, stripe, block, columns
        for block_index in range(start // manifest.rows_per_block, -(-stop // manifest.rows_per_block)):
            block_start = block_index * manifest.stripe_bounds[-1]  # of this block, in elements of the whole
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
        # No more parts than there are blocks are in memory at a time. To start a thread takes longer than to
        # read a file.
        bounded_map = partial(map_in_parallel, max_threads=min(MAX_PARALLEL_TRANSFERS, self.n))
        map_function = map if is_file or len(pieces) == 1 else bounded_map
        for (target, stripe_index, block_index, columns), is_intact in zip(
            pieces, map_function(read_block_piece, pieces)
        ):
            if not is_intact:
                target[:] = self._decode_columns(stripe_index, block_index, columns)
        return out

    def _decode_columns(self, stripe_index: int, block_index: int, columns: slice) -> Array:
        """Some columns of one damaged part of a data block, from parts of other blocks."""
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
        """The good parts of a stripe as flat arrays by block; who is not there is damaged."""
        segment_values = map_in_parallel(partial(self._read_if_intact, stripe_index), block_indices)
        return {
            block_index: values
            for block_index, values in zip(block_indices, segment_values)
            if values is not None
        }

    def _read_if_intact(self, stripe_index: int, block_index: int) -> Array | None:
        """A part as a flat array; None if it is damaged."""
        try:
            segment_bytes = self.segment_store.get(self.manifest.segments[block_index][stripe_index])
        except DamagedError:
            return None
        return _to_native_byte_order(segment_bytes, self.manifest.get_block_dtype(block_index))


class _StoredDataBlocks(DataBlocks):
    """What is known of the data blocks without reading them."""

    has_zero_padding = False  # of results that a map has stored: f of rows of zeros

    def __init__(self, coded_blocks: StoredCodedBlocks, manifest: Manifest) -> None:
        structure: Structure = ("numpy",) if manifest.has_scalar_blocks else ("array",)
        rows_per_block = None if manifest.has_scalar_blocks else manifest.rows_per_block
        super().__init__([()] * manifest.code.k, structure, manifest.n_padding_rows, rows_per_block)
        self._coded_blocks, self._layout = coded_blocks, ((manifest.dtype.str, manifest.block_shape),)

    @property
    def block_layout(self) -> Layout:
        """Dtype and shape of the one leaf."""
        return self._layout

    def block_leaves(self, block_index: int) -> list[Array]:
        """Data block `block_index`, read now."""
        return self._coded_blocks.block_leaves(block_index)


def _to_native_byte_order(data: bytes | bytearray, dtype: np.dtype[Any]) -> Array:
    """Stored numbers in the byte order of this machine."""
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)


@contextmanager
def convert_damage_to_decoding_error() -> Iterator[None]:
    """Damage of parts that were whole when they were looked at is an error of the call that finds it."""
    try:
        yield
    except DamagedError as error:
        raise NotDecodableError(f"{error}, since it was looked at: call it again") from error


def make_arrival_tracker(
    manifest: Manifest, block_indices: Iterable[int] = (), requires_well_conditioned: bool = False
) -> ArrivalTracker:
    """A decoder of a stripe with `block_indices`; if `requires_well_conditioned`, it asks for more rather
    than lose digits.
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
    """Whether no array of `arrays` has NaN or inf."""
    return all(is_integer_dtype(array.dtype) or bool(np.isfinite(array).all()) for array in arrays)


def decode_stripe_blocks(
    manifest: Manifest,
    stripe_index: int,
    block_indices: Sequence[int],
    intact_rows: Mapping[int, Array],
    first_element: int = 0,
) -> dict[int, Array]:
    """The data blocks `block_indices` of a stripe, none of which is good, decoded from the good ones.

    `intact_rows` holds these from element `first_element` of the stripe on, all of them or as many as are
    asked for. NaN and inf count as erasures of single entries. NotDecodableError names what is not
    determined.
    """
    tracker = make_arrival_tracker(manifest, intact_rows)
    if not tracker.is_ready:
        code = manifest.code
        raise NotDecodableError(
            f"stripe {stripe_index} of the coded array {manifest.name!r} is lost: {len(intact_rows)} of its "
            f"{code.n} parts are good and do not determine the {code.k} data blocks"
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
    """Decode the columns with NaN or inf anew, each from the blocks that are finite there.

    Returns the positions in the whole array of entries that these do not determine; `first_positions` are
    those of the first entries of the rows. Padding is zero where no parity says otherwise.
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
    """Columns in which the same good blocks are finite, and which blocks; none where all is finite."""
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
    """The message about entries that cannot be decoded."""
    entries_text = "1 entry" if undecodable_positions.size == 1 else f"{undecodable_positions.size} entries"
    blocks = np.unique(undecodable_positions // prod(manifest.block_shape)).tolist()
    shape = (manifest.code.k * manifest.rows_per_block, *manifest.shape[1:])
    first_index = [int(coordinate) for coordinate in np.unravel_index(undecodable_positions.min(), shape)]
    return (
        f"{entries_text} of blocks {blocks} of the coded array {manifest.name!r} cannot be decoded, the "
        f"first at {first_index}: parts of these blocks are damaged, and the good ones hold NaN or inf in "
        "the same places. Nothing was changed; slices without such entries can be read"
    )
