"""Functions that do more than compute: no later call, of the same pool, may see what they did to a worker."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import polarmap
from soak import oracle
from soak.draws import Draw
from soak.faults import Pools
from soak.oracle import Finding

TIMEOUT = 100.0
ROUNDING = 1e-12  # times the largest number: decoding six blocks of eight multiplies errors little
CHILD_SECONDS = 0.3

# --- forks: a child that f leaves goes on as if it were the worker ------------------------------


def forked_then(child: str, number: int, item: Any) -> Any:
    """A number of this call and its item; what a child of the worker does later is nobody's result."""
    if os.fork() == 0:
        time.sleep(CHILD_SECONDS)
        if child == "exits":
            os._exit(0)
        if child == "raises":
            raise ValueError("of a child")
        return -1.0 if child == "answers something else" else number * item
    return number * item


@dataclass
class ForkCase:
    """Calls one after another, each by a worker that the one before may have forked."""

    verb: str
    child: str
    workers: int
    numbers: list[int]
    pauses: list[float]

    def run(self, pools: Pools) -> str:
        with polarmap.Pool(workers=self.workers) as pool:
            for number, pause in zip(self.numbers, self.pauses, strict=True):
                self._call(pool, number)
                time.sleep(pause)
        return f"right ({self.verb})"

    def _call(self, pool: Any, number: int) -> None:
        f = partial(forked_then, self.child, number)
        if self.verb == "call":
            with polarmap.Executor(pool, backups=0, retries=0) as executor:
                check_all([executor.submit(f, 7.0).result(TIMEOUT)], [number * 7.0], "a call")
        elif self.verb == "hedged":
            items = [1.0, 2.0, 3.0]
            check_all(hedged(f, items, pool), [number * item for item in items], "a hedged map")
        else:
            A = np.arange(24.0).reshape(12, 2) + number
            check_coded(f, A, lambda block: number * block, executor=pool)


def draw_forks(draw: Draw, executor: str) -> ForkCase:
    count = draw.number(2, 5)
    verb = draw.pick(["call", "hedged", "coded"])
    return ForkCase(
        verb,
        draw.pick(["answers", "answers something else", "exits", "raises"]),
        1 if verb == "call" else draw.number(2, 4),
        [draw.number(2, 99) for _ in range(count)],
        [float(draw.stream.uniform(0.0, 0.4)) for _ in range(count)],
    )


# --- damage: what f does to its process ends with it --------------------------------------------


def leak_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with contextlib.suppress(OSError):
        while True:
            os.open(os.devnull, os.O_RDONLY)


def ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)


def break_numpy() -> None:
    np.frombuffer = np.ndarray.sum = np.asarray = None  # type: ignore[assignment, misc]


def change_environment() -> None:
    os.environ["SOAK_MARK"] = "1"
    os.environ.pop("HOME", None)


DAMAGE: dict[str, Callable[[], Any]] = {
    "leaks descriptors": leak_descriptors,
    "closes descriptors": partial(os.closerange, 3, 256),
    "allows no memory": partial(resource.setrlimit, resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY)),
    "ignores signals": ignore_signals,
    "breaks numpy": break_numpy,
    "goes elsewhere": partial(os.chdir, "/"),
    "changes the environment": change_environment,
    "changes sys.path": lambda: sys.path.insert(0, "/soak-mark"),
    "lets numpy raise": partial(np.seterr, all="raise"),
}


def damaged(do: str, item: Any) -> Any:
    """The item, of a process that is not what it was."""
    DAMAGE[do]()
    return item


def state(item: Any) -> tuple[str, str | None, str | None, bool]:
    """What a function can see of its process, that is not its own."""
    return os.getcwd(), os.environ.get("HOME"), os.environ.get("SOAK_MARK"), "/soak-mark" in sys.path


@dataclass
class DamageCase:
    """A map whose f damages its workers, and maps after it on the same pool."""

    do: str
    workers: int
    items: int
    verbs: list[str]

    def run(self, pools: Pools) -> str:
        with polarmap.Pool(workers=self.workers) as pool:
            before = set(hedged(state, range(2 * self.workers), pool, retries=1))
            ended = self._damage(pool)
            for verb in self.verbs:
                self._honest(pool, verb)
            after = set(hedged(state, range(2 * self.workers), pool, retries=1))
        if after != before or len(before) != 1:
            raise Finding("traces of another f", f"{self.do}: {before} became {after}")
        return f"right after one that {self.do}, which {ended}"

    def _damage(self, pool: Any) -> str:
        """The damaging map itself may fail, but returns nothing wrong."""
        items = [float(one) for one in range(self.items)]
        try:
            found = hedged(partial(damaged, self.do), items, pool)
        except Exception as error:
            return f"raised {type(error).__name__}"
        check_all(found, items, "the damaging map")
        return "ended"

    def _honest(self, pool: Any, verb: str) -> None:
        if verb == "hedged":
            items = range(2 * self.workers)
            check_all(hedged(squared, items, pool, retries=1), map(squared, items), verb)
        else:
            A = np.arange(60.0).reshape(12, 5)
            check_coded(doubled, A, doubled, executor=pool)


def squared(item: int) -> int:
    return item * item


def doubled(block: Any) -> Any:
    return 2 * block


def draw_damage(draw: Draw, executor: str) -> DamageCase:
    verbs = [draw.pick(["hedged", "coded"]) for _ in range(draw.number(1, 3))]
    return DamageCase(draw.pick(list(DAMAGE)), draw.number(1, 4), draw.number(1, 8), verbs)


# --- maps within maps ---------------------------------------------------------------------------


def inner_map(verb: str, block: Any) -> Any:
    """The sums of the block's rows, by a map of this worker's own."""
    options: dict[str, Any] = {"progress": False, "timeout": TIMEOUT}
    if verb == "coded_map":
        result = polarmap.coded_map(of_rows, block, blocks=2, workers=3, **options)
        return np.asarray(result.concatenate())
    if verb == "submit":
        future = polarmap.submit(of_rows, block, blocks=2, workers=3, **options)
        return np.asarray(future.result(TIMEOUT).concatenate())
    if verb == "hedged_map":
        return np.concatenate(list(polarmap.hedged_map(of_rows, block, blocks=2, **options)))
    parts = [np.where(np.arange(len(block))[:, None] == row, block, 0) for row in range(len(block))]
    return np.asarray(polarmap.coded_sum(of_rows, parts, tolerate=1, **options).value)


def of_rows(block: Any) -> Any:
    return block.sum(axis=1)


@dataclass
class NestedCase:
    """A map on workers of this process whose f maps again."""

    outer: str
    inner: str
    data: np.ndarray

    def run(self, pools: Pools) -> str:
        f = partial(inner_map, self.inner)
        with polarmap.Pool(workers=2) as pool:
            if self.outer == "coded_map":
                check_coded(f, self.data, of_rows, executor=pool, blocks=2, workers=3)
            else:
                found = hedged(f, self.data, pool, blocks=2)
                expected = [of_rows(part) for part in np.split(self.data, 2)]
                for one, wanted in zip(found, expected, strict=True):
                    oracle.check_close(one, wanted, [ROUNDING * oracle.largest(self.data)], "a nested map")
        return f"right ({self.inner} in {self.outer})"


def draw_nested(draw: Draw, executor: str) -> NestedCase:
    inner = draw.pick(["coded_map", "submit", "hedged_map", "coded_sum"])
    data = draw.stream.standard_normal((2 * draw.number(2, 4), draw.number(1, 4)))
    return NestedCase(draw.pick(["coded_map", "hedged_map"]), inner, data)


# --- many items ---------------------------------------------------------------------------------


@dataclass
class ManyCase:
    """A map of thousands of small items."""

    verb: str
    count: int

    def run(self, pools: Pools) -> str:
        pool, items = pools.pool("pool"), range(self.count)
        if self.verb == "hedged_map":
            found = hedged(squared, items, pool)
        else:
            with polarmap.Executor(pool) as executor:
                found = list(executor.map(squared, items, timeout=TIMEOUT))
        check_all(found, map(squared, items), str(self))
        return f"right ({self})"


def draw_many(draw: Draw, executor: str) -> ManyCase:
    return ManyCase(draw.pick(["hedged_map", "Executor.map"]), draw.pick({300: 10, 1_000: 4, 10_000: 1}))


# --- maps and what they must give ---------------------------------------------------------------


def hedged(f: Callable[[Any], Any], items: Iterable[Any], pool: Any, **options: Any) -> Iterable[Any]:
    return polarmap.hedged_map(f, items, executor=pool, timeout=TIMEOUT, progress=False, **options)


def check_all(found: Iterable[Any], expected: Iterable[Any], what: str) -> None:
    """Each result, which has arrived, is its item's: bit for bit."""
    found, expected = list(found), list(expected)
    if len(found) != len(expected):
        raise Finding("wrong structure", f"{what} gave {len(found)} results, not {len(expected)}")
    for index, (one, wanted) in enumerate(zip(found, expected)):
        if one != wanted:
            raise Finding("wrong number", f"result {index} of {what} is {one!r:.100}, not {wanted!r:.100}")


def check_coded(
    f: Callable[[Any], Any], A: np.ndarray, oracle_of: Callable[[Any], Any], **options: Any
) -> None:
    """A coded map of A gives what numpy does, within the rounding of a decode."""
    options = {"blocks": 4, "workers": 6, "timeout": TIMEOUT, "progress": False} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = polarmap.coded_map(f, A, **options).concatenate()
    wanted = oracle_of(A)
    allowed = ROUNDING * max(oracle.largest(A), oracle.largest(wanted))
    oracle.check_close(np.asarray(found), wanted, [allowed], "a coded map")
