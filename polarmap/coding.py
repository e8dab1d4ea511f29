"""Which blocks, and which code for them: what the caller left open is filled in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from polarmap import blocks as blocks_
from polarmap.blocks import Blocks
from polarmap.code.dtypes import default_rtol, epsilon, is_exact
from polarmap.code.evaluation import EvaluationCode, largest_k, largest_reliable_k, results_needed
from polarmap.code.polar import PolarCode
from polarmap.code.protocol import Code
from polarmap.code.uncoded import Uncoded
from polarmap.errors import CodeError
from polarmap.runtimes.planner import Plan


def of_plan(
    plan: Plan, blocks: int | None, workers: int | None, code: str | Code
) -> tuple[int, int, str | Code]:
    """Blocks, workers and code of a plan; CodeError where the caller asks for others too."""
    if not isinstance(plan, Plan):
        raise CodeError(f"plan must be a Plan as polarmap.plan returns it, not {type(plan).__name__}")
    for name, given, planned in (("blocks", blocks, plan.k), ("workers", workers, plan.n)):
        if given not in (None, planned):
            raise CodeError(f"{name}={given}, but the plan is for {planned}: leave {name} out, or plan again")
    if code != "auto":
        raise CodeError(f"the plan says which code: leave code={code!r} out")
    if plan.code == "uncoded":
        return plan.k, plan.n, Uncoded(plan.k)
    if plan.code == "rotation":
        return plan.k, plan.n, "auto"
    decoder = "sequential" if plan.code == "sequential" else "optimal"
    return plan.k, plan.n, PolarCode(plan.n, plan.k, "arikan", decoder)


def plan_code(
    data: Any,
    blocks: int | None,
    workers: int | None,
    code: str | Code = "auto",
    degree: int = 1,
    rtol: float | None = None,
) -> tuple[Blocks, Code]:
    """The blocks of the data and the code that carries them."""
    degree = blocks_.checked_count("degree", degree)
    if not isinstance(code, str):
        return _given(data, blocks, workers, code, degree)
    if code not in ("auto", "rotation", "arikan"):
        raise CodeError(f"code must be 'auto', 'rotation', 'arikan' or a PolarCode, not {code!r}")
    if degree > 1 and code != "auto":
        raise CodeError(f"the {code} kernel carries linear f only: with degree={degree} leave code out")
    if workers is not None:
        workers = blocks_.checked_count("workers", workers)
    if blocks is None and workers is not None and hasattr(data, "shape"):
        most = max(1, largest_k(3 * workers // 4, degree))
        blocks = min(most, data.shape[0] if data.shape and data.shape[0] else 1)
    cut = blocks_.cut(data, blocks)
    chosen = (
        _polar(cut.k, cut.dtypes, workers, code) if degree == 1 else _evaluation(cut, workers, degree, rtol)
    )
    for dtype in cut.dtypes:
        chosen.parity_dtype(dtype)
    return cut, chosen


def _given(
    data: Any, blocks: int | None, workers: int | None, code: Code, degree: int
) -> tuple[Blocks, Code]:
    """The blocks for a code of the caller's."""
    if not all(hasattr(code, part) for part in ("n", "k", "needed", "parity", "plan")):
        raise CodeError(f"code must be 'auto', 'rotation', 'arikan' or a PolarCode, not {code!r}")
    if degree != getattr(code, "degree", 1) and degree != 1:
        raise CodeError(f"{code!r} does not carry f of degree {degree}: leave one of them out")
    cut = blocks_.cut(data, code.k if blocks is None else blocks)
    _check_fit(code, cut.k, workers)
    return cut, code


def _check_fit(code: Code, k: int, workers: int | None) -> None:
    n = code.n if workers is None else blocks_.checked_count("workers", workers)
    if (code.n, code.k) != (n, k):
        raise CodeError(f"{code!r} does not fit {k} blocks on {n} workers")


def plan_rows(
    total: int, dtype: np.dtype[Any], blocks: int | None, workers: int | None, code: str | PolarCode
) -> PolarCode:
    """The code for an array of `total` rows that is not to be cut yet."""
    if workers is not None:
        workers = blocks_.checked_count("workers", workers)
    if blocks is not None:
        k = blocks_.checked_count("blocks", blocks)
    elif isinstance(code, PolarCode):
        k = code.k
    else:
        k = min(total, blocks_.DEFAULT_BLOCKS if workers is None else max(1, 3 * workers // 4))
    if k > total:
        raise CodeError(f"blocks={k} is more than the {total} rows of the data; use blocks <= {total}")
    if isinstance(code, PolarCode):
        _check_fit(code, k, workers)
        chosen = code
    elif code in ("auto", "rotation", "arikan"):
        chosen = _polar(k, [dtype], workers, code)
    else:
        raise CodeError(f"code must be 'auto', 'rotation', 'arikan' or a PolarCode, not {code!r}")
    chosen.parity_dtype(dtype)
    return chosen


def _polar(k: int, dtypes: Sequence[np.dtype[Any]], workers: int | None, kernel: str) -> PolarCode:
    n = k + math.ceil(k / 3) if workers is None else workers
    if kernel == "auto":
        kernel = "arikan" if any(is_exact(dtype) for dtype in dtypes) else "rotation"
    if n <= k:
        raise CodeError(f"workers={n} leaves no parity for {k} blocks: use workers > {k}")
    return PolarCode(n, k, kernel=kernel)


def _evaluation(cut: Blocks, workers: int | None, degree: int, rtol: float | None) -> EvaluationCode:
    needed = results_needed(cut.k, degree, "circle")
    n = needed + math.ceil(needed / 3) if workers is None else workers
    code = EvaluationCode(n, cut.k, degree)
    inexact = [dtype for dtype in cut.dtypes if not is_exact(dtype)]
    limits = [(default_rtol(one) if rtol is None else rtol) / epsilon(one) for one in inexact]
    limit = min(limits, default=np.inf)
    if not code.is_reliable(limit):
        lost = (n - code.needed + 1) // 2
        fits = largest_reliable_k(n, degree, limit)
        advice = f"blocks={fits} is the most that {n} workers carry" if fits else "raise rtol"
        raise CodeError(
            f"with {lost} of {n} workers missing, decoding f of degree {degree} on {cut.k} blocks "
            f"would multiply errors by {code.amplification(lost).ninety:.2g}, and rtol permits {limit:.2g}: "
            + advice
        )
    return code
