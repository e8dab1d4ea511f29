"""Audit of a coded array in storage: every part is read and compared with its checksum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from polarmap.arrays.decode import decoder_of
from polarmap.arrays.fetching import KINDS, TRANSFERS, Damage, decrypted
from polarmap.arrays.manifest import Manifest, checksum
from polarmap.errors import MissingObjectError
from polarmap.storage import Store
from polarmap.worker.parts import Part

Array = npt.NDArray[Any]

SHOWN = 12  # damages that are listed one by one

# Parts -> the kind of damage of each and of what follows the last one of an object; empty if there is none.
Examine = Callable[[Sequence[Part]], Sequence[str]]


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
    """

    name: str
    n: int
    stripes: int
    damaged: tuple[Damage, ...]
    lost: tuple[int, ...]
    zarr: tuple[tuple[str, str], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything is what was stored."""
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
            head += f"; {counts}, in blocks {self.blocks}"
        if self.zarr:
            head += f"; {len(self.zarr)} other objects of the Zarr array are wrong"
        end = f"stripes {list(self.lost)} are lost" if self.lost else "repair() can rebuild them"
        lines = [f"block {one.block}, part {one.stripe}: {one.kind} ({one.key})" for one in self.damaged]
        lines += [f"{kind} ({key})" for key, kind in self.zarr]
        if len(lines) > SHOWN:
            lines[SHOWN:] = [f"and {len(lines) - SHOWN} more"]
        return "\n  ".join([f"{head}; {end}", *lines]) + ">"


def audit(store: Store, manifest: Manifest, examine: Examine | None = None) -> Audit:
    """Have every part read and compared with its checksum, here unless `examine` says where."""
    examine = examine or _examiner(store, manifest)
    stripes = len(manifest.bounds) - 1
    places = [(block, stripe) for stripe in range(stripes) for block in range(manifest.code.n)]
    parts = [manifest.parts[block][stripe] for block, stripe in places]
    others = _zarr_parts(manifest)
    kinds = examine([*parts, *others])
    damaged = tuple(
        sorted(Damage(*place, kind, part.key) for place, part, kind in zip(places, parts, kinds) if kind)
    )
    zarr: dict[str, str] = {}
    for part, kind in zip(others, kinds[len(parts) :]):
        if kind:
            zarr.setdefault(part.key, kind)
    foreign = [(key, "foreign") for key in _foreign(store, manifest)]
    found = (*zarr.items(), *foreign)
    return Audit(manifest.name, manifest.code.n, stripes, damaged, _lost(manifest, damaged), found)


def _zarr_parts(manifest: Manifest) -> list[Part]:
    """What the Zarr array consists of beside the parts of the data blocks: copies of these, and metadata."""
    if manifest.zarr is None or not manifest.is_zarr:
        return []
    copied = filter(manifest.lies_elsewhere, manifest.zarr_chunks)
    copies = [part for chunk in copied for part in manifest.chunk_parts(chunk)[1]]
    return [*copies, *manifest.zarr.metadata]


def _foreign(store: Store, manifest: Manifest) -> list[str]:
    """Keys in the Zarr array that do not belong to it."""
    if manifest.zarr is None or not manifest.is_zarr:
        return []
    return [key for key in store.keys(f"{manifest.zarr.path}/") if key not in manifest.objects]


def _examiner(store: Store, manifest: Manifest) -> Examine:
    """Reads in this process."""

    def examine(parts: Sequence[Part]) -> list[str]:
        with ThreadPoolExecutor(TRANSFERS) as pool:
            return list(pool.map(lambda part: _damage_of(store, manifest, part), parts))

    return examine


def _damage_of(store: Store, manifest: Manifest, part: Part) -> str:
    if part.crc32 is None:
        return "missing"
    size = manifest.stored_size(part)
    end, is_last = extent(manifest, part)
    try:
        data = store.get(part.key, part.offset, end + is_last)
    except MissingObjectError:
        return "missing"
    if len(data) < end - part.offset:
        return "truncated"
    if checksum(data[:size]) != part.crc32 or any(data[size : end - part.offset]):
        return "corrupt"
    if manifest.encryption is not None and isinstance(decrypted(manifest.encryption, part, data[:size]), str):
        return "forged"
    return "appended" if len(data) > end - part.offset else ""


def extent(manifest: Manifest, part: Part) -> tuple[int, bool]:
    """Where the bytes of a part end, and whether it is the last in its object: then those of the object."""
    stop = part.offset + manifest.stored_size(part)
    last, end = manifest.ends.get(part.key, (0, stop))
    return (end, True) if stop == last else (stop, False)


def _lost(manifest: Manifest, damaged: Iterable[Damage]) -> tuple[int, ...]:
    """Stripes that cannot be decoded."""
    by_stripe: dict[int, set[int]] = {}
    for damage in damaged:
        if damage.kind != "appended":
            by_stripe.setdefault(damage.stripe, set()).add(damage.block)
    return tuple(stripe for stripe, bad in sorted(by_stripe.items()) if not _is_decodable(manifest, bad))


def _is_decodable(manifest: Manifest, bad: set[int]) -> bool:
    return decoder_of(manifest, set(range(manifest.code.n)) - bad).ready
