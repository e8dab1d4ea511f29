"""The results of blocks as one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.blocks.base import DataBlocks
from polarmap.blocks.equal import describe_leaves
from polarmap.errors import CodeError
from polarmap.worker.pytree import flatten, unflatten

Array = npt.NDArray[Any]


def without_padding(
    results: Sequence[list[Array]], blocks: DataBlocks, rows: Sequence[bool]
) -> list[list[Array]]:
    """Results without the rows that come from padding, of the leaves that have one row per row."""
    if not any(rows):
        return list(results)
    assert blocks.rows is not None
    total = blocks.k * blocks.rows - blocks.padding
    counts = [min(max(total - index * blocks.rows, 0), blocks.rows) for index in range(blocks.k)]
    return [
        [leaf[:count] if cut else leaf for leaf, cut in zip(leaves, rows, strict=True)]
        for leaves, count in zip(results, counts, strict=True)
    ]


def concatenate(results: Sequence[Any], axis: int) -> Any:
    """Results joined along `axis`."""
    flat = [flatten(result) for result in results]
    if len(flat[0][1]) != 1:
        raise CodeError(
            f"concatenate() joins results that are arrays; f returned {describe_leaves(flat[0][0])} "
            "in a container: use list(result)"
        )
    arrays = [leaves[0] for leaves, _ in flat]
    if arrays[0].ndim == 0:
        return np.stack(arrays)
    try:
        return unflatten(flat[0][1], [np.concatenate(arrays, axis=axis)])
    except ValueError as error:  # of numpy, AxisError among them
        shapes = f"{arrays[0].shape} and {arrays[-1].shape}"
        raise CodeError(f"results of shapes {shapes} cannot be joined along axis {axis}: {error}") from error
