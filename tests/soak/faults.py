"""Executors on which tasks have the faults of a case."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from plain import AlteringReplay

from polarmap import Pool
from polarmap.executors.interface import Outcome
from polarmap.testing import Fault, FaultyExecutor
from soak.draws import Draw

SHARES = {"replay": 900, "threads": 40, "pool": 50, "processes": 8, "localhost": 2}
PATIENCE = {"replay": 1000.0, "threads": 60.0, "pool": 100.0, "processes": 60.0, "localhost": 100.0}
KINDS = {
    "replay": ["never", "raise", "exit", "kill", "garbage", "lie", "shape", "nan"],
    "threads": ["sleep", "raise", "garbage"],
    "pool": ["sleep", "raise", "exit", "kill", "garbage", "never"],
    # A process that dies would fail all tasks of the pool.
    "processes": ["sleep", "raise", "garbage", "never"],
    "localhost": ["sleep", "raise", "exit", "kill", "garbage", "never"],
}
DECEIVING = {"garbage", "lie", "nan"}  # Faults with which a task reports a wrong result.
SECONDS = 1.5  # Real seconds of a sleep.


@dataclass(frozen=True)
class Faults:
    """The faults of the tasks of a case.

    Attributes
    ----------
    struck : dict[int, str]
        Task -> kind of fault.
    attempts : int
        Number of attempts that have the fault.
    seconds : dict[int, float]
        Virtual run times by task.
    """

    struck: dict[int, str] = field(default_factory=dict)
    attempts: int = 1
    seconds: dict[int, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.struck} for {self.attempts} attempts" if self.struck else "no faults"

    def of(self, *kinds: str) -> set[int]:
        """Return the tasks with a fault of these kinds."""
        return {task for task, kind in self.struck.items() if kind in kinds}

    def lost(self, options: dict[str, Any]) -> set[int]:
        """Return the tasks that never return a right result in a map with these options."""
        is_for_good = self.attempts > options.get("retries", 1)
        return self.misleading | self.of("never", *["raise", "exit", "kill"] * is_for_good)

    def raises_everywhere(self, n: int, spare: int) -> bool:
        """Return whether the first tasks to end may all raise, and exceed the number that may be missing."""
        return len(self.of("raise")) > max(spare, n // 4, 1)

    def outvotes(self, needed: int) -> bool:
        """Return whether results of another shape may be the majority when `needed` results have arrived."""
        return len(self.of("shape")) >= needed

    @property
    def misleading(self) -> set[int]:
        """The tasks that report something other than the result of f."""
        return self.deceiving | self.of("shape")

    @property
    def deceiving(self) -> set[int]:
        return self.of(*DECEIVING)


def draw_faults(draw: Draw, executor: str, n: int, spare: int) -> Faults:
    """Draw no faults, as many as the code tolerates, or more."""
    seconds = {}
    if executor == "replay":
        times = draw.stream.permutation(np.linspace(1, 2, n)) if draw.chance(0.8) else np.ones(n)
        seconds = {task: float(one) for task, one in enumerate(times)}
    tolerated, too_many = draw.number(0, spare), spare + draw.number(1, 2)
    count = draw.pick([*[0] * 3, *[tolerated] * 6, *[spare] * 3, too_many])
    usual = ["never"] if executor == "replay" else ["sleep"]
    kinds = usual if draw.chance(0.5) else KINDS[executor]
    struck = {task: draw.pick(kinds) for task in draw.some(range(n), min(n, count))}
    if executor != "replay":  # A pool whose workers are all blocked forever would run nothing more.
        blocked = [task for task, kind in struck.items() if kind == "never"]
        struck |= dict.fromkeys(blocked[2:], "raise")
    return Faults(struck, draw.pick([1, 1, 9]), seconds)


# --- workers with wrong results that no Fault provides ------------------------------------------


def _with_lie(seed: int, leaf: np.ndarray) -> np.ndarray:
    """Return a leaf with one wrong entry: an integer is off by one bit, a float by a tenth of the largest."""
    flat = leaf.reshape(-1).copy()
    if leaf.size and leaf.dtype.kind in "iu":
        flat[seed % leaf.size] ^= 1
    elif leaf.size:
        flat[seed % leaf.size] += (0.1 + seed % 7) * (np.abs(flat).max() or 1)
    return flat.reshape(leaf.shape)


def _longer(seed: int, leaf: np.ndarray) -> np.ndarray:
    return np.concatenate([leaf.reshape(-1), leaf.reshape(-1), np.zeros(1, leaf.dtype)])


def _with_nan(seed: int, leaf: np.ndarray) -> np.ndarray:
    leaf = leaf.copy()
    if leaf.size and leaf.dtype.kind in "fc":
        leaf.reshape(-1)[-1] = np.nan
    return leaf


ODD = {"lie": _with_lie, "shape": _longer, "nan": _with_nan}


class OddReplay(AlteringReplay):
    """A replay executor with tasks that never report, and with workers that return wrong results."""

    def __init__(self, faults: Faults, seed: int) -> None:
        super().__init__(faults.seconds | dict.fromkeys(faults.of("never"), math.inf))
        self._odd, self._seed = faults.struck, seed

    def altered(self, outcome: Outcome) -> Outcome:
        change = ODD.get(self._odd.get(outcome.task, ""))
        if outcome.failure is not None or change is None:
            return outcome
        changed = outcome._replace(
            leaves=[change(self._seed + outcome.task, leaf) for leaf in outcome.leaves]
        )
        own = outcome.unpadded_result
        if own is None or change is _longer:  # A result of another shape is recognized by the padded block.
            return changed
        leaves = [change(self._seed + outcome.task, leaf) for leaf in own.leaves]
        return changed._replace(unpadded_result=own._replace(leaves=leaves))


# --- executors ----------------------------------------------------------------------------------

OPEN: dict[str, Callable[[], Any]] = {
    "threads": partial(ThreadPoolExecutor, 4),
    "processes": lambda: ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("forkserver")),
    "pool": partial(Pool, workers=4),
}


class Pools:
    """The pools of a worker process, opened on demand."""

    def __init__(self) -> None:
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()
        self.close = self._stack.close

    def pool(self, kind: str) -> Any:
        if kind not in self._open:
            self._open[kind] = self._stack.enter_context(OPEN[kind]())
        return self._open[kind]

    def executor(self, kind: str, faults: Faults, seed: int) -> FaultyExecutor:
        """Return an executor of this kind on which tasks have these faults."""
        if kind == "replay":
            struck = {task: one for task, one in faults.struck.items() if one not in (*ODD, "never")}
            inner: Any = OddReplay(faults, seed)
        else:
            struck, inner = faults.struck, "localhost" if kind == "localhost" else self.pool(kind)
        return FaultyExecutor(
            inner, {task: self._fault(one, faults.attempts) for task, one in struck.items()}
        )

    def _fault(self, kind: str, attempts: int) -> Fault:
        seconds = {"sleep": SECONDS, "never": 600.0}
        return Fault("sleep" if kind in seconds else kind, seconds.get(kind, 0.0), attempts)
