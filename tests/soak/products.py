"""coded_matmul, coded_gram and CodedOperator against numpy."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

import polarmap
from polarmap import PolarCode
from polarmap.errors import CodeError, PolarmapError
from polarmap.report import Report
from polarmap.run.trusted import TRUSTED
from soak import oracle
from soak.draws import Draw
from soak.faults import Faults, Pools, draw_faults, judged
from soak.maps import PATIENCE, check_warnings, rank_mod_2
from soak.oracle import SLACK, Finding


@dataclass
class ProductCase:
    """One product; `code` is that of the one factor that is coded, None where both are."""

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
        TRUSTED.clear()
        executor = pools.executor(self.executor, self.faults, self.seed)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                found, report = self._product(executor)
            except Exception as error:
                return self._judge_error(judged(error))
        check_warnings(told)
        try:
            self._compare(found, report)
        except Finding:
            if self._is_trusted(report):
                return "wrong, and trusted to be right"
            raise
        return f"right ({report.verified})"

    def _is_trusted(self, report: Report) -> bool:
        """Whether no check need have seen the results of these workers; equations of integers are sparse."""
        if self.faults.outvotes(report.k):
            return True
        sparse = "arikan" in report.code
        unseen = report.verified in ("no", "earlier", "not needed") or bool(report.unchecked) or sparse
        return bool(self.faults.deceiving) and (unseen or report.k == 1)

    def _product(self, executor: Any) -> tuple[np.ndarray, Report]:
        if self.method == "gram":
            weights = None if self.right.ndim != 1 else self.right
            return polarmap.coded_gram(self.left, weights, executor=executor, **self.options)
        if self.method.startswith("operator"):
            with polarmap.CodedOperator(self.left, executor=executor, **self.options) as operator:
                found = operator.rmatmat(self.right) if self.method.endswith("'") else operator @ self.right
                assert operator.report is not None
                return found, operator.report
        options = self.options | {"method": self.method, "executor": executor}
        return polarmap.coded_matmul(self.left, self.right, **options)

    def _wanted(self) -> np.ndarray:
        left, right = (one.astype(one.dtype.newbyteorder("=")) for one in (self.left, self.right))
        with np.errstate(all="ignore"):
            if self.method == "gram":
                weighted = left if right.ndim != 1 else right[:, None] * left
                return np.asarray(left.conj().T @ weighted)
            if self.method == "operator'":
                return np.asarray(left.conj().T @ right)
            return np.asarray(left @ right)

    def _compare(self, found: np.ndarray, report: Report) -> None:
        wanted = self._wanted()
        length = self.left.shape[0 if self.method in ("gram", "operator'") else 1]
        sizes = oracle.largest(self.left) * oracle.largest(self.left if self.method == "gram" else self.right)
        if self.method == "gram" and self.right.ndim == 1:
            sizes *= oracle.largest(self.right)
        coarse = max(map(oracle.epsilon, (wanted.dtype, self.left.dtype, self.right.dtype)))
        scale = coarse * length * sizes * max(1.0, report.amplification)
        allowed = SLACK * (scale + report.error_bound * oracle.largest(wanted))
        oracle.check_close(found, wanted, [allowed], "the product")

    def _judge_error(self, error: PolarmapError) -> str:
        name = type(error).__name__
        reasons = {}
        wide = any(one.dtype.kind in "iu" and one.dtype.itemsize == 8 for one in (self.left, self.right))
        mixed = np.result_type(self.left.dtype, self.right.dtype).kind not in "iu"
        if isinstance(error, CodeError) and wide and mixed:
            reasons[name] = "64-bit integers into floats"
        if (self.faults.deceiving or self.faults.outvotes(1)) and not isinstance(error, CodeError):
            reasons[name] = "garbage"
        if not self._must_bear() and name in ("NotDecodableError", "CodedTimeoutError"):
            reasons[name] = "too many lost"
        if self.faults.raises_everywhere(1, 1) and "fails everywhere" in str(error):
            reasons[name] = "raised everywhere"
        if not np.isfinite(self._wanted()).all() or self._may_overflow():
            reasons[name] = "NaN or inf"
        if name in reasons:
            return f"{name}: {reasons[name]}"
        raise Finding("innocent failure", f"{name}: {error}") from error

    def _may_overflow(self) -> bool:
        """Whether a product of parity blocks may be too large for half precision."""
        return bool(self._wanted().dtype == np.float16 and oracle.largest(self._wanted()) > 2000)

    def _must_bear(self) -> bool:
        lost = self.faults.lost(int(self.options.get("retries", 1)))
        if self.code is None:  # of integers, a line of the grid may need the very one that is lost
            return not lost or (len(lost) == 1 and self.left.dtype.kind not in "iu")
        if self.code.kernel == "rotation":
            return len(lost) <= self.code.n - self.code.k
        missing = [task for task in lost if task < self.code.k]
        rows = [task - self.code.k for task in range(self.code.k, self.code.n) if task not in lost]
        return rank_mod_2(self.code.coefficients[np.ix_(rows, missing)]) == len(missing)


def draw_product(seed: int, executor: str, draw: Draw) -> ProductCase:
    method = draw.pick({"rows": 3, "columns": 2, "grid": 3, "gram": 3, "operator": 2, "operator'": 1})
    if executor == "localhost" or (executor == "processes" and draw.chance(0.5)):
        method = "rows"
    m, length, n = draw.number(4, 9), draw.number(2, 9), draw.number(4, 9)
    dtype = draw.dtype()
    other = dtype if draw.chance(0.7) else draw.dtype()
    left, _ = draw.laid_out(draw.values((m, length), dtype))
    options: dict[str, Any] = {"timeout": PATIENCE[executor]}
    if draw.chance(0.3):
        options["verify"] = True
    exact = np.result_type(dtype, other).kind in "iu"
    if method == "gram":
        k = draw.number(1, min(4, length))
        n_a = k + draw.number(1, 2)
        real = draw.values((m,), np.dtype("f8") if dtype.kind == "c" else other)
        right = real if draw.chance(0.5) and real.dtype.kind != "c" else np.empty((0, 0), dtype)
        tasks = (
            n_a * n_a
            if dtype.kind in "iu" and np.result_type(dtype, right.dtype).kind in "iu"
            else n_a * (n_a + 1) // 2
        )
        options |= {"blocks": k, "workers": n_a}
        return ProductCase(
            seed, executor, method, left, right, options, draw_faults(draw, executor, tasks, 1), None
        )
    if method == "grid":
        right, _ = draw.laid_out(draw.values((length, n), other))
        k = draw.number(1, 4), draw.number(1, 4)
        sides = k[0] + draw.number(1, 2), k[1] + draw.number(1, 2)
        options |= {"blocks": k, "workers": sides}
        faults = draw_faults(draw, executor, sides[0] * sides[1], 1)
        return ProductCase(seed, executor, method, left, right, options, faults, None)
    side = {"rows": m, "columns": n, "operator": m, "operator'": length}[method]
    shape = (m, n) if method == "operator'" else (length, n)
    right, _ = draw.laid_out(draw.values(shape, other))
    k = draw.number(1, side)
    spare = draw.number(1, 4)
    coded = other if method == "columns" else dtype
    code = PolarCode(
        k + spare, k, kernel="arikan" if coded.kind in "iu" and (exact or coded.kind in "iu") else "rotation"
    )
    options |= {"blocks": k, "workers": k + spare}
    faults = draw_faults(draw, executor, k + spare, spare)
    return ProductCase(seed, executor, method, left, right, options, faults, code)
