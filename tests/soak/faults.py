"""Executors on which tasks fare as a case says."""

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
    "processes": ["sleep", "raise", "garbage", "never"],  # one that dies takes all tasks with it
    "localhost": ["sleep", "raise", "exit", "kill", "garbage", "never"],
}
DECEIVING = {"garbage", "lie", "nan"}  # reports a result, which is wrong
SECONDS = 1.5  # Real seconds of a sleep.


@dataclass(frozen=True)
class Faults:
    """What befalls the tasks of a case.

    struck : task -> kind of fault.
    attempts : how many of its attempts a fault strikes.
    seconds : virtual run times.
    """

    struck: dict[int, str] = field(default_factory=dict)
    attempts: int = 1
    seconds: dict[int, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.struck} for {self.attempts} attempts" if self.struck else "no faults"

    def of(self, *kinds: str) -> set[int]:
        """The tasks that a fault of these kinds strikes."""
        return {task for task, kind in self.struck.items() if kind in kinds}

    def lost(self, options: dict[str, Any]) -> set[int]:
        """The tasks that never give a right result in a map of these options."""
        is_for_good = self.attempts > options.get("retries", 1)
        return self.misleading | self.of("never", *["raise", "exit", "kill"] * is_for_good)

    def raises_everywhere(self, n: int, spare: int) -> bool:
        """Whether the first tasks to end may all raise, and are more than may be missing."""
        return len(self.of("raise")) > max(spare, n // 4, 1)

    def outvotes(self, needed: int) -> bool:
        """Whether results of another shape may be the most that have arrived when so many are needed."""
        return len(self.of("shape")) >= needed

    @property
    def misleading(self) -> set[int]:
        """Workers that report something else than f gives."""
        return self.deceiving | self.of("shape")

    @property
    def deceiving(self) -> set[int]:
        return self.of(*DECEIVING)


def draw_faults(draw: Draw, executor: str, n: int, spare: int) -> Faults:
    """No faults, as many as the code bears, or more."""
    seconds = {}
    if executor == "replay":
        times = draw.stream.permutation(np.linspace(1, 2, n)) if draw.chance(0.8) else np.ones(n)
        seconds = {task: float(one) for task, one in enumerate(times)}
    some, too_many = draw.number(0, spare), spare + draw.number(1, 2)
    count = draw.pick([*[0] * 3, *[some] * 6, *[spare] * 3, too_many])
    usual = ["never"] if executor == "replay" else ["sleep"]
    kinds = usual if draw.chance(0.5) else KINDS[executor]
    struck = {task: draw.pick(kinds) for task in draw.some(range(n), min(n, count))}
    if executor != "replay":  # a pool all of whose workers are held for ever runs nothing more
        held = [task for task, kind in struck.items() if kind == "never"]
        struck |= dict.fromkeys(held[2:], "raise")
    return Faults(struck, draw.pick([1, 1, 9]), seconds)


# --- workers whose results are wrong in ways that no Fault is ------------------------------------


def _with_lie(seed: int, leaf: np.ndarray) -> np.ndarray:
    """One entry is off: integers by one, others by a tenth of the largest or more."""
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
    """Replay of tasks that never report, and of workers whose results are odd."""

    def __init__(self, faults: Faults, seed: int) -> None:
        super().__init__(faults.seconds | dict.fromkeys(faults.of("never"), math.inf))
        self._odd, self._seed = faults.struck, seed

    def altered(self, outcome: Outcome) -> Outcome:
        change = ODD.get(self._odd.get(outcome.task, ""))
        if outcome.failure is not None or change is None:
            return outcome
        found = outcome._replace(leaves=[change(self._seed + outcome.task, leaf) for leaf in outcome.leaves])
        own = outcome.unpadded_result
        if own is None or change is _longer:  # what has another shape is told by the block with its padding
            return found
        leaves = [change(self._seed + outcome.task, leaf) for leaf in own.leaves]
        return found._replace(unpadded_result=own._replace(leaves=leaves))


# --- executors ----------------------------------------------------------------------------------

OPEN: dict[str, Callable[[], Any]] = {
    "threads": partial(ThreadPoolExecutor, 4),
    "processes": lambda: ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("forkserver")),
    "pool": partial(Pool, workers=4),
}


class Pools:
    """The pools of a worker process: opened when needed."""

    def __init__(self) -> None:
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()
        self.close = self._stack.close

    def pool(self, kind: str) -> Any:
        if kind not in self._open:
            self._open[kind] = self._stack.enter_context(OPEN[kind]())
        return self._open[kind]

    def executor(self, kind: str, faults: Faults, seed: int) -> FaultyExecutor:
        """An executor of this kind on which tasks fare so."""
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
