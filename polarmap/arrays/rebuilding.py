"""Parts that are lost, made of the others: weights times good parts, stripe by stripe, each by one task."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from polarmap.arrays.array_tasks import PartTasks, TaskRunner
from polarmap.arrays.decode import decoder_of
from polarmap.arrays.generations import Generation
from polarmap.arrays.manifest import Manifest
from polarmap.code import modular
from polarmap.code.dtypes import Array, is_exact
from polarmap.worker.parts import Part
from polarmap.worker.stored_output import OutputSpec

TILE = 1 << 17  # numbers of all parts together that are multiplied at a time

Multiply = Callable[[Array, Array], Array]


def rebuild_parts(
    runner: TaskRunner,
    manifest: Manifest,
    generation: Generation,
    wanted: Mapping[int, Collection[int]],
    lost: Mapping[int, Collection[int]],
) -> dict[tuple[int, int], Part]:
    """By block and stripe, the new parts of blocks `wanted` of each stripe, of which it may have `lost` some.

    Left out are stripes in which NaN or inf stand: these are decoded entry by entry, which takes more
    than numpy.
    """
    alike: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for stripe, blocks in sorted(wanted.items()):
        bad = set(lost.get(stripe, ()))
        alike.setdefault((tuple(sorted(bad)), tuple(sorted(set(blocks) - bad))), []).append(stripe)
    found: dict[tuple[int, int], Part] = {}
    for number, ((bad_blocks, kept), stripes) in enumerate(alike.items()):
        prefix = f"{generation.prefix}rebuilt{number}"
        found |= _rebuilt_alike(runner, manifest, generation, prefix, bad_blocks, kept, stripes)
    return found


def _rebuilt_alike(
    runner: TaskRunner,
    manifest: Manifest,
    generation: Generation,
    prefix: str,
    lost: Sequence[int],
    kept: Sequence[int],
    stripes: Sequence[int],
) -> dict[tuple[int, int], Part]:
    """The new parts of stripes that have lost the same blocks and have the same good ones stored anew."""
    anew = [*kept, *lost]
    there = np.setdiff1d(np.arange(manifest.code.n), lost)
    weights = weights_of(manifest, lost)
    is_read = weights.any(axis=0) | np.isin(there, kept)
    blocks = there[is_read].tolist()
    found: dict[tuple[int, int], Part] = {}

    def take(task: int, parts: list[Part], is_finite: Array) -> None:
        if is_finite.all():
            found.update({(block, stripes[task]): part for block, part in zip(anew, parts)})
        generation.heartbeat()

    multiply = modular.matmul if runner.is_here and is_exact(manifest.dtype) else np.matmul
    rebuild = rebuilder(
        weights[:, is_read], list(map(blocks.index, kept)), list(map(manifest.dtype_of, lost)), multiply
    )
    parts = [[manifest.parts[block][stripe] for block in blocks] for stripe in stripes]
    tasks = PartTasks(runner.parts, parts, list(map(manifest.dtype_of, blocks)))
    widest = max(manifest.bounds[stripe + 1] - manifest.bounds[stripe] for stripe in stripes)
    runner.run(rebuild, tasks, take, OutputSpec(runner.parts.place, prefix, widest, len(anew)))
    return found


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
    weights: Array, kept: Sequence[int], dtypes: Sequence[np.dtype[Any]], multiply: Multiply = np.matmul
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
                for target, row in zip(targets, multiply(weights, tile.view(weights.dtype))):
                    target[start : start + step] = row.astype(target.dtype)
        is_finite = is_exact_ or all(np.isfinite(row).all() for row in [*halves, *targets])
        return [*(rows[index] for index in kept), *lost, np.array([is_finite])]

    return rebuild
