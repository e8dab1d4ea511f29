"""Audit and repair of a coded array in storage, stripe by stripe."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.arrays import generations
from polarmap.arrays.decode import decode_blocks, decoder_of
from polarmap.arrays.fetch import KINDS, TRANSFERS, Damage, fetch, fetch_blocks
from polarmap.arrays.generations import Generation
from polarmap.arrays.keys import array_prefix, manifest_key
from polarmap.arrays.manifest import Manifest, checksum
from polarmap.errors import NotDecodableError, PolarmapError, StorageError
from polarmap.storage.base import Store
from polarmap.worker.parts import Part

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Audit:
    """What a check of a coded array found.

    name : of the array.
    n, stripes : blocks, and parts of each.
    damaged : parts that are missing, truncated or corrupt.
    lost : stripes of which too few parts are good: repair() cannot rebuild these.
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


def repair(store: Store, manifest: Manifest, before: bytes) -> tuple[Manifest, Audit]:
    """Rebuild every damaged part; the new manifest and what had been damaged.

    New parts go to new keys and the manifest is replaced last, so that a repair cut short changes
    nothing. `before` is the manifest as it lies in storage.

    Raises
    ------
    NotDecodableError
        If a stripe has lost too much, or entries that NaN or inf in good parts keep from being decoded;
        nothing is changed then.
    """
    found = audit(store, manifest)
    if found.ok:
        return manifest, found
    if found.lost:
        raise NotDecodableError(f"repair() would have to rebuild more than the code can: {found!r}")
    try:
        repaired = _repaired(store, manifest, before, found)
    except PolarmapError:
        with contextlib.suppress(StorageError):  # which must not hide why
            generations.sweep(store, manifest.name)
        raise
    generations.sweep(store, manifest.name)
    return repaired, found


def _repaired(store: Store, manifest: Manifest, before: bytes, found: Audit) -> Manifest:
    """The new manifest, once it is stored after all parts that had been damaged."""
    rebuilt: dict[tuple[int, int], Part] = {}
    with Generation(store, manifest.name, {"repair": checksum(before)}) as generation:
        for stripe in sorted({damage.stripe for damage in found.damaged}):
            for block, row in _rebuild(store, manifest, stripe).items():
                raw = np.ascontiguousarray(row).data.cast("B")
                part = Part(generation.part_key(block, stripe), raw.nbytes, checksum(raw))
                store.put(part.key, raw)
                rebuilt[block, stripe] = part
            generation.heartbeat()
        repaired = manifest.with_parts(rebuilt)
        generation.publish(repaired, before)
    return repaired


def _rebuild(store: Store, manifest: Manifest, stripe: int) -> Mapping[int, Array]:
    """The damaged parts of a stripe, by block, as they should be."""
    code = manifest.code
    with ThreadPoolExecutor(TRANSFERS) as pool:
        good, damaged = fetch_blocks(store, manifest, stripe, range(code.n), pool)
    bad = [damage.block for damage in damaged]
    if not bad:
        return {}
    lost = [block for block in bad if block < code.k]
    rebuilt = decode_blocks(manifest, stripe, lost, good) if lost else {}
    if max(bad) >= code.k:
        data = [rebuilt.get(block, good.get(block)) for block in range(code.k)]
        parity = code.parity([row for row in data if row is not None])
        rebuilt |= {block: parity[block - code.k] for block in bad if block >= code.k}
    for block, row in rebuilt.items():
        _check_exact(manifest, block, stripe, row)
    return {block: row.astype(manifest.dtype_of(block), copy=False) for block, row in rebuilt.items()}


def _check_exact(manifest: Manifest, block: int, stripe: int, row: Array) -> None:
    """Integers come back bit for bit, or something is wrong with more than the damaged parts."""
    if manifest.dtype.kind not in "iu":
        return
    raw = np.ascontiguousarray(row.astype(manifest.dtype_of(block), copy=False)).data.cast("B")
    if manifest.parts[block][stripe].crc32 not in (None, checksum(raw)):
        raise StorageError(
            f"block {block}, part {stripe} of {manifest.name!r} decodes to other numbers than were stored: "
            "the parts do not belong together; encode again with overwrite=True"
        )


def delete(store: Store, name: str) -> None:
    """Remove a coded array; objects of others that it refers to stay."""
    store.delete([manifest_key(name)])
    generations.sweep(store, name)


def owned_bytes(manifest: Manifest) -> int:
    """Bytes in storage that exist for this array only."""
    prefix = array_prefix(manifest.name)
    return sum(part.size for parts in manifest.parts for part in parts if part.key.startswith(prefix))
