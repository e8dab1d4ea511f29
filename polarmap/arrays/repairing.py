"""Repair of a coded array in storage: damaged parts are rebuilt from good ones, stripe by stripe."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from polarmap.arrays.array_tasks import PartTasks, TaskRunner
from polarmap.arrays.audits import Audit, audit, lost_blocks
from polarmap.arrays.generations import Generation
from polarmap.arrays.manifest import Manifest
from polarmap.arrays.reading import StoredBlocks, decode_blocks
from polarmap.arrays.weighted_sums import weighted_sums, weights_of
from polarmap.arrays.zarr_chunks import repair_zarr
from polarmap.codes import modular_decoders
from polarmap.dtypes import Array, is_integer_dtype
from polarmap.errors import NotDecodableError, StorageError
from polarmap.run.prepared_map import observers_of
from polarmap.worker.messages import OutputSpec
from polarmap.worker.parts import Part


def repair(stored: StoredBlocks, before: bytes, executor: Any = None) -> tuple[Manifest, Audit]:
    """Rebuild every damaged part; return the new manifest, and what was damaged and is repaired.

    New parts go to new keys and the manifest is replaced last, so that a repair that is cut short or fails
    changes nothing. `before` is the manifest as it lies in storage.
    """
    manifest, found = stored.manifest, audit(stored, executor)
    if found.ok and (manifest.zarr is None or manifest.is_zarr):
        return manifest, found
    if found.lost:
        raise NotDecodableError(f"repair() would have to rebuild more than the code can: {found!r}")
    runner = TaskRunner(stored.part_store, executor, observers_of(None))
    with Generation(stored.part_store, manifest.name) as generation:
        repaired = _Repair(runner, generation, stored).of(found)
        return generation.publish(repaired, before), replace(found, is_repaired=True)


class _Repair:
    """Rebuilds the damaged parts of an array, which are stored as one generation."""

    def __init__(self, runner: TaskRunner, generation: Generation, stored: StoredBlocks) -> None:
        self._runner, self._generation, self._stored = runner, generation, stored
        self._manifest = stored.manifest

    def of(self, found: Audit) -> Manifest:
        """The manifest of the array, once what was found damaged is rebuilt and stored."""
        runner, generation, manifest = self._runner, self._generation, self._manifest
        rebuilt: dict[tuple[int, int], Part] = {}
        for number, ((lost, kept), stripes) in enumerate(_alike(manifest, found).items()):
            done = self._rebuilt(f"{generation.prefix}rebuilt{number}", lost, kept, stripes)
            for stripe in stripes:
                if stripe not in done:
                    rows = self._decoded(stripe, kept).items()
                    done[stripe] = {block: generation.put(block, stripe, row) for block, row in rows}
                    generation.heartbeat()
            rebuilt |= {(block, stripe): part for stripe in done for block, part in done[stripe].items()}
        if manifest.dtype.kind in "iu" and runner.parts.has_checksums_of_data:
            for place, part in rebuilt.items():
                _check_exact(manifest, *place, part)
        wrong = {key for key, _ in found.zarr}
        return repair_zarr(runner, generation, manifest, manifest.with_parts(rebuilt), wrong)

    def _rebuilt(
        self, prefix: str, lost: Sequence[int], kept: Sequence[int], stripes: Sequence[int]
    ) -> dict[int, dict[int, Part]]:
        """By stripe and block the new parts: weights times good parts, each stripe by one task.

        Left out are stripes in which NaN or inf stand: these are decoded entry by entry, which takes more
        than numpy.
        """
        manifest, runner, dtype_of = self._manifest, self._runner, self._manifest.dtype_of
        there = np.setdiff1d(np.arange(manifest.code.n), lost)
        weights = weights_of(manifest.code, manifest.dtype, lost)
        is_read = weights.any(axis=0) | np.isin(there, kept)
        blocks = there[is_read].tolist()
        found: dict[int, dict[int, Part]] = {}

        def take(task: int, parts: list[Part], is_finite: Array) -> None:
            if is_finite.all():
                found[stripes[task]] = dict(zip([*kept, *lost], parts))
            self._generation.heartbeat()

        multiply = (
            modular_decoders.matmul_mod64
            if runner.is_here and is_integer_dtype(manifest.dtype)
            else np.matmul
        )
        sums = weighted_sums(weights[:, is_read], list(map(dtype_of, lost)), multiply)
        f = rebuilder(sums, list(map(blocks.index, kept)))
        parts = [[manifest.parts[block][stripe] for block in blocks] for stripe in stripes]
        widest = max(manifest.bounds[stripe + 1] - manifest.bounds[stripe] for stripe in stripes)
        output = OutputSpec(runner.parts.place, prefix, widest, len(kept) + len(lost))
        runner.run(f, PartTasks(runner.parts, parts, list(map(dtype_of, blocks))), take, output)
        return found

    def _decoded(self, stripe: int, kept: Collection[int]) -> dict[int, Array]:
        """By block the damaged parts of a stripe, decoded entry by entry, and good ones of blocks `kept`."""
        manifest, code = self._manifest, self._manifest.code
        good = self._stored.good_parts(stripe, range(code.n))
        bad = [block for block in range(code.n) if block not in good]
        rebuilt = {block: good[block] for block in kept if block in good}
        lost = [block for block in bad if block < code.k]
        rebuilt |= decode_blocks(manifest, stripe, lost, good) if lost else {}
        if max(bad, default=0) >= code.k:
            parity = code.encode_parity(
                [(rebuilt if block in bad else good)[block] for block in range(code.k)]
            )
            rebuilt |= {block: parity[block - code.k] for block in bad if block >= code.k}
        return {block: row.astype(manifest.dtype_of(block), copy=False) for block, row in rebuilt.items()}


def _alike(manifest: Manifest, found: Audit) -> dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]]:
    """Stripes by the blocks that they have lost and those, good ones, that lie in one object with damage.

    The parts of both are stored anew.
    """
    lost = lost_blocks(found.damaged)
    keys = {damage.key for damage in found.damaged} & manifest.ends.keys()
    alike: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for stripe in range(found.stripes):
        bad = lost.get(stripe, set())
        touched = (block for block, parts in enumerate(manifest.parts) if parts[stripe].key in keys)
        kept = tuple(block for block in touched if block not in bad)
        if bad or kept:
            alike.setdefault((tuple(sorted(bad)), kept), []).append(stripe)
    return alike


def rebuilder(
    sums: Callable[[Sequence[Array]], list[Array]], kept: Sequence[int]
) -> Callable[[Sequence[Array]], list[Array]]:
    """On a worker, which has numpy only: rows `kept`, sums of all rows, and whether all are finite."""

    def rebuild(rows: Sequence[Array]) -> list[Array]:
        lost = sums(rows)
        is_finite = all(row.dtype.kind in "iu" or np.isfinite(row).all() for row in [*rows, *lost])
        return [*(rows[index] for index in kept), *lost, np.array([is_finite])]

    return rebuild


def _check_exact(manifest: Manifest, block: int, stripe: int, part: Part) -> None:
    """Raise unless integers came back bit for bit: then more is wrong than the damaged parts."""
    if manifest.parts[block][stripe].crc32 not in (None, part.crc32):
        raise StorageError(
            f"block {block}, part {stripe} of {manifest.name!r} decodes to other numbers than were stored: "
            "the parts do not belong together; encode again with overwrite=True"
        )
