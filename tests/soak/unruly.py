"""Functions that fork or map, maps of thousands of items, and checks of their results."""

from __future__ import annotations

import os
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
# Error relative to the largest number: decoding six blocks of eight amplifies errors little.
ROUNDING = 1e-12
CHILD_SECONDS = 0.3

# --- forks: a child that f leaves behind continues as if it were the worker ---------------------


def forked_then(child: str, number: int, item: Any) -> Any:
    """Return `number * item`, and leave a child of the worker behind whose later replies must be ignored."""
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
    """Successive calls on workers that an earlier call may have forked."""

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


# --- maps within maps ---------------------------------------------------------------------------


def inner_map(verb: str, block: Any) -> Any:
    """Return the sums of the block's rows, computed by a map that this worker starts."""
    options: dict[str, Any] = {"progress": False, "timeout": TIMEOUT}
    if verb == "coded_map":
        result = polarmap.coded_map(of_rows, block, blocks=2, tasks=3, **options)
        return np.asarray(result.concatenate())
    if verb == "submit":
        future = polarmap.submit(polarmap.coded_map, of_rows, block, blocks=2, tasks=3, **options)
        return np.asarray(future.result(TIMEOUT).concatenate())
    if verb == "hedged_map":
        return np.concatenate(list(polarmap.hedged_map(of_rows, block, blocks=2, **options)))
    parts = [np.where(np.arange(len(block))[:, None] == row, block, 0) for row in range(len(block))]
    return np.asarray(polarmap.coded_sum(of_rows, parts, tolerate=1, **options).value)


def of_rows(block: Any) -> Any:
    return block.sum(axis=1)


@dataclass
class NestedCase:
    """A map on workers of this process whose f starts another map."""

    outer: str
    inner: str
    data: np.ndarray

    def run(self, pools: Pools) -> str:
        f = partial(inner_map, self.inner)
        with polarmap.Pool(workers=2) as pool:
            if self.outer == "coded_map":
                check_coded(f, self.data, of_rows, executor=pool, blocks=2, tasks=3)
            else:
                results = hedged(f, self.data, pool, blocks=2)
                expected = [of_rows(part) for part in np.split(self.data, 2)]
                for result, wanted in zip(results, expected, strict=True):
                    oracle.check_close(result, wanted, [ROUNDING * oracle.largest(self.data)], "a nested map")
        return f"right ({self.inner} in {self.outer})"


def draw_nested(draw: Draw, executor: str) -> NestedCase:
    inner = draw.pick(["coded_map", "submit", "hedged_map", "coded_sum"])
    data = draw.stream.standard_normal((2 * draw.number(2, 4), draw.number(1, 4)))
    return NestedCase(draw.pick(["coded_map", "hedged_map"]), inner, data)


# --- many items ---------------------------------------------------------------------------------


def squared(item: int) -> int:
    return item * item


@dataclass
class ManyCase:
    """A map of thousands of small items."""

    verb: str
    count: int

    def run(self, pools: Pools) -> str:
        pool, items = pools.pool("pool"), range(self.count)
        if self.verb == "hedged_map":
            results = hedged(squared, items, pool)
        else:
            with polarmap.Executor(pool) as executor:
                results = list(executor.map(squared, items, timeout=TIMEOUT))
        check_all(results, map(squared, items), str(self))
        return f"right ({self})"


def draw_many(draw: Draw, executor: str) -> ManyCase:
    return ManyCase(draw.pick(["hedged_map", "Executor.map"]), draw.pick({300: 10, 1_000: 4, 10_000: 1}))


# --- maps and checks of their results -----------------------------------------------------------


def hedged(f: Callable[[Any], Any], items: Iterable[Any], pool: Any, **options: Any) -> Iterable[Any]:
    return polarmap.hedged_map(f, items, executor=pool, timeout=TIMEOUT, progress=False, **options)


def check_all(results: Iterable[Any], expected: Iterable[Any], subject: str) -> None:
    """Check that all results have arrived and equal the expected ones bit for bit."""
    results, expected = list(results), list(expected)
    if len(results) != len(expected):
        raise Finding("wrong structure", f"{subject} gave {len(results)} results, not {len(expected)}")
    for index, (result, wanted) in enumerate(zip(results, expected)):
        if result != wanted:
            raise Finding(
                "wrong number", f"result {index} of {subject} is {result!r:.100}, not {wanted!r:.100}"
            )


def check_coded(
    f: Callable[[Any], Any], A: np.ndarray, oracle_of: Callable[[Any], Any], **options: Any
) -> None:
    """Check a coded map of A against numpy, within the rounding of a decode."""
    options = {"blocks": 4, "tasks": 6, "timeout": TIMEOUT, "progress": False} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = polarmap.coded_map(f, A, **options).concatenate()
    wanted = oracle_of(A)
    allowed = ROUNDING * max(oracle.largest(A), oracle.largest(wanted))
    oracle.check_close(np.asarray(result), wanted, [allowed], "a coded map")
