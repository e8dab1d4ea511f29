"""coded_sum and hedged_map, which take any function, against numpy."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from plain import leaves

import polarmap
from polarmap.errors import PolarmapError
from polarmap.run.trusted import TRUSTED
from soak import functions, oracle
from soak.draws import Draw
from soak.faults import Faults, Pools, draw_faults, judged
from soak.functions import Function, draw_function
from soak.maps import PATIENCE, check_warnings, is_finite
from soak.oracle import Finding

OF_ANY_ROWS = [
    Function("sum", functions.total),
    Function("sum over rows", functions.over_rows),
    Function("energy", functions.energy),
    Function("largest of each column", functions.largest),
]


@dataclass
class SumCase:
    """A sum of f over parts, or, with `tolerate` None, a hedged map."""

    seed: int
    executor: str
    f: Function
    data: Any
    parts: list[np.ndarray]
    options: dict[str, Any]
    faults: Faults

    def __str__(self) -> str:
        what = "hedged map" if self.tolerate is None else "sum"
        part = f"{self.parts[0].dtype.str}{list(self.parts[0].shape)}"
        return (
            f"{what} of {self.f.name} over {len(self.parts)} parts, {part}\n  {self.options}\n  {self.faults}"
        )

    @property
    def tolerate(self) -> int | None:
        return self.options.get("tolerate")

    def run(self, pools: Pools) -> str:
        TRUSTED.clear()
        executor = pools.executor(self.executor, self.faults, self.seed)
        try:
            with np.errstate(all="ignore"):
                expected = [self.f.call(part) for part in self.parts]
        except ValueError:
            return "f raises"
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                verdict = (
                    self._hedged(executor, expected)
                    if self.tolerate is None
                    else self._summed(executor, expected)
                )
            except Exception as error:
                return self._judge_error(judged(error), expected)
        check_warnings(told)
        return verdict

    def _hedged(self, executor: Any, expected: list[Any]) -> str:
        result = polarmap.hedged_map(self.f.call, self.data, executor=executor, **self.options)
        for index, (one, wanted) in enumerate(zip(result, expected, strict=True)):
            if self.faults.struck.get(index) not in ("shape", "nan", "lie", "garbage"):
                self._check(one, wanted, f"result {index}")
        return "right"

    def _check(self, found: Any, wanted: Any, what: str) -> None:
        """The order in which numbers are added up depends on where a part lies."""
        roundings = [
            100 * oracle.epsilon(np.asarray(leaf).dtype) * oracle.largest(leaf) for leaf in leaves(wanted)
        ]
        oracle.check_close(found, wanted, roundings, what)

    def _summed(self, executor: Any, expected: list[Any]) -> str:
        found = polarmap.coded_sum(self.f.call, self.data, executor=executor, **self.options)
        numbers, report = leaves(found.value), found.report
        for place, number in zip(zip(*map(leaves, expected)), numbers, strict=True):
            try:
                _check_sum(np.asarray(number), list(place), report.amplification, report.error_bound)
            except Finding:
                if self.faults.outvotes(1):
                    return "wrong, and trusted to be right"
                if self.faults.deceiving and (
                    report.verified == "no" or report.unchecked or report.residual is not None
                ):
                    return "wrong, and trusted to be right"
                raise
        return f"right ({report.verified})"

    def _judge_error(self, error: PolarmapError, expected: list[Any]) -> str:
        name, lost = type(error).__name__, self.faults.lost(int(self.options.get("retries", 1)))
        late = name in ("NotDecodableError", "CodedTimeoutError")
        if (self.faults.deceiving or self.faults.outvotes(1)) and late:
            return f"{name}: garbage"
        if late and len(lost) > (self.tolerate or 0):
            return f"{name}: too many lost"
        everywhere = self.faults.raises_everywhere(len(self.parts), self.tolerate or 0)
        if everywhere and "fails everywhere" in str(error):
            return f"{name}: raised everywhere"
        if not all(is_finite(leaf) for one in expected for leaf in leaves(one)):
            return f"{name}: NaN or inf"
        raise Finding("innocent failure", f"{name}: {error}") from error


def _check_sum(found: np.ndarray, terms: list[Any], amplification: float, bound: float) -> None:
    terms = [np.asarray(term) for term in terms]
    exact = found.dtype.kind in "iu"
    with np.errstate(all="ignore"):
        whole = sum(terms[1:], terms[0]) if exact else sum(term.astype(np.clongdouble) for term in terms)
    if found.shape != np.shape(whole):
        raise Finding("wrong structure", f"a sum of shape {found.shape}, not {np.shape(whole)}")
    if exact:
        oracle.check_equal(found, np.asarray(whole).astype(found.dtype), "the sum")
        return
    coarse = max(oracle.epsilon(term.dtype) for term in terms) or float(np.finfo(float).eps)
    scale = sum(map(oracle.largest, terms))
    allowed = oracle.SLACK * (coarse * max(1.0, amplification) + bound) * scale
    off = float(np.abs(found.astype(np.clongdouble) - whole).max(initial=0))
    if off > allowed:
        raise Finding("wrong number", f"the sum is off by {off:.3g}, allowed {allowed:.3g}")


def _drawn(seed: int, executor: str, draw: Draw, count: int, options: dict[str, Any], spare: int) -> SumCase:
    dtype = draw.dtype()
    inner = tuple(draw.number(1, 3) for _ in range(draw.number(0, 2)))
    options |= {"timeout": PATIENCE[executor], "progress": False}
    faults = draw_faults(draw, executor, count, spare)
    if draw.chance(0.4):
        data, _ = draw.laid_out(draw.values((count + draw.number(0, 9), *inner), dtype))
        edges = [len(data) * turn // count for turn in range(count + 1)]
        parts = [np.array(data[low:high], order="C") for low, high in pairwise(edges)]
        return SumCase(seed, executor, draw.pick(OF_ANY_ROWS), data, parts, options, faults)
    parts = [draw.values((2, *inner), dtype) for _ in range(count)]
    f = draw_function(draw, parts[0].shape, dtype)
    return SumCase(seed, executor, f, parts, parts, options, faults)


def draw_sum(seed: int, executor: str, draw: Draw) -> SumCase:
    n = draw.number(2, 6 if executor != "replay" else 12)
    tolerate = draw.number(0 if draw.chance(0.1) else 1, max(1, min(3, n - 1)))
    return _drawn(seed, executor, draw, n, {"tolerate": tolerate, "workers": n}, tolerate)


def draw_hedged(seed: int, executor: str, draw: Draw) -> SumCase:
    k = draw.number(1, 6 if executor != "replay" else 12)
    return _drawn(seed, executor, draw, k, {"blocks": k}, 1)
