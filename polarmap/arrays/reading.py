"""Reading parts: checked against the manifest, and decoded from others where they are damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from polarmap.arrays.generations import parsed, read_current
from polarmap.arrays.manifest import Manifest
from polarmap.arrays.stores import PartStore
from polarmap.blocks.coded import CodedData
from polarmap.blocks.equal import Blocks
from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.tiling import ignore_nonfinite
from polarmap.dtypes import Array, Indices, default_rtol, is_integer_dtype, machine_epsilon
from polarmap.errors import NotDecodableError, StorageError
from polarmap.executors.transfers import TRANSFERS, in_parallel
from polarmap.storage import Store
from polarmap.worker.parts import DamagedError, Part
from polarmap.worker.pytree import Layout, Structure


class StoredBlocks(CodedData):
    """The n blocks of a stored array, of which nothing is read before it is asked for, and its rows.

    Somebody else may repair the array meanwhile. Then parts lie elsewhere, those that were good too, as the
    manifest in storage tells: it is read again where too much is damaged.

    manifest, part_store : what its parts are, and where they lie.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        super().__init__(manifest.code, _DataBlocks(self, manifest))
        self.part_store, self.manifest = PartStore(store, manifest.encryption), manifest
        self.source, self._is_damaged = self.part_store.place, False
        self._looked_at: bytes | None = None  # the manifest in storage, when one was found damaged

    def __reduce__(self) -> tuple[type, tuple[Store, Manifest]]:
        return StoredBlocks, (self.part_store.store, self.manifest)

    def parts(self, index: int) -> tuple[Part, ...]:
        """What block `index` consists of, as far as is known since a worker found a block damaged."""
        if self._is_damaged:
            self._is_damaged = False
            self.look_again(self.manifest)
        return self.manifest.parts[index]

    def found_damaged(self) -> None:
        """Look again before parts are told to another worker."""
        self._is_damaged = True

    def leaves(self, index: int) -> list[Array]:
        """Block `index`, read now; what is damaged of a data block is decoded."""
        if index >= self.code.k:
            return self.piece(index)
        rows = self.manifest.rows
        return [self.read_rows(index * rows, (index + 1) * rows).reshape(self.manifest.block_shape)]

    def piece(self, number: int) -> list[Array]:
        """A block for a worker that cannot read it itself: damage is an erasure, told by DamagedError."""
        return [self._read_where_it_lies(self._read_block, number)]

    def _read_block(self, index: int) -> Array:
        manifest = self.manifest
        data = bytearray().join(in_parallel(self.part_store.get, manifest.parts[index]))
        return _native(data, manifest.dtype_of(index)).reshape(manifest.block_shape)

    def look_again(self, known: Manifest) -> bool:
        """Whether another thread knows by now, or storage tells, where else parts lie than was known."""
        store = self.part_store.store
        with suppress(StorageError):
            data = read_current(store, known.name) if self.manifest is known else None
            if data is not None and data != self._looked_at:
                now = parsed(store, known.name, data, self.key)
                if now.parts != known.parts and now.is_of_same_array(known):
                    self.manifest = now
                self._looked_at = data
        return self.manifest is not known

    def read_rows(self, start: int, stop: int) -> Array:
        """Rows start..stop of the array; no more is held than these and two stripes of each block."""
        return self._read_where_it_lies(self._read_rows, start, stop)

    def _read_where_it_lies(self, read: Callable[..., Array], *what: int) -> Array:
        """Read anew as often as somebody has repaired the array since the manifest was looked at."""
        while True:
            known = self.manifest
            try:
                return read(*what)
            except (DamagedError, NotDecodableError):
                if not self.look_again(known):
                    raise

    def _read_rows(self, start: int, stop: int) -> Array:
        manifest, inner = self.manifest, self.manifest.shape[1:]
        out = np.empty((stop - start, *inner), manifest.dtype.newbyteorder("="))
        flat, first, last = out.reshape(-1), start * prod(inner), stop * prod(inner)
        wanted = list[tuple[Array, int, int, slice]]()  # where to read it to, stripe, block, columns
        for block in range(start // manifest.rows, -(-stop // manifest.rows)):
            base = block * manifest.bounds[-1]  # of this block, in elements of the whole
            for stripe, (begin, end) in enumerate(pairwise(manifest.bounds)):
                low, high = max(first, base + begin), min(last, base + end)
                if low < high:
                    columns = slice(low - base - begin, high - base - begin)
                    wanted.append((flat[low - first : high - first], stripe, block, columns))

        def read(one: tuple[Array, int, int, slice]) -> bool:
            target, stripe, block, columns = one
            row = self._good_part(stripe, block)
            if row is not None:
                target[:] = row[columns]
            return row is not None

        is_file = self.part_store.place.kind == "folder"
        # No more parts than there are blocks are in memory at a time. To start a thread takes longer than to
        # read a file.
        several = partial(in_parallel, max_threads=min(TRANSFERS, self.n))
        each = map if is_file or len(wanted) == 1 else several
        for (target, stripe, block, columns), is_good in zip(wanted, each(read, wanted)):
            if not is_good:
                target[:] = self._decoded(stripe, block, columns)
        return out

    def _decoded(self, stripe: int, block: int, columns: slice) -> Array:
        """Some columns of one damaged part of a data block, from parts of other blocks."""
        manifest, k, good = self.manifest, self.code.k, dict[int, Array]()
        decoder = decoder_of(manifest, strict=True)
        others = [other for other in range(self.n) if other != block]
        while others and not (decoder.is_ready and is_finite(good.values())):
            lot, others = others[:k], others[k:]
            for index, row in self.good_parts(stripe, lot).items():
                good[index] = row[columns]
                decoder.add(index)
        return decode_blocks(manifest, stripe, [block], good, columns.start)[block]

    def good_parts(self, stripe: int, blocks: Sequence[int]) -> dict[int, Array]:
        """The good parts of a stripe as flat arrays by block; who is not there is damaged."""
        rows = in_parallel(partial(self._good_part, stripe), blocks)
        return {block: row for block, row in zip(blocks, rows) if row is not None}

    def _good_part(self, stripe: int, block: int) -> Array | None:
        """A part as a flat array; None if it is damaged."""
        try:
            data = self.part_store.get(self.manifest.parts[block][stripe])
        except DamagedError:
            return None
        return _native(data, self.manifest.dtype_of(block))


class _DataBlocks(Blocks):
    """What is known of the data blocks without reading them."""

    is_filled_with_zeros = False  # of results that a map has stored: f of rows of zeros

    def __init__(self, coded: StoredBlocks, manifest: Manifest) -> None:
        structure: Structure = ("numpy",) if manifest.scalars else ("array",)
        rows = None if manifest.scalars else manifest.rows
        super().__init__([()] * manifest.code.k, structure, manifest.padding, rows)
        self._coded, self._layout = coded, ((manifest.dtype.str, manifest.block_shape),)

    @property
    def layout(self) -> Layout:
        """Dtype and shape of the one leaf."""
        return self._layout

    def leaves(self, index: int) -> list[Array]:
        """Data block `index`, read now."""
        return self._coded.leaves(index)


def _native(data: bytes | bytearray, dtype: np.dtype[Any]) -> Array:
    """Stored numbers in the byte order of this machine."""
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)


@contextmanager
def whole_before() -> Iterator[None]:
    """Damage of parts that were whole when they were looked at is an error of the call that finds it."""
    try:
        yield
    except DamagedError as error:
        raise NotDecodableError(f"{error}, since it was looked at: call it again") from error


def decoder_of(manifest: Manifest, blocks: Iterable[int] = (), strict: bool = False) -> ArrivalTracker:
    """A decoder of a stripe with `blocks`; if `strict`, it asks for more rather than lose digits."""
    dtype = manifest.dtype
    exact = is_integer_dtype(dtype)
    limit = default_rtol(dtype) / machine_epsilon(dtype) if strict and not exact else np.inf
    decoder = ArrivalTracker(manifest.code, modular=exact, max_amplification=limit)
    for block in blocks:
        decoder.add(block)
    return decoder


def is_finite(rows: Iterable[Array]) -> bool:
    """Whether no array of `rows` has NaN or inf."""
    return all(is_integer_dtype(row.dtype) or bool(np.isfinite(row).all()) for row in rows)


def decode_blocks(
    manifest: Manifest, stripe: int, wanted: Sequence[int], good: Mapping[int, Array], start: int = 0
) -> dict[int, Array]:
    """The data blocks `wanted` of a stripe, none of which is good, decoded from the good ones.

    `good` holds these from element `start` of the stripe on, all of them or as many as are asked for. NaN
    and inf count as erasures of single entries. NotDecodableError names what is not determined.
    """
    decoder = decoder_of(manifest, good)
    if not decoder.is_ready:
        code = manifest.code
        raise NotDecodableError(
            f"stripe {stripe} of the coded array {manifest.name!r} is lost: {len(good)} of its "
            f"{code.n} parts are good and do not determine the {code.k} data blocks"
        )
    places = np.array(wanted, np.intp)
    with ignore_nonfinite():
        rows = _decoded(decoder, manifest, good, places)
        if not is_finite([*good.values(), rows]):
            first = places[:, None] * prod(manifest.block_shape) + manifest.bounds[stripe] + start
            unknown = _decode_spoiled(manifest, good, places, rows, first)
            if unknown.size:
                raise NotDecodableError(_describe(manifest, unknown))
    return dict(zip(places.tolist(), rows))


def _decoded(
    decoder: ArrivalTracker, manifest: Manifest, good: Mapping[int, Array], wanted: Indices
) -> Array:
    recovery = decoder.decoder
    rows = recovery.decode(dict(good), manifest.dtype.newbyteorder("="))
    return rows if len(rows) == len(wanted) else rows[np.searchsorted(recovery.missing_indices, wanted)]


def _decode_spoiled(
    manifest: Manifest, good: Mapping[int, Array], wanted: Indices, rows: Array, first: Indices
) -> Indices:
    """Decode the columns with NaN or inf anew, each from the blocks that are finite there.

    Returns the positions in the whole array of entries that these do not determine; `first` are
    those of the first entries of the rows. Padding is zero where no parity says otherwise.
    """
    unknown = []
    for columns, blocks in _alike(good, rows):
        some = {block: good[block][columns] for block in blocks}
        decoder, positions = decoder_of(manifest, some), first + columns
        if decoder.is_ready:
            rows[:, columns] = _decoded(decoder, manifest, some, wanted)
        else:
            rows[:, columns] = np.nan
            if max(blocks, default=0) < manifest.code.k:
                rows[:, columns] = np.where(positions < prod(manifest.shape), rows[:, columns], 0)
        unknown.append(positions[~np.isfinite(rows[:, columns])])
    return np.concatenate(unknown)


def _alike(good: Mapping[int, Array], decoded: Array) -> Iterator[tuple[Indices, list[int]]]:
    """Columns in which the same good blocks are finite, and which blocks; none where all is finite."""
    spoiled = np.zeros(decoded.shape[1], bool)
    for row in (*good.values(), *decoded):
        spoiled |= ~np.isfinite(row)
    columns = np.flatnonzero(spoiled)
    finite = np.stack([np.isfinite(row[columns]) for row in good.values()])
    patterns, which = np.unique(finite, axis=1, return_inverse=True)
    order = np.argsort(which.reshape(-1), kind="stable")
    groups = np.split(columns[order], np.cumsum(np.bincount(which.reshape(-1)))[:-1])
    for pattern, group in zip(patterns.T, groups):
        yield group, [block for block, is_there in zip(good, pattern.tolist()) if is_there]


def _describe(manifest: Manifest, unknown: Indices) -> str:
    """The message about entries that cannot be decoded."""
    entries = "1 entry" if unknown.size == 1 else f"{unknown.size} entries"
    blocks = np.unique(unknown // prod(manifest.block_shape)).tolist()
    shape = (manifest.code.k * manifest.rows, *manifest.shape[1:])
    first = [int(place) for place in np.unravel_index(unknown.min(), shape)]
    return (
        f"{entries} of blocks {blocks} of the coded array {manifest.name!r} cannot be decoded, the first at "
        f"{first}: parts of these blocks are damaged, and the good ones hold NaN or inf in the same places. "
        "Nothing was changed; slices without such entries can be read"
    )
