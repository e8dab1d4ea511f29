"""Compare maps of 1 to 200 rows with f of the rows; most do not divide evenly into blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from plain import cut_rows

import polarmap
from polarmap.codes import PolarCode
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from soak import oracle
from soak.draws import Draw
from soak.faults import Pools
from soak.oracle import Finding

MOST_ROWS = 200
ROUNDING = 1e-10  # Error of decoded results relative to the largest number.
COUNTS = (None, 2, 3, 6, 7, 13, 24, 32)  # Numbers of blocks.
WAYS = ("nothing lost", "first lost", "last lost once", "last late", "first and parity lost", "last never")


def _choose_lost_parity(k: int, n: int, dtype: np.dtype[Any]) -> int:
    """Return a parity task that may be lost together with task 0. Over the integers, not every one may.

    Return 0 if there is none.
    """
    if dtype.kind not in "iu":
        return k + 1
    code = PolarCode(n, k, kernel="arikan")
    for parity_task in range(k, n):
        arrived = np.ones(n, bool)
        arrived[[0, parity_task]] = False
        if code.is_decodable(arrived):
            return parity_task
    return 0


def means(block: Any) -> Any:
    return block.mean(axis=0)


def medians(block: Any) -> Any:
    return np.median(block, axis=0)


def sums(block: Any) -> Any:
    return block.sum(axis=0)


def each_row(block: Any) -> Any:
    return 3 * block - 1


def centred(block: Any) -> Any:
    return block - block.mean(axis=0)


LINEAR = {means: "zeros matter", sums: "decodable", each_row: "decodable", centred: "zeros matter"}
FUNCTIONS: tuple[Callable[[Any], Any], ...] = (*LINEAR, medians)


@dataclass
class RowsCase:
    """One number of rows: maps of all functions over several numbers of blocks, with and without losses."""

    seed: int
    total: int
    dtype: str
    counts: tuple[int | None, ...] = COUNTS

    def __str__(self) -> str:
        return f"{self.total} rows of {self.dtype}, {len(FUNCTIONS)} functions, blocks {self.counts}, {WAYS}"

    def run(self, pools: Pools) -> str:
        """Run all maps and return the verdict. Raise Finding for a wrong map."""
        stream = np.random.default_rng(self.seed)
        data = (10 * stream.standard_normal((self.total, 2)) + 30).astype(self.dtype)
        for k, f, way in self._maps():
            self._check(data, k, f, way)
        return "right"

    def _maps(self) -> Iterator[tuple[int | None, Callable[[Any], Any], str]]:
        for k, f, way in product(self.counts, FUNCTIONS, WAYS):
            if (k is None or k <= self.total) and (f in LINEAR or way == "nothing lost"):
                yield k, f, way

    def _check(self, data: np.ndarray, k: int | None, f: Callable[[Any], Any], way: str) -> None:
        """Compare one map with f of the rows of each block; an empty block must be refused."""
        is_filled = k is None or len(cut_rows(data, k)) == k
        result, error, messages = oracle.called(lambda: self._map(data, k, f, way))
        subject = f"{self.total} rows, {k} blocks, {f.__name__}, {way}"
        if not is_filled:
            if error is None or "empty" not in str(error):
                raise Finding("no error", f"{subject}: {result}")
            return
        if error is not None:
            is_awaited = way == "last never" and LINEAR.get(f) == "zeros matter"
            if is_awaited and type(error).__name__ in oracle.SHORT:
                return  # No case has evaluated f on these rows.
            raise Finding("innocent failure", f"{subject}: {type(error).__name__}: {error}") from error
        if messages:
            raise Finding("foreign warning", f"{subject}: {messages}")
        self._compare(data, f, result, subject)

    def _map(self, data: np.ndarray, k: int | None, f: Callable[[Any], Any], way: str) -> Any:
        """Run a map on a virtual clock on which tasks are lost in this way."""
        count, n_tasks = k or 0, 2 * (k or 0) + 2
        if k is None:
            report = polarmap.coded_map(each_row, data, executor=ReplayExecutor(), verify=False).report
            count, n_tasks = report.k, report.n
        last, seconds, faults = count - 1, {}, {}
        if way.startswith("first"):
            seconds[0] = math.inf
        if way == "first and parity lost":
            seconds[_choose_lost_parity(count, n_tasks, data.dtype)] = math.inf
        if way == "last lost once":
            faults[last] = Fault("kill")
        if way == "last late":
            faults[last] = Fault("sleep", 5000.0)
        if way == "last never":
            seconds[last] = math.inf
        executor = FaultyExecutor(ReplayExecutor(seconds), faults)
        options = {"blocks": count, "tasks": n_tasks} if k is not None else {}
        verify = "auto" if f in LINEAR else False
        return polarmap.coded_map(f, data, executor=executor, timeout=1000.0, verify=verify, **options)

    def _compare(self, data: np.ndarray, f: Callable[[Any], Any], result: Any, subject: str) -> None:
        expected = [f(block) for block in cut_rows(data, len(result))]
        if len(expected) != len(result):
            raise Finding("wrong structure", f"{subject}: {len(result)} results of {len(expected)} blocks")
        limit = [ROUNDING * max(map(oracle.largest, [data, *expected]))]
        for index, (actual, expected_result) in enumerate(zip(result, expected)):
            if index in result.report.recovered:
                oracle.check_close(actual, expected_result, limit, f"{subject}: result {index}")
            else:
                oracle.check_equal(actual, expected_result, f"{subject}: result {index}")


def draw_rows(draw: Draw, executor: str) -> RowsCase:
    total, dtype = draw.number(1, MOST_ROWS), draw.pick(["f8", "i8", "c16"])
    return RowsCase(draw.seed, total, dtype, (None, *draw.some(COUNTS[1:], 2)))
