"""Directions of a gradient <-> equal blocks of them, slopes along them <-> the gradient, errors of slopes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polarmap.blocks.code_choice import CodeName, CodeOptions
from polarmap.blocks.equal import DEFAULT_N_BLOCKS
from polarmap.codes.polar import PolarCode
from polarmap.dtypes import Array, Floats
from polarmap.errors import CodeError
from polarmap.worker.finite_differences import SlopeErrorInputs

SLACK = 64  # by which a residual must exceed the estimated error of slopes to tell a non-smooth f


def cut_directions(base: Floats, k: int) -> list[Floats]:
    """k blocks, every k-th direction in one, filled up with zeros."""
    filled = np.zeros((-(-len(base) // k) * k, *base.shape[1:]))
    filled[: len(base)] = base
    return [filled[i::k] for i in range(k)]


def join_slopes(slopes: Sequence[Floats], count: int) -> Floats:
    """The inverse of taking every k-th direction into one block."""
    return np.stack(slopes, axis=1).reshape(-1)[:count]


def gradient_of_slopes(slopes: Floats, base: Floats | None, scale: Floats) -> Floats:
    """What has these slopes; the shortest such vector if there are several."""
    if base is None:
        return slopes.reshape(scale.shape) / scale
    if not np.isfinite(slopes).all():
        return np.full(scale.shape, np.nan)
    found = np.linalg.lstsq(base.reshape(len(base), -1), slopes, rcond=None)[0]
    return np.asarray(found).reshape(scale.shape)


def count_blocks(blocks: Any, tasks: Any, code: CodeName | PolarCode, count: int) -> int:
    """k, as coded_map chooses it for `count` rows."""
    asked = CodeOptions(blocks, tasks, code).check()
    most = DEFAULT_N_BLOCKS if asked.tasks is None else max(1, 3 * asked.tasks // 4)
    of_code = code.k if isinstance(code, PolarCode) else None
    k = asked.blocks or of_code or min(most, count)
    if k > count:
        raise CodeError(f"blocks={k} is more than the {count} directions; use blocks <= {count}")
    return k


def slope_errors(h: float, scheme: str, received: list[list[Array]]) -> list[float]:
    """What slopes may be off by although f is smooth, from the `SlopeErrorInputs` that came with them.

    These are not meant to be decoded. The most extreme worker is left out, which may have returned garbage.
    """
    columns = dict(zip(SlopeErrorInputs._fields, np.stack([leaves[1] for leaves in received]).T))
    lowest, highest = -_second_largest(-columns["lowest"]), _second_largest(columns["highest"])
    rounding = _second_largest(columns["eps"]) * max(abs(lowest), abs(highest))
    truncation = h * max(0.0, highest - lowest)
    if scheme == "forward":
        truncation = _second_largest(columns["curvature"])
    error = _second_largest(columns["longest"]) * (rounding + truncation) / h
    return [SLACK * error, np.inf]


def _second_largest(column: Array) -> float:
    """The second largest of three finite values or more; the largest of fewer, 0 of none."""
    finite = np.sort(column[np.isfinite(column)])
    if len(finite) == 0:
        return 0.0
    return float(finite[-2] if len(finite) > 2 else finite[-1])
