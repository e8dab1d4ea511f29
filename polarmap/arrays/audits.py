"""Audit of a coded array in storage: every part is read and compared with its checksum."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import numpy as np

from polarmap.arrays.array_tasks import PartTasks, TaskRunner
from polarmap.arrays.manifest import Manifest, array_prefix
from polarmap.arrays.reading import StoredBlocks, decoder_of
from polarmap.arrays.stores import PartStore
from polarmap.arrays.zarr_chunks import copies_and_metadata, foreign_keys
from polarmap.dtypes import Array
from polarmap.executors.transfers import in_parallel
from polarmap.run.prepared_map import observers_of
from polarmap.storage import Store
from polarmap.worker.parts import DamagedError, Part

KINDS = ("missing", "truncated", "corrupt", "forged", "appended", "foreign")

SHOWN = 12  # damages that are listed one by one

ABSENT = Part("", 0)  # in place of a part that no worker has to read


class Damage(NamedTuple):
    """A part that is not what was stored.

    kind : one of KINDS but the last. What is appended to is whole, and read as it was; what is forged has the
        right checksum, and was not stored with the key of the array for this place in it.
    """

    block: int
    stripe: int
    kind: str
    key: str


@dataclass(frozen=True)
class Audit:
    """What a check of a coded array found.

    Attributes
    ----------
    name
        Name of the array.
    n, stripes
        Blocks, and parts of each.
    damaged
        Parts that are missing, truncated or corrupt, or have more bytes behind them than were written.
    lost
        Stripes of which too few parts are good: repair() cannot rebuild these.
    zarr
        Other objects of the Zarr array that are not what was stored, or should not be there: key and kind.
    is_repaired
        Whether all that was found has been rebuilt since, as by `repair()`.
    """

    name: str
    n: int
    stripes: int
    damaged: tuple[Damage, ...]
    lost: tuple[int, ...]
    zarr: tuple[tuple[str, str], ...] = ()
    is_repaired: bool = field(default=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether every part was what had been stored when the array was checked."""
        return not (self.damaged or self.zarr)

    @property
    def blocks(self) -> list[int]:
        """Blocks with a damaged part, ascending."""
        return sorted({damage.block for damage in self.damaged})

    def __repr__(self) -> str:
        head = f"<Audit of {self.name!r}: {self.n} blocks of {self.stripes} parts"
        if self.ok:
            return f"{head}, all good>"
        kinds = Counter(damage.kind for damage in self.damaged)
        counts = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])
        if self.damaged:
            head += f"; {'rebuilt ' * self.is_repaired}{counts}, in blocks {self.blocks}"
        if self.zarr:
            are_wrong = "were wrong and are replaced" if self.is_repaired else "are wrong"
            head += f"; {len(self.zarr)} other objects of the Zarr array {are_wrong}"
        end = f"stripes {list(self.lost)} are lost" if self.lost else "repair() can rebuild them"
        end, was = ("all parts are good now", "was ") if self.is_repaired else (end, "")
        lines = [f"block {one.block}, part {one.stripe}: {was}{one.kind} ({one.key})" for one in self.damaged]
        lines += [f"{was}{kind} ({key})" for key, kind in self.zarr]
        if len(lines) > SHOWN:
            lines[SHOWN:] = [f"and {len(lines) - SHOWN} more"]
        return "\n  ".join([f"{head}; {end}", *lines]) + ">"


def audit(stored: StoredBlocks, executor: Any = None) -> Audit:
    """Have every part read and compared with its checksum, by the workers of an executor or here."""
    manifest = stored.manifest
    stripes = len(manifest.bounds) - 1
    places = [(block, stripe) for stripe in range(stripes) for block in range(manifest.code.n)]
    parts = [manifest.parts[block][stripe] for block, stripe in places]
    others = copies_and_metadata(manifest)
    kinds = _kinds(stored, [*parts, *others], executor)
    found = (Damage(*place, kind, part.key) for place, part, kind in zip(places, parts, kinds) if kind)
    damaged = tuple(sorted(found))
    zarr: dict[str, str] = {}
    for part, kind in zip(others, kinds[len(parts) :]):
        if kind:
            zarr.setdefault(part.key, kind)
    zarr |= dict.fromkeys(foreign_keys(stored.part_store.store, manifest), "foreign")
    lost = _lost(manifest, damaged)
    return Audit(manifest.name, manifest.code.n, stripes, damaged, lost, tuple(zarr.items()))


def _kinds(stored: StoredBlocks, parts: Sequence[Part], executor: Any) -> list[str]:
    """The kind of damage of each part, or of what follows the last one of an object; empty if there is none.

    Of what is missing or of another size, the storage tells; the rest is read, by workers if the checksums
    of what they have read can be compared.
    """
    part_store, manifest = stored.part_store, stored.manifest
    sizes = _sizes(part_store.store, manifest, {part.key for part in parts if part.crc32 is not None})
    kinds, to_read = list[str](), dict[int, Part]()
    for index, part in enumerate(parts):
        size, (end, is_last) = sizes.get(part.key), _extent(manifest, part)
        if part.crc32 is None or size is None:
            kinds.append("missing")
        elif size < end:
            kinds.append("truncated")
        else:
            kinds.append("appended" if is_last and size > end else "")
            zeros = end - part.offset - manifest.stored_size(part)  # which fill its object up
            to_read[index] = part._replace(size=part.size + zeros, crc32=zlib.crc32(bytes(zeros), part.crc32))
    if executor is None or not part_store.has_checksums_of_data:
        read = in_parallel(partial(_damage_of, part_store), to_read.values())
    else:
        read = _read_by_workers(part_store, manifest.code.n, list(to_read.values()), executor)
    for index, kind in zip(to_read, read):
        kinds[index] = kind or kinds[index]
    return kinds


def _damage_of(parts: PartStore, part: Part) -> str:
    """The kind of damage of a part, which is read; empty if there is none."""
    try:
        parts.get(part)
    except DamagedError as error:
        return error.kind
    return ""


def _sizes(store: Store, manifest: Manifest, keys: Collection[str]) -> Mapping[str, int | None]:
    """Bytes of objects, listed where the storage can; those that are not listed are asked for one by one."""
    listed = store.sizes(array_prefix(manifest.name)) if hasattr(store, "sizes") else {}
    others = [key for key in keys if key not in listed]
    return {**listed, **dict(zip(others, in_parallel(store.size, others)))}


def _extent(manifest: Manifest, part: Part) -> tuple[int, bool]:
    """Where the bytes to read of a part end (the last of an object: with it); whether it is the last."""
    stop = part.offset + manifest.stored_size(part)
    last, end = manifest.ends.get(part.key, (0, stop))
    return (end, True) if stop == last else (stop, False)


def _read_by_workers(part_store: PartStore, count: int, parts: Sequence[Part], executor: Any) -> list[str]:
    """The kind of damage of each part, read by workers, `count` by each task."""
    unchecked = (part._replace(crc32=None) for part in parts)
    tasks = list(zip_longest(*[unchecked] * count, fillvalue=ABSENT))
    found: dict[int, list[int]] = {}

    def take(task: int, stored: list[Part], sums: Array) -> None:
        found[task] = sums.tolist()

    blocks = PartTasks(part_store, tasks, [np.dtype(np.uint8)] * count)
    TaskRunner(part_store, executor, observers_of(None)).run(checksums(), blocks, take)
    sums = chain.from_iterable(found[task] for task in range(len(tasks)))
    return ["" if part.crc32 == one else "corrupt" for part, one in zip(parts, sums)]


def checksums() -> Callable[[Sequence[Array]], list[Array]]:
    """On a worker, which has numpy only: the CRC-32 of each part."""
    return lambda parts: [np.array([zlib.crc32(part.data) for part in parts], np.int64)]


def _lost(manifest: Manifest, damaged: Iterable[Damage]) -> tuple[int, ...]:
    """The stripes that have lost so many blocks that they cannot be decoded."""
    everything = set(range(manifest.code.n))
    lost = lost_blocks(damaged).items()
    return tuple(
        stripe for stripe, bad in sorted(lost) if not decoder_of(manifest, everything - bad).is_ready
    )


def lost_blocks(damaged: Iterable[Damage]) -> dict[int, set[int]]:
    """By stripe the blocks of which it has lost parts; those with something behind them are whole."""
    found: dict[int, set[int]] = {}
    for damage in damaged:
        if damage.kind != "appended":
            found.setdefault(damage.stripe, set()).add(damage.block)
    return found
