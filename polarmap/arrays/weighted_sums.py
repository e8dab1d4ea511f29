"""Blocks as weighted sums of others: which weights, and the sums as workers form them, stripe by stripe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from polarmap.codes import modular_decoders
from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.polar import PolarCode
from polarmap.dtypes import Array, is_integer_dtype

TILE = 1 << 17  # numbers of all rows together that are multiplied at a time


def weights_of(code: PolarCode, dtype: np.dtype[Any], lost: Sequence[int]) -> Array:
    """Lost blocks = weights @ the others, (lost, n - lost): float64, or uint64 for integers modulo 2^64.

    dtype : of the data.
    """
    exact, there = is_integer_dtype(dtype), np.setdiff1d(np.arange(code.n), lost)
    data, parity = (
        np.array([one for one in lost if (one < code.k) == is_data], np.intp) for is_data in (True, False)
    )
    weights = np.zeros((len(lost), len(there)), np.uint64 if exact else np.float64)
    if len(data):
        decoder = ArrivalTracker(code, modular=exact)
        for block in there.tolist():
            decoder.add(block)
        recovery = decoder.decoder
        of_integers = recovery.compute_modular_weights()
        weights[: len(data)] = recovery.weights if of_integers is None else of_integers
    if len(parity):
        P = code.encoding_matrix[parity - code.k]
        known = there[there < code.k]
        weights[len(data) :, : len(known)] = P[:, known].astype(weights.dtype)
        multiply = modular_decoders.matmul_mod64 if exact else np.matmul
        weights[len(data) :] += multiply(P[:, data], weights[: len(data)])
    return weights


def weighted_sums(
    weights: Array, dtypes: Sequence[np.dtype[Any]], multiply: Callable[[Array, Array], Array] = np.matmul
) -> Callable[[Sequence[Array]], list[Array]]:
    """On a worker, which has numpy only: weights @ rows, of these dtypes."""
    working = np.dtype(np.int64) if weights.dtype == np.uint64 else weights.dtype

    def reals(rows: Sequence[Array]) -> list[Array]:
        return [row.view(f"f{row.itemsize // 2}") if row.dtype.kind == "c" else row for row in rows]

    def sums(rows: Sequence[Array]) -> list[Array]:
        halves, found = reals(rows), [np.empty(rows[0].size, dtype) for dtype in dtypes]
        targets, step = reals(found), max(64, TILE // len(rows))
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, halves[0].size, step):
                tile = np.array([row[start : start + step].astype(working) for row in halves])
                for target, row in zip(targets, multiply(weights, tile.view(weights.dtype))):
                    target[start : start + step] = row.astype(target.dtype)
        return found

    return sums
