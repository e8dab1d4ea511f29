"""Audit of a coded array in storage: every part is read and compared with its checksum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from polarmap.arrays.decode import decoder_of
from polarmap.arrays.fetch import KINDS, TRANSFERS, Damage, fetch
from polarmap.arrays.manifest import Manifest
from polarmap.storage.base import Store

Array = npt.NDArray[Any]


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
        Parts that are missing, truncated or corrupt.
    lost
        Stripes of which too few parts are good: repair() cannot rebuild these.
    """

    name: str
    n: int
    stripes: int
    damaged: tuple[Damage, ...]
    lost: tuple[int, ...]

    @property
    def ok(self) -> bool:
        """Whether every part is what was stored."""
        return not self.damaged

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
        end = f"stripes {list(self.lost)} are lost" if self.lost else "repair() can rebuild them"
        lines = [f"{head}; {counts}, in blocks {self.blocks}; {end}"]
        for damage in self.damaged[:12]:
            lines.append(f"  block {damage.block}, part {damage.stripe}: {damage.kind} ({damage.key})")
        if len(self.damaged) > 12:
            lines.append(f"  and {len(self.damaged) - 12} more")
        return "\n".join(lines) + ">"


def audit(store: Store, manifest: Manifest) -> Audit:
    """Read every part and compare it with its checksum."""
    stripes = len(manifest.bounds) - 1
    places = [(block, stripe) for stripe in range(stripes) for block in range(manifest.code.n)]

    def examine(place: tuple[int, int]) -> Damage | None:
        part = manifest.parts[place[0]][place[1]]
        data = fetch(store, part)
        return Damage(*place, data, part.key) if isinstance(data, str) else None

    with ThreadPoolExecutor(TRANSFERS) as pool:
        damaged = tuple(sorted(damage for damage in pool.map(examine, places) if damage))
    return Audit(manifest.name, manifest.code.n, stripes, damaged, _lost(manifest, damaged))


def _lost(manifest: Manifest, damaged: Iterable[Damage]) -> tuple[int, ...]:
    """Stripes that cannot be decoded."""
    by_stripe: dict[int, set[int]] = {}
    for damage in damaged:
        by_stripe.setdefault(damage.stripe, set()).add(damage.block)
    return tuple(stripe for stripe, bad in sorted(by_stripe.items()) if not _is_decodable(manifest, bad))


def _is_decodable(manifest: Manifest, bad: set[int]) -> bool:
    return decoder_of(manifest, set(range(manifest.code.n)) - bad).ready
