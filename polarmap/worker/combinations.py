"""The sum of f over the parts that one worker got, each times a coefficient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polarmap.worker.pytree import Structure, flatten, unflatten


def combination(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """On a worker: f of each part, times its coefficient, added up."""

    def combine(block: Any) -> Any:
        coefficients, parts = block
        total: list[Any] = []
        structure: Structure = ()
        for coefficient, part in zip(coefficients.tolist(), parts):
            leaves, structure = flatten(f(part))
            wrong = [leaf.dtype for leaf in leaves if leaf.dtype.kind not in "biufc"]
            if wrong:
                raise TypeError(f"f returned dtype {wrong[0]}, which cannot be added up: return numbers")
            terms = [coefficient * (leaf + 0 if leaf.dtype == bool else leaf) for leaf in leaves]
            if total and len(total) != len(terms):
                raise ValueError("f returned different structures for different parts")
            total = [one + two for one, two in zip(total, terms)] if total else terms
        return unflatten(structure, [np.asarray(leaf) for leaf in total])

    return combine
