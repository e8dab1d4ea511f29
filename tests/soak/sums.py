"""Compare coded_sum and hedged_map, which accept any function, with numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from plain import leaves

import polarmap
from polarmap.errors import PolarmapError
from soak import oracle
from soak.draws import Draw
from soak.faults import PATIENCE, Faults, Pools, draw_faults
from soak.functions import OF_ANY_ROWS, Function, draw_function
from soak.oracle import SHORT, Finding


@dataclass
class SumCase:
    """A sum of f over parts, or a hedged map if the options have no `tolerate`."""

    seed: int
    executor: str
    f: Function
    data: Any
    parts: list[np.ndarray]
    options: dict[str, Any]
    faults: Faults

    def __str__(self) -> str:
        subject = "hedged map" if self.tolerate is None else "sum"
        part = f"{self.parts[0].dtype.str}{list(self.parts[0].shape)}"
        parts = f"{len(self.parts)} parts, {part}"
        return f"{subject} of {self.f.name} over {parts}\n  {self.options}\n  {self.faults}"

    @property
    def tolerate(self) -> int | None:
        return self.options.get("tolerate")

    def run(self, pools: Pools) -> str:
        executor = pools.executor(self.executor, self.faults, self.seed)
        try:
            with np.errstate(all="ignore"):
                expected = [self.f.call(part) for part in self.parts]
        except ValueError:
            return "f raises"
        verb = polarmap.hedged_map if self.tolerate is None else polarmap.coded_sum
        result, error, _ = oracle.called(
            lambda: verb(self.f.call, self.data, executor=executor, **self.options)
        )
        if error is not None:
            return oracle.excused(error, self._reasons(error, expected))
        return (
            self._judge_list(result, expected) if self.tolerate is None else self._judge_sum(result, expected)
        )

    def _judge_list(self, results: Any, expected: list[Any]) -> str:
        """Check the results of a hedged map; the order of additions depends on the position of a part."""
        for index, (result, wanted) in enumerate(zip(results, expected, strict=True)):
            if index not in self.faults.misleading:
                allowed = [
                    100 * oracle.epsilon(np.asarray(leaf).dtype) * oracle.largest(leaf)
                    for leaf in leaves(wanted)
                ]
                oracle.check_close(result, wanted, allowed, f"result {index}")
        return "right"

    def _judge_sum(self, result: Any, expected: list[Any]) -> str:
        report, faults = result.report, self.faults
        is_unchecked = report.verified == "no" or bool(report.unchecked) or report.residual is not None
        for place, number in zip(zip(*map(leaves, expected)), leaves(result.value), strict=True):
            try:
                _check_sum(np.asarray(number), list(place), report.amplification, report.error_bound)
            except Finding:
                if faults.outvotes(1) or (faults.deceiving and is_unchecked):
                    return oracle.TRUSTED_WRONG
                raise
        return f"right ({report.verified})"

    def _reasons(self, error: PolarmapError, expected: list[Any]) -> list[tuple[bool, str, Sequence[str]]]:
        """Return which errors are excused, and why."""
        faults, tolerate = self.faults, self.tolerate or 0
        everywhere = faults.raises_everywhere(len(self.parts), tolerate) and "fails everywhere" in str(error)
        numbers = [leaf for one in expected for leaf in leaves(one)]
        return [
            (bool(faults.deceiving) or faults.outvotes(1), "garbage", SHORT),
            (len(faults.lost(self.options)) > tolerate, "too many lost", SHORT),
            (everywhere, "raised everywhere", SHORT),
            (not all(map(oracle.is_finite, numbers)), "NaN or inf", [*SHORT, "CodeError", "NotLinearError"]),
        ]


def _check_sum(result: np.ndarray, terms: list[Any], amplification: float, bound: float) -> None:
    terms = [np.asarray(term) for term in terms]
    exact = result.dtype.kind in "iu"
    with np.errstate(all="ignore"):
        whole = sum(terms[1:], terms[0]) if exact else sum(term.astype(np.clongdouble) for term in terms)
    if result.shape != np.shape(whole):
        raise Finding("wrong structure", f"a sum of shape {result.shape}, not {np.shape(whole)}")
    if exact:
        oracle.check_equal(result, np.asarray(whole).astype(result.dtype), "the sum")
        return
    coarse = max(oracle.epsilon(term.dtype) for term in terms) or float(np.finfo(float).eps)
    scale = sum(map(oracle.largest, terms))
    allowed = oracle.SLACK * (coarse * max(1.0, amplification) + bound) * scale
    off = float(np.abs(result.astype(np.clongdouble) - whole).max(initial=0))
    if off > allowed:
        raise Finding("wrong number", f"the sum is off by {off:.3g}, allowed {allowed:.3g}")


def draw_sum(draw: Draw, executor: str) -> SumCase:
    n = draw.number(2, 6 if executor != "replay" else 12)
    tolerate = draw.number(0 if draw.chance(0.1) else 1, max(1, min(3, n - 1)))
    return _drawn(draw, executor, n, {"tolerate": tolerate, "tasks": n}, tolerate)


def draw_hedged(draw: Draw, executor: str) -> SumCase:
    k = draw.number(1, 6 if executor != "replay" else 12)
    return _drawn(draw, executor, k, {"blocks": k}, 1)


def _drawn(draw: Draw, executor: str, count: int, options: dict[str, Any], spare: int) -> SumCase:
    dtype = draw.dtype()
    inner = tuple(draw.number(1, 3) for _ in range(draw.number(0, 2)))
    options |= {"timeout": PATIENCE[executor], "progress": False}
    faults = draw_faults(draw, executor, count, spare)
    if draw.chance(0.4):
        data, _ = draw.laid_out(draw.values((count + draw.number(0, 9), *inner), dtype))
        edges = [len(data) * turn // count for turn in range(count + 1)]
        parts = [np.array(data[low:high], order="C") for low, high in pairwise(edges)]
        f = draw.pick(OF_ANY_ROWS)
    else:
        data = parts = [draw.values((2, *inner), dtype) for _ in range(count)]
        f = draw_function(draw, parts[0].shape, dtype)
    return SumCase(draw.seed, executor, f, data, parts, options, faults)
