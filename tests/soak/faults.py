"""Executors on which tasks fare as a case says."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from plain import AlteringReplay

from polarmap import Fault, FaultyExecutor, Pool
from polarmap.errors import NotDecodableError, PolarmapError
from polarmap.executors.base import Outcome
from soak.draws import Draw

SHARES = {"replay": 900, "threads": 40, "pool": 50, "processes": 8, "localhost": 2}
KINDS = {
    "replay": ["never", "raise", "exit", "kill", "garbage", "lie", "shape", "nan"],
    "threads": ["sleep", "raise", "garbage"],
    "pool": ["sleep", "raise", "exit", "kill", "garbage", "never"],
    "processes": ["sleep", "raise", "garbage", "never"],  # one that dies takes all tasks with it
    "localhost": ["sleep", "raise", "exit", "kill", "garbage", "never"],
}
DECEIVING = {"garbage", "lie", "nan"}  # reports a result, which is wrong
SECONDS = 1.5  # of a sleep, for real


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

    def lost(self, retries: int) -> set[int]:
        """The tasks that never give a right result."""
        gone = {"never", "shape"} | DECEIVING
        gone |= {"raise", "exit", "kill"} if self.attempts > retries else set()
        return {task for task, kind in self.struck.items() if kind in gone}

    def raises_everywhere(self, n: int, spare: int) -> bool:
        """Whether the first tasks to end may all raise, and are more than may be missing."""
        return sum(kind == "raise" for kind in self.struck.values()) > max(spare, n // 4, 1)

    def outvotes(self, needed: int) -> bool:
        """Whether results of another shape may be the most that have arrived when so many are needed."""
        return sum(kind == "shape" for kind in self.struck.values()) >= needed

    @property
    def misleading(self) -> set[int]:
        """Workers that report something else than f gives."""
        return {task for task, kind in self.struck.items() if kind in DECEIVING | {"shape"}}

    @property
    def deceiving(self) -> set[int]:
        return {task for task, kind in self.struck.items() if kind in DECEIVING}


def draw_faults(draw: Draw, executor: str, n: int, spare: int) -> Faults:
    """No faults, as many as the code bears, or more."""
    seconds = {}
    if executor == "replay":
        times = draw.stream.permutation(np.linspace(1, 2, n)) if draw.chance(0.8) else np.ones(n)
        seconds = {task: float(one) for task, one in enumerate(times)}
    count = draw.pick({"none": 3, "some": 6, "all spare": 3, "too many": 1})
    counts = {
        "none": 0,
        "some": draw.number(0, spare),
        "all spare": spare,
        "too many": spare + draw.number(1, 2),
    }
    usual = ["never"] if executor == "replay" else ["sleep"]
    kinds = usual if draw.chance(0.5) else KINDS[executor]
    struck = {task: draw.pick(kinds) for task in draw.some(range(n), min(n, counts[count]))}
    if executor != "replay":  # a pool all of whose workers are held for ever runs nothing more
        held = [task for task, kind in struck.items() if kind == "never"]
        struck |= dict.fromkeys(held[2:], "raise")
    return Faults(struck, draw.pick([1, 1, 9]), seconds)


class OddReplay(AlteringReplay):
    """Replay with workers whose results are wrong in ways that no Fault is."""

    def __init__(self, faults: Faults, seed: int) -> None:
        never = {task: math.inf for task, kind in faults.struck.items() if kind == "never"}
        super().__init__(faults.seconds | never)
        self._odd, self._seed = faults.struck, seed

    def altered(self, outcome: Outcome) -> Outcome:
        kind = self._odd.get(outcome.task)
        if outcome.leaves is None or kind not in ("lie", "shape", "nan"):
            return outcome
        change = {"lie": partial(_with_lie, self._seed + outcome.task), "shape": _longer, "nan": _with_nan}[
            kind
        ]
        return outcome._replace(leaves=[change(leaf) for leaf in outcome.leaves])


def _with_lie(seed: int, leaf: np.ndarray) -> np.ndarray:
    """One entry is off: integers by one, others by a tenth of the largest or more."""
    flat = leaf.reshape(-1).copy()
    if leaf.size and leaf.dtype.kind in "iu":
        flat[seed % leaf.size] ^= 1
    elif leaf.size:
        flat[seed % leaf.size] += (0.1 + seed % 7) * (np.abs(flat).max() or 1)
    return flat.reshape(leaf.shape)


def _longer(leaf: np.ndarray) -> np.ndarray:
    return np.concatenate([leaf.reshape(-1), leaf.reshape(-1), np.zeros(1, leaf.dtype)])


def _with_nan(leaf: np.ndarray) -> np.ndarray:
    leaf = leaf.copy()
    if leaf.size and leaf.dtype.kind in "fc":
        leaf.reshape(-1)[-1] = np.nan
    return leaf


class Pools:
    """The pools of a worker process: opened when needed."""

    def __init__(self) -> None:
        self._open: dict[str, Any] = {}

    def executor(self, kind: str, faults: Faults | None, seed: int) -> Any:
        """An executor of this kind on which tasks fare so."""
        if faults is None:
            return self._pool(kind)
        if kind == "replay":
            struck = {
                t: one for t, one in faults.struck.items() if one in ("raise", "exit", "kill", "garbage")
            }
            return FaultyExecutor(OddReplay(faults, seed), self._injected(struck, faults.attempts))
        inner = "localhost" if kind == "localhost" else self._pool(kind)
        return FaultyExecutor(inner, self._injected(faults.struck, faults.attempts))

    def close(self) -> None:
        for pool in self._open.values():
            _end(pool)
        self._open.clear()

    def _pool(self, kind: str) -> Any:
        if kind not in self._open:
            self._open[kind] = OPEN[kind]()
        return self._open[kind]

    def _injected(self, struck: dict[int, str], attempts: int) -> dict[int, Fault]:
        seconds = {"sleep": SECONDS, "never": 600.0}
        name = {"never": "sleep"}
        return {
            task: Fault(name.get(kind, kind), seconds.get(kind, 0.0), attempts)
            for task, kind in struck.items()
        }


def _processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("forkserver"))


def _end(pool: Any) -> None:
    if isinstance(pool, Pool):
        pool.close()
    else:
        pool.shutdown(cancel_futures=True)


OPEN: dict[str, Callable[[], Any]] = {
    "threads": lambda: ThreadPoolExecutor(4),
    "processes": _processes,
    "pool": lambda: Pool(workers=4),
}


def judged(error: Exception) -> PolarmapError:
    """An error of a map; what f or a fault raised everywhere counts as too few results."""
    if isinstance(error, PolarmapError):
        return error
    notes = [note for note in getattr(error, "__notes__", ()) if note.endswith(" raised this")]
    if notes:
        return NotDecodableError(f"{type(error).__name__}: {error} ({notes[-1]})")
    raise error
