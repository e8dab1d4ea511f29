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

ERROR_SAFETY_FACTOR = (
    64  # by which a residual must exceed the estimated error of slopes to tell a non-smooth f
)


def partition_directions(base_directions: Floats, n_blocks: int) -> list[Floats]:
    """k blocks, every k-th direction in one, filled up with zeros."""
    padded_directions = np.zeros(
        (-(-len(base_directions) // n_blocks) * n_blocks, *base_directions.shape[1:])
    )
    padded_directions[: len(base_directions)] = base_directions
    return [padded_directions[i::n_blocks] for i in range(n_blocks)]


def merge_slopes(block_slopes: Sequence[Floats], n_directions: int) -> Floats:
    """The inverse of taking every k-th direction into one block."""
    return np.stack(block_slopes, axis=1).reshape(-1)[:n_directions]


def solve_gradient(slopes: Floats, base_directions: Floats | None, scale: Floats) -> Floats:
    """What has these slopes; the shortest such vector if there are several."""
    if base_directions is None:
        return slopes.reshape(scale.shape) / scale
    if not np.isfinite(slopes).all():
        return np.full(scale.shape, np.nan)
    solution = np.linalg.lstsq(base_directions.reshape(len(base_directions), -1), slopes, rcond=None)[0]
    return np.asarray(solution).reshape(scale.shape)


def choose_n_blocks(blocks: Any, tasks: Any, code: CodeName | PolarCode, n_directions: int) -> int:
    """k, as coded_map chooses it for `n_directions` rows."""
    code_options = CodeOptions(blocks, tasks, code).check()
    max_blocks = DEFAULT_N_BLOCKS if code_options.tasks is None else max(1, 3 * code_options.tasks // 4)
    code_blocks = code.k if isinstance(code, PolarCode) else None
    k = code_options.blocks or code_blocks or min(max_blocks, n_directions)
    if k > n_directions:
        raise CodeError(
            f"blocks={k} is more than the {n_directions} directions; use blocks <= {n_directions}"
        )
    return k


def estimate_slope_errors(h: float, scheme: str, received_leaves: list[list[Array]]) -> list[float]:
    """What slopes may be off by although f is smooth, from the `SlopeErrorInputs` that came with them.

    These are not meant to be decoded. The most extreme worker is left out, which may have returned garbage.
    """
    columns = dict(zip(SlopeErrorInputs._fields, np.stack([leaves[1] for leaves in received_leaves]).T))
    min_value, max_value = (
        -_find_second_largest(-columns["min_value"]),
        _find_second_largest(columns["max_value"]),
    )
    rounding = _find_second_largest(columns["result_eps"]) * max(abs(min_value), abs(max_value))
    truncation = h * max(0.0, max_value - min_value)
    if scheme == "forward":
        truncation = _find_second_largest(columns["second_difference"])
    error = _find_second_largest(columns["max_direction_norm"]) * (rounding + truncation) / h
    return [ERROR_SAFETY_FACTOR * error, np.inf]


def _find_second_largest(column: Array) -> float:
    """The second largest of three finite values or more; the largest of fewer, 0 of none."""
    finite = np.sort(column[np.isfinite(column)])
    if len(finite) == 0:
        return 0.0
    return float(finite[-2] if len(finite) > 2 else finite[-1])
