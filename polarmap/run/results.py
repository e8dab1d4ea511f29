"""A single result of f, as it arrived: its arrays, and what it has in common with others."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.code.dtypes import DType, is_exact
from polarmap.errors import CodeError
from polarmap.executors.base import Outcome
from polarmap.worker.pytree import Structure

Array = npt.NDArray[Any]


def leaves_of(outcome: Outcome) -> list[Array]:
    """The arrays of a result."""
    assert outcome.leaves is not None
    return outcome.leaves


def signature(outcome: Outcome) -> Any:
    """What results of one f have in common; parity blocks of integers may be wider."""
    kinds = tuple((kind_of(leaf.dtype), leaf.shape) for leaf in leaves_of(outcome))
    return repr(outcome.structure), kinds


def are_alike(one: Outcome, other: Outcome) -> bool:
    """Whether results are of one structure, and their arrays of one dtype and shape."""
    if one.structure != other.structure or len(leaves_of(one)) != len(leaves_of(other)):
        return False
    return all(
        mine.dtype == theirs.dtype and mine.shape == theirs.shape
        for mine, theirs in zip(leaves_of(one), leaves_of(other))
    )


def kind_of(dtype: DType) -> str:
    """What must agree between results: any integer goes with any other."""
    return "integer" if is_exact(dtype) else dtype.kind


def is_well_formed(outcome: Outcome) -> bool:
    """Whether numbers are single ones: what says otherwise has not come from f."""
    kinds = kinds_of(outcome.structure or ("array",))
    return all(
        leaf.size == 1 or kind not in ("python", "numpy") for kind, leaf in zip(kinds, leaves_of(outcome))
    )


def shapes_of(outcome: Outcome) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in leaves_of(outcome)]


def kinds_of(structure: Structure) -> list[str]:
    """What each leaf of a tree of this structure was: "array", "numpy" or "python"."""
    if len(structure) < 3 or structure[0] == "sample":
        return [structure[0]]
    return [kind for part in structure[2] for kind in kinds_of(part)]


def unwrapped(weights: Array, received: Array, blocks: Array) -> list[Array]:
    """Python integers, which do not wrap, from what they are modulo 2^64 and from what they are about.

    CodeError where the two contradict each other: then parity has wrapped.
    """
    values = received.astype(np.float64)
    about = (weights @ values)[:, 0]
    margin = 16 * np.finfo(float).eps * (np.abs(weights) @ np.abs(values))[:, 0] + 1
    found = []
    for near, off, modular in zip(about.tolist(), margin.tolist(), blocks[:, 0].tolist()):
        exact = modular + (round((near - modular) / 2**64) << 64)
        if not abs(exact - near) <= off or not -(1 << 63) <= exact < 1 << 64:
            raise CodeError(
                "f returns Python integers, and parity blocks of the data wrap modulo 2^64, which Python "
                "integers do not: return numpy integers, as in numpy.int64(total)"
            )
        found.append(np.array([exact]))
    return found


def describe_result(outcome: Outcome) -> str:
    return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves_of(outcome)) or "nothing"
