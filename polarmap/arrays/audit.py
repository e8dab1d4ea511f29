"""Audit of a coded array in storage: every part is read and compared with its checksum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from polarmap.arrays.decode import decoder_of
from polarmap.arrays.fetch import KINDS, TRANSFERS, Damage, decrypted
from polarmap.arrays.manifest import Manifest, checksum
from polarmap.errors import MissingObjectError
from polarmap.storage.base import Store
from polarmap.worker.parts import Part

Array = npt.NDArray[Any]

SHOWN = 12  # damages that are listed one by one


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


def audit(store: Store, manifest: Manifest) -> Audit:
    """Read every part and compare it with its checksum."""
    stripes = len(manifest.bounds) - 1
    places = [(block, stripe) for stripe in range(stripes) for block in range(manifest.code.n)]

    def examine(place: tuple[int, int]) -> Damage | None:
        part = manifest.parts[place[0]][place[1]]
        kind = _damage_of(store, manifest, part)
        return Damage(*place, kind, part.key) if kind else None

    with ThreadPoolExecutor(TRANSFERS) as pool:
        damaged = tuple(sorted(damage for damage in pool.map(examine, places) if damage))
    zarr = tuple(_examine_zarr(store, manifest)) if manifest.is_zarr else ()
    return Audit(manifest.name, manifest.code.n, stripes, damaged, _lost(manifest, damaged), zarr)


def _damage_of(store: Store, manifest: Manifest, part: Part) -> str:
    """The kind of damage of a part, and of what follows the last one of an object; empty if there is none."""
    if part.crc32 is None:
        return "missing"
    size = manifest.stored_size(part)
    stop = part.offset + size
    last, end = manifest.ends.get(part.key, (0, stop))
    is_last = stop == last
    try:
        data = store.get(part.key, part.offset, end + 1 if is_last else stop)
    except MissingObjectError:
        return "missing"
    if len(data) < (end if is_last else stop) - part.offset:
        return "truncated"
    if checksum(data[:size]) != part.crc32 or any(data[size : end - part.offset]):
        return "corrupt"
    if manifest.encryption is not None and isinstance(decrypted(manifest.encryption, part, data[:size]), str):
        return "forged"
    return "appended" if is_last and len(data) > end - part.offset else ""


def _examine_zarr(store: Store, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What is wrong with the Zarr array beside damaged parts."""
    assert manifest.zarr is not None
    copied = filter(manifest.lies_elsewhere, manifest.zarr_chunks)
    copies = [(chunk.key, manifest.chunk_parts(chunk)[1]) for chunk in copied]
    for key, parts in [*copies, *((part.key, (part,)) for part in manifest.zarr.metadata)]:
        kinds = [kind for part in parts if (kind := _damage_of(store, manifest, part))]
        if kinds:
            yield key, kinds[0]
    for key in store.keys(f"{manifest.zarr.path}/"):
        if key not in manifest.objects:
            yield key, "foreign"


def _lost(manifest: Manifest, damaged: Iterable[Damage]) -> tuple[int, ...]:
    """Stripes that cannot be decoded."""
    by_stripe: dict[int, set[int]] = {}
    for damage in damaged:
        if damage.kind != "appended":
            by_stripe.setdefault(damage.stripe, set()).add(damage.block)
    return tuple(stripe for stripe, bad in sorted(by_stripe.items()) if not _is_decodable(manifest, bad))


def _is_decodable(manifest: Manifest, bad: set[int]) -> bool:
    return decoder_of(manifest, set(range(manifest.code.n)) - bad).ready
