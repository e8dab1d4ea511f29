"""Check and repair by workers: each reads parts of all blocks where they lie, and leaves lost ones there."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.arrays.audits import Examine, extent
from polarmap.arrays.decode import decoder_of
from polarmap.arrays.encode_remotely import run_on_parts
from polarmap.arrays.fetching import TRANSFERS, Damage
from polarmap.arrays.generations import Generation
from polarmap.arrays.keys import array_prefix
from polarmap.arrays.manifest import Manifest, ZarrChunk
from polarmap.arrays.stores import place_of
from polarmap.blocks.uneven import PartBlocks
from polarmap.code import modular
from polarmap.code.dtypes import is_exact
from polarmap.errors import MissingObjectError
from polarmap.executors import executor_of
from polarmap.executors.base import Outcome
from polarmap.run.observers import observers_of
from polarmap.storage.base import Store
from polarmap.worker.encryption import Encryption, decrypt_part, encrypted_size
from polarmap.worker.parts import DamagedError, Part, verified
from polarmap.worker.pytree import Layout
from polarmap.worker.stored_output import OutputSpec

Array = npt.NDArray[Any]

ABSENT = Part("", 0)  # in place of a part that no worker has to read
TILE = 1 << 17  # numbers of all parts together that a worker multiplies at a time


def examiner(store: Store, manifest: Manifest, executor: Any) -> Examine:
    """Workers read parts that are not encrypted, and return checksums; sizes of objects tell of the rest."""
    executor = executor_of(executor)

    def examine(parts: Sequence[Part]) -> list[str]:
        kinds = _kinds_by_size(store, manifest, parts)
        whole = [index for index, kind in enumerate(kinds) if kind in ("", "appended")]
        lots = [whole[start : start + manifest.code.n] for start in range(0, len(whole), manifest.code.n)]
        tasks = [[_as_stored(manifest, parts[index]) for index in lot] for lot in lots]
        if not tasks:
            return kinds
        short = len(tasks[0]) - len(tasks[-1])
        tasks[-1] += [ABSENT] * short
        bytes_of_parts = [np.dtype(np.uint8)] * len(tasks[0])
        blocks = _Parts(store, None, tasks, bytes_of_parts)
        for lot, outcome in zip(lots, run_on_parts(executor, checksums(), blocks, observers_of(None))):
            for index, found in zip(lot, (outcome.leaves or [])[0].tolist()):
                if found != _checksum_as_stored(manifest, parts[index]):
                    kinds[index] = "corrupt"
        return kinds

    return examine


def _kinds_by_size(store: Store, manifest: Manifest, parts: Sequence[Part]) -> list[str]:
    """What the sizes of objects tell of damage."""
    sizes = _sizes(store, manifest, {part.key for part in parts if part.crc32 is not None})

    def kind(part: Part) -> str:
        size = sizes.get(part.key) if part.crc32 is not None else None
        end, is_last = extent(manifest, part)
        if size is None:
            return "missing"
        return "truncated" if size < end else "appended" if is_last and size > end else ""

    return list(map(kind, parts))


def _sizes(store: Store, manifest: Manifest, keys: Collection[str]) -> Mapping[str, int | None]:
    """Bytes of objects, listed where the storage can; those outside of the array are asked for one by one."""
    prefix = array_prefix(manifest.name)
    listed: Mapping[str, int] = store.sizes(prefix) if hasattr(store, "sizes") else {}
    others = [key for key in keys if not (key.startswith(prefix) and hasattr(store, "sizes"))]
    with ThreadPoolExecutor(TRANSFERS) as pool:
        return {**listed, **dict(zip(others, pool.map(store.size, others)))}


def _as_stored(manifest: Manifest, part: Part) -> Part:
    """A part with the zeros that fill its object up, to be read whatever it holds."""
    return part._replace(size=extent(manifest, part)[0] - part.offset, crc32=None)


def _checksum_as_stored(manifest: Manifest, part: Part) -> int:
    assert part.crc32 is not None
    return zlib.crc32(bytes(_as_stored(manifest, part).size - part.size), part.crc32)


def checksums() -> Callable[[Sequence[Array]], Array]:
    """On a worker, which has numpy only: the CRC-32 of each part."""
    return lambda parts: np.array([zlib.crc32(part.data) for part in parts], np.int64)


def joiner() -> Callable[[Sequence[Array]], Array]:
    """On a worker, which has numpy only: all parts in a row."""
    return lambda parts: np.concatenate(parts)


class _Pattern(NamedTuple):
    """What stripes have in common that are rebuilt alike.

    lost : blocks of which they have lost their parts.
    kept : blocks whose parts are good, but are stored anew as well.
    """

    lost: tuple[int, ...]
    kept: tuple[int, ...]


class RemoteRepair:
    """The parts of one repair that workers store anew."""

    def __init__(self, store: Store, manifest: Manifest, generation: Generation, executor: Any) -> None:
        self._store, self._manifest, self._generation = store, manifest, generation
        self._executor = executor_of(executor)

    def rebuilt(
        self, wanted: Mapping[int, Collection[int]], damaged: Iterable[Damage]
    ) -> dict[tuple[int, int], Part]:
        """By block and stripe, those of blocks `wanted` of each stripe.

        Left out are stripes in which NaN or inf stand: these are decoded entry by entry, which takes more
        than numpy.
        """
        lost: dict[int, set[int]] = {}
        for damage in damaged:
            if damage.kind != "appended":  # is whole, and only to be stored without what follows
                lost.setdefault(damage.stripe, set()).add(damage.block)
        alike: dict[_Pattern, list[int]] = {}
        for stripe, blocks in sorted(wanted.items()):
            bad = lost.get(stripe, set())
            pattern = _Pattern(tuple(sorted(bad)), tuple(sorted(set(blocks) - bad)))
            alike.setdefault(pattern, []).append(stripe)
        found: dict[tuple[int, int], Part] = {}
        for number, (pattern, stripes) in enumerate(alike.items()):
            found |= self._rebuilt_alike(f"rebuilt{number}", pattern, stripes)
        return found

    def _rebuilt_alike(
        self, name: str, pattern: _Pattern, stripes: Sequence[int]
    ) -> dict[tuple[int, int], Part]:
        manifest, stored = self._manifest, [*pattern.kept, *pattern.lost]
        there = np.setdiff1d(np.arange(manifest.code.n), pattern.lost)
        weights = weights_of(manifest, pattern.lost)
        is_read = weights.any(axis=0) | np.isin(there, pattern.kept)
        blocks = there[is_read].tolist()
        found: dict[tuple[int, int], Part] = {}

        def note(outcome: Outcome) -> None:
            assert outcome.stored is not None
            assert outcome.leaves is not None
            if outcome.leaves[-1].all():
                stripe = stripes[outcome.task]
                found.update({(block, stripe): part for block, part in zip(stored, outcome.stored.parts)})
            self._generation.heartbeat()

        kept = [blocks.index(block) for block in pattern.kept]
        rebuild = rebuilder(weights[:, is_read], kept, list(map(manifest.dtype_of, pattern.lost)))
        tasks = [[manifest.parts[block][stripe] for block in blocks] for stripe in stripes]
        parts = _Parts(self._store, manifest.encryption, tasks, list(map(manifest.dtype_of, blocks)))
        widest = int(np.diff(manifest.bounds)[stripes].max())  # every row is one part
        place = place_of(self._store, manifest.encryption)
        output = OutputSpec(place, self._generation.prefix + name, widest, len(stored) + 1)
        run_on_parts(self._executor, rebuild, parts, observers_of(None), manifest.encryption, output, note)
        return found

    def joined(self, manifest: Manifest, chunks: Sequence[ZarrChunk]) -> Manifest:
        """A manifest in which the parts of each of these chunks lie in one object, as storages copy it."""
        places = [
            [(chunk.block, stripe) for stripe in chunk.stripes]
            for chunk in chunks
            if len({part.key for part in manifest.chunk_parts(chunk)[0]}) > 1
        ]
        if not places:
            return manifest
        bytes_of_parts = [np.dtype(np.uint8)] * len(places[0])  # each is a block, cut like the others
        tasks = [[manifest.parts[block][stripe] for block, stripe in one] for one in places]
        size = sum(part.size for part in tasks[0])
        output = OutputSpec(place_of(self._store), f"{self._generation.prefix}joined", size)
        moved: dict[tuple[int, int], Part] = {}

        def note(outcome: Outcome) -> None:
            assert outcome.stored is not None
            [whole], parts = outcome.stored.parts, tasks[outcome.task]
            starts = accumulate((part.size for part in parts), initial=0)
            for place, part, start in zip(places[outcome.task], parts, starts):
                moved[place] = part._replace(key=whole.key, offset=start)
            self._generation.heartbeat()

        blocks = _Parts(self._store, None, tasks, bytes_of_parts)
        run_on_parts(self._executor, joiner(), blocks, observers_of(None), None, output, note)
        return manifest.with_parts(moved)


def weights_of(manifest: Manifest, lost: Sequence[int]) -> Array:
    """Lost blocks = weights @ the others, (lost, n - lost): float64, or uint64 for integers modulo 2^64."""
    code, exact = manifest.code, is_exact(manifest.dtype)
    there = np.setdiff1d(np.arange(code.n), lost)
    data, parity = (
        np.array([one for one in lost if (one < code.k) == is_data], np.intp) for is_data in (True, False)
    )
    weights = np.zeros((len(lost), len(there)), np.uint64 if exact else np.float64)
    if len(data):
        recovery = decoder_of(manifest, there.tolist()).recovery
        of_integers = recovery.integer_weights()
        weights[: len(data)] = recovery.weights if of_integers is None else of_integers
    if len(parity):
        P = code.coefficients[parity - code.k]
        known = there[there < code.k]
        weights[len(data) :, : len(known)] = P[:, known].astype(weights.dtype)
        multiply = modular.matmul if exact else np.matmul
        weights[len(data) :] += multiply(P[:, data], weights[: len(data)])
    return weights


def rebuilder(
    weights: Array, kept: Sequence[int], dtypes: Sequence[np.dtype[Any]]
) -> Callable[[Sequence[Array]], list[Array]]:
    """On a worker, which has numpy only: rows `kept`, rows = weights @ rows, and whether all are finite.

    dtypes : of the latter rows.
    """
    is_exact_ = weights.dtype == np.uint64
    working = np.dtype(np.int64) if is_exact_ else weights.dtype

    def rebuild(rows: Sequence[Array]) -> list[Array]:
        halves = [row.view(f"f{row.itemsize // 2}") if row.dtype.kind == "c" else row for row in rows]
        width, step = halves[0].size, max(64, TILE // len(rows))
        lost = [np.empty(rows[0].size, dtype) for dtype in dtypes]
        targets = [row.view(halves[0].dtype) if row.dtype.kind == "c" else row for row in lost]
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, width, step):
                tile = np.array([row[start : start + step].astype(working) for row in halves])
                for target, row in zip(targets, np.matmul(weights, tile.view(weights.dtype))):
                    target[start : start + step] = row.astype(target.dtype)
        is_finite = is_exact_ or all(np.isfinite(row).all() for row in [*halves, *targets])
        return [*(rows[index] for index in kept), *lost, np.array([is_finite])]

    return rebuild


class _Parts(PartBlocks):
    """What each worker gets: as many parts as any other, which it reads where they lie, each as one array."""

    def __init__(
        self,
        store: Store,
        encryption: Encryption | None,
        tasks: Sequence[Sequence[Part]],
        dtypes: Sequence[np.dtype[Any]],
    ) -> None:
        self._store, self._encryption, self._tasks, self._dtypes = store, encryption, tasks, dtypes
        super().__init__([], (list, (), (("array",),) * len(dtypes)), len(tasks))
        self.source = place_of(store, encryption)

    def parts(self, index: int) -> tuple[Part, ...]:
        """What the worker reads; of encrypted ones it verifies the tag."""
        parts = self._tasks[index]
        return tuple(parts if self._encryption is None else (part._replace(crc32=None) for part in parts))

    def layout(self, index: int) -> Layout:
        """Flat."""
        return tuple(
            (dtype.str, (part.size // dtype.itemsize,))
            for part, dtype in zip(self._tasks[index], self._dtypes)
        )

    def piece(self, number: int) -> list[Array]:
        """Read here, for an executor whose workers are this process."""
        return [
            np.frombuffer(self._read(part), dtype).reshape(shape)
            for part, (dtype, shape) in zip(self.parts(number), self.layout(number))
        ]

    def _read(self, part: Part) -> Any:
        size = part.size if self._encryption is None else encrypted_size(part.size)
        try:
            data = self._store.get(part.key, part.offset, part.offset + size) if size else b""
        except MissingObjectError as error:
            raise DamagedError(f"{part.key} is missing") from error
        return (
            verified(part, data) if self._encryption is None else decrypt_part(self._encryption, part, data)
        )
