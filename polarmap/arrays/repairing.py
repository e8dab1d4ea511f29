"""Repair of a coded array in storage: damaged parts are rebuilt from good ones, stripe by stripe."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy.typing as npt

from polarmap.arrays.array_tasks import TaskRunner
from polarmap.arrays.audits import Audit, audit, lost_blocks
from polarmap.arrays.decode import decode_blocks
from polarmap.arrays.fetching import TRANSFERS, fetch_blocks
from polarmap.arrays.generations import Generation
from polarmap.arrays.manifest import Manifest, checksum
from polarmap.arrays.rebuilding import rebuild_parts
from polarmap.arrays.stores import PartStore
from polarmap.arrays.zarr_repair import repair_zarr
from polarmap.errors import NotDecodableError, StorageError
from polarmap.run.observers import observers_of
from polarmap.worker.parts import Part

Array = npt.NDArray[Any]


def repair(
    parts: PartStore, manifest: Manifest, before: bytes, executor: Any = None
) -> tuple[Manifest, Audit]:
    """Rebuild every damaged part; the new manifest and what had been damaged.

    New parts go to new keys and the manifest is replaced last, so that a repair cut short changes
    nothing. `before` is the manifest as it lies in storage.

    Raises
    ------
    NotDecodableError
        If a stripe has lost too much, or entries that NaN or inf in good parts keep from being decoded;
        nothing is changed then.
    """
    found = audit(parts, manifest, executor)
    if found.ok and (manifest.zarr is None or manifest.is_zarr):
        return manifest, found
    if found.lost:
        raise NotDecodableError(f"repair() would have to rebuild more than the code can: {found!r}")
    runner = TaskRunner(parts, executor, observers_of(None))
    with Generation(parts.store, manifest.name, {"repair": checksum(before)}) as generation:
        repaired = _repaired(runner, generation, manifest, found)
        generation.publish(repaired, before)
    return repaired, found


def _repaired(runner: TaskRunner, generation: Generation, manifest: Manifest, found: Audit) -> Manifest:
    """Rebuild the damaged parts and store them; the new manifest."""
    wanted = _to_rebuild(manifest, found)
    rebuilt = rebuild_parts(runner, manifest, generation, wanted, lost_blocks(found.damaged))
    for stripe in sorted(wanted.keys() - {stripe for _, stripe in rebuilt}):
        for block, row in _decoded(runner.parts, manifest, stripe, wanted[stripe]).items():
            rebuilt[block, stripe] = runner.parts.put(generation.part_key(block, stripe), row)
        generation.heartbeat()
    for place, part in rebuilt.items():
        _check_exact(manifest, *place, part)
    wrong = {key for key, _ in found.zarr}
    return repair_zarr(runner, generation, manifest, manifest.with_parts(rebuilt), wrong)


def _to_rebuild(manifest: Manifest, found: Audit) -> dict[int, set[int]]:
    """Blocks by stripe whose parts are stored anew: the damaged ones, and those in one object with them."""
    keys = {damage.key for damage in found.damaged} & manifest.ends.keys()
    places = {(damage.block, damage.stripe) for damage in found.damaged}
    for block, parts in enumerate(manifest.parts):
        places |= {(block, stripe) for stripe, part in enumerate(parts) if part.key in keys}
    wanted: dict[int, set[int]] = {}
    for block, stripe in places:
        wanted.setdefault(stripe, set()).add(block)
    return wanted


def _decoded(
    parts: PartStore, manifest: Manifest, stripe: int, wanted: Collection[int]
) -> Mapping[int, Array]:
    """The damaged parts of a stripe, and those of blocks `wanted`, by block, decoded entry by entry."""
    code = manifest.code
    with ThreadPoolExecutor(TRANSFERS) as pool:
        good, _ = fetch_blocks(parts, manifest, stripe, range(code.n), pool)
    bad = [block for block in range(code.n) if block not in good]
    rebuilt = {block: good[block] for block in wanted if block in good}
    if not bad:
        return rebuilt
    lost = [block for block in bad if block < code.k]
    rebuilt |= decode_blocks(manifest, stripe, lost, good) if lost else {}
    if max(bad) >= code.k:
        data = [rebuilt.get(block, good.get(block)) for block in range(code.k)]
        parity = code.parity([row for row in data if row is not None])
        rebuilt |= {block: parity[block - code.k] for block in bad if block >= code.k}
    return {block: row.astype(manifest.dtype_of(block), copy=False) for block, row in rebuilt.items()}


def _check_exact(manifest: Manifest, block: int, stripe: int, part: Part) -> None:
    """Raise unless integers came back bit for bit: then more is wrong than the damaged parts."""
    if manifest.dtype.kind not in "iu" or manifest.encryption is not None:  # no checksum tells of numbers
        return
    if manifest.parts[block][stripe].crc32 not in (None, part.crc32):
        raise StorageError(
            f"block {block}, part {stripe} of {manifest.name!r} decodes to other numbers than were stored: "
            "the parts do not belong together; encode again with overwrite=True"
        )
