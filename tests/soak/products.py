"""Compare coded_matmul, coded_gram and CodedOperator with numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import polarmap
from polarmap.codes import PolarCode
from polarmap.errors import PolarmapError
from polarmap.report import Report
from soak import oracle
from soak.draws import Draw
from soak.faults import PATIENCE, Faults, Pools, draw_faults
from soak.oracle import SHORT, SLACK, Finding


@dataclass
class ProductCase:
    """A product with its factors, options and faults.

    Attributes
    ----------
    code : PolarCode | None
        The code of the factor that is coded, or None if both are.
    """

    seed: int
    executor: str
    method: str
    left: np.ndarray
    right: np.ndarray
    options: dict[str, Any]
    faults: Faults
    code: PolarCode | None

    def __str__(self) -> str:
        sides = " @ ".join(f"{one.dtype.str}{list(one.shape)}" for one in (self.left, self.right))
        return f"{self.method}: {sides}\n  {self.options}\n  {self.faults}"

    def run(self, pools: Pools) -> str:
        executor = pools.executor(self.executor, self.faults, self.seed)
        product, error, _ = oracle.called(lambda: self._product(executor))
        if error is not None:
            return oracle.excused(error, self._reasons(error))
        result, report = product
        try:
            self._compare(result, report)
        except Finding:
            if self._is_trusted(report):
                return oracle.TRUSTED_WRONG
            raise
        return f"right ({report.verified})"

    def _is_trusted(self, report: Report) -> bool:
        """Return whether no check need have seen wrong results, since equations of integers are sparse."""
        if self.faults.outvotes(report.k):
            return True
        sparse = "arikan" in report.code
        unseen = report.verified in ("no", "earlier", "not needed") or bool(report.unchecked) or sparse
        return bool(self.faults.deceiving) and (unseen or report.k == 1)

    def _product(self, executor: Any) -> tuple[np.ndarray, Report]:
        if self.method == "gram":
            return polarmap.coded_gram(self.left, self._weights, executor=executor, **self.options)
        if self.method.startswith("operator"):
            with polarmap.CodedOperator(self.left, executor=executor, **self.options) as operator:
                result = operator.rmatmat(self.right) if self.method.endswith("'") else operator @ self.right
                assert operator.report is not None
                return result, operator.report
        options = self.options | {"method": self.method, "executor": executor}
        return polarmap.coded_matmul(self.left, self.right, **options)

    @property
    def _weights(self) -> np.ndarray | None:
        return self.right if self.method == "gram" and self.right.ndim == 1 else None

    def _wanted(self) -> np.ndarray:
        left, right = (one.astype(one.dtype.newbyteorder("=")) for one in (self.left, self.right))
        if self.method == "gram":
            right = left if self._weights is None else right[:, None] * left
        with np.errstate(all="ignore"):
            return np.asarray((left.conj().T if self.method in ("gram", "operator'") else left) @ right)

    def _compare(self, result: np.ndarray, report: Report) -> None:
        expected = self._wanted()
        length = self.left.shape[0 if self.method in ("gram", "operator'") else 1]
        sizes = oracle.largest(self.left) * oracle.largest(self.left if self.method == "gram" else self.right)
        if self._weights is not None:
            sizes *= oracle.largest(self._weights)
        coarse = max(map(oracle.epsilon, (expected.dtype, self.left.dtype, self.right.dtype)))
        scale = coarse * length * sizes * max(1.0, report.amplification)
        allowed = SLACK * (scale + report.error_bound * oracle.largest(expected))
        oracle.check_close(result, expected, [allowed], "the product")

    def _reasons(self, error: PolarmapError) -> list[tuple[bool, str, Sequence[str]]]:
        """Return which errors are excused, and why."""
        wide = any(one.dtype.kind in "iu" and one.dtype.itemsize == 8 for one in (self.left, self.right))
        mixed = np.result_type(self.left.dtype, self.right.dtype).kind not in "iu"
        misled = bool(self.faults.deceiving) or self.faults.outvotes(1)
        everywhere = self.faults.raises_everywhere(1, 1) and "fails everywhere" in str(error)
        infinite = not np.isfinite(self._wanted()).all() or self._may_overflow()
        return [
            (wide and mixed, "64-bit integers into floats", ["CodeError"]),
            (misled, "garbage", [*SHORT, "NotLinearError"]),
            (not self._must_bear(), "too many lost", SHORT),
            (everywhere, "raised everywhere", SHORT),
            (infinite, "NaN or inf", [*SHORT, "NotLinearError", "CodeError"]),
        ]

    def _may_overflow(self) -> bool:
        """Return whether a product of parity blocks may exceed half precision."""
        return bool(self._wanted().dtype == np.float16 and oracle.largest(self._wanted()) > 2000)

    def _must_bear(self) -> bool:
        lost = self.faults.lost(self.options)
        if self.code is None:  # With integers, a line of the grid may need the lost block itself.
            return not lost or (len(lost) == 1 and self.left.dtype.kind not in "iu")
        return oracle.is_determined(self.code, lost)


def _code_of(method: str, length: int, k: int, n: int, kernel: str) -> PolarCode:
    """Return the code of a factor of this length, with fewer than k blocks if some would be empty."""
    filled = max(count for count in range(1, k + 1) if math.ceil(length / math.ceil(length / count)) == count)
    if method.startswith("operator"):  # The share of parity stays the same.
        n = filled + math.ceil((n - k) * filled / k)
    return PolarCode(n, filled, kernel=kernel)


def draw_product(draw: Draw, executor: str) -> ProductCase:
    method = draw.pick({"rows": 3, "columns": 2, "grid": 3, "gram": 3, "operator": 2, "operator'": 1})
    if executor == "localhost" or (executor == "processes" and draw.chance(0.5)):
        method = "rows"
    m, length, n = draw.number(4, 9), draw.number(2, 9), draw.number(4, 9)
    dtype = draw.dtype()
    other_dtype = dtype if draw.chance(0.7) else draw.dtype()
    left, _ = draw.laid_out(draw.values((m, length), dtype))
    code = None
    if method == "gram":
        k = draw.number(1, min(4, length))
        workers = k + draw.number(1, 2)
        real = draw.values((m,), np.dtype("f8") if dtype.kind == "c" else other_dtype)
        right = real if draw.chance(0.5) and real.dtype.kind != "c" else np.empty((0, 0), dtype)
        exact = dtype.kind in "iu" and right.dtype.kind in "iu"
        tasks, spare = workers * workers if exact else workers * (workers + 1) // 2, 1
    elif method == "grid":
        right, _ = draw.laid_out(draw.values((length, n), other_dtype))
        k = draw.number(1, 4), draw.number(1, 4)
        workers = k[0] + draw.number(1, 2), k[1] + draw.number(1, 2)
        tasks, spare = workers[0] * workers[1], 1
    else:
        right, _ = draw.laid_out(draw.values((m if method == "operator'" else length, n), other_dtype))
        long = {"rows": m, "columns": n, "operator": m, "operator'": length}[method]
        k = draw.number(1, long)
        spare = draw.number(1, 4)
        coded = other_dtype if method == "columns" else dtype
        workers = tasks = k + spare
        code = _code_of(method, long, k, tasks, "arikan" if coded.kind in "iu" else "rotation")
    options = {"timeout": PATIENCE[executor], "blocks": k, "tasks": workers}
    if draw.chance(0.3):
        options["verify"] = True
    faults = draw_faults(draw, executor, tasks, spare)
    return ProductCase(draw.seed, executor, method, left, right, options, faults, code)
