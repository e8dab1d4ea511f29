"""Modules of a user whose state changes between maps, while workers die."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import module_states
import numpy as np

import polarmap
from polarmap.testing import Fault, FaultyExecutor
from soak.draws import Draw
from soak.faults import Pools
from soak.oracle import Finding

VERBS = ["coded", "hedged", "submitted", "called"]


@cache
def changes() -> dict[str, tuple[module_states.Function, module_states.Change]]:
    """Return the functions of a user's modules, and the changes of the state that they reach."""
    folder = tempfile.TemporaryDirectory(prefix="modules")
    module_states.write_modules(Path(folder.name))
    changes.folder = folder  # type: ignore[attr-defined]  # which is removed with this process
    sys.path.insert(0, folder.name)
    return module_states.cases()


@dataclass
class StateCase:
    """Maps of functions that multiply by a number which the program has set before.

    Attributes
    ----------
    steps : list[tuple[int, float, str, bool]]
        (index of f, the number, kind of map, whether a worker dies first).
    """

    steps: list[tuple[int, float, str, bool]]

    def run(self, pools: Pools) -> str:
        pool, known = pools.pool("pool"), list(changes().items())
        for choice, factor, verb, dies in self.steps:
            name, (f, change) = known[choice % len(known)]
            try:
                change(factor)
                if dies:
                    faulty = FaultyExecutor(pool, {0: Fault("kill")})
                    polarmap.hedged_map(os.path.basename, ["a", "b"], executor=faulty, progress=False)
                result = module_states.MAPS[verb](f, executor=pool)
                self._check(result, factor, f"{name} by {verb}")
            finally:
                change(2.0)
        return "right (state of modules)"

    def _check(self, result: Any, factor: float, subject: str) -> None:
        if not np.allclose(result, factor * module_states.A):
            first = float(np.ravel(result / module_states.A)[0])
            raise Finding("wrong state of a module", f"{subject}: {first} in place of {factor}")


def draw_state(draw: Draw, executor: str) -> StateCase:
    """Draw a case of 2 to 8 maps."""
    return StateCase(
        [
            (draw.number(0, 999), draw.pick([2.0, 3.0]), draw.pick(VERBS), draw.chance(0.2))
            for _ in range(draw.number(2, 8))
        ]
    )
