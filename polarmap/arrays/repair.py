"""Repair of a coded array in storage: damaged parts are rebuilt from good ones, stripe by stripe."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.arrays import generations
from polarmap.arrays.audit import Audit, audit
from polarmap.arrays.decode import decode_blocks
from polarmap.arrays.fetch import TRANSFERS, fetch_blocks
from polarmap.arrays.generations import Generation
from polarmap.arrays.manifest import Manifest, checksum
from polarmap.errors import NotDecodableError, PolarmapError, StorageError
from polarmap.storage.base import Store
from polarmap.worker.parts import Part

Array = npt.NDArray[Any]


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
