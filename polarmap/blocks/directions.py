"""Directions of a gradient <-> equal blocks of them, and slopes along them <-> the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polarmap.blocks.code_choice import CodeName
from polarmap.blocks.equal import DEFAULT_BLOCKS
from polarmap.code.checks import checked_count
from polarmap.code.dtypes import Floats
from polarmap.code.polar import PolarCode
from polarmap.errors import CodeError


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


def count_blocks(blocks: Any, workers: Any, code: CodeName | PolarCode, count: int) -> int:
    """k, as coded_map chooses it for `count` rows."""
    if isinstance(code, PolarCode) and blocks is None:
        blocks = code.k
    if blocks is not None:
        k = checked_count("blocks", blocks)
    elif workers is not None:
        k = max(1, min(3 * checked_count("workers", workers) // 4, count))
    else:
        k = min(DEFAULT_BLOCKS, count)
    if k > count:
        raise CodeError(f"blocks={k} is more than the {count} directions; use blocks <= {count}")
    return k
