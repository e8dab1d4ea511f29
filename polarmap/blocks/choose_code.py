"""Which blocks, and which code for them: what the caller left open is filled in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from polarmap.blocks import equal as blocks_
from polarmap.blocks.equal import Blocks
from polarmap.code.arguments import is_number, is_one_of
from polarmap.code.base import Code
from polarmap.code.dtypes import default_rtol, epsilon, is_exact, is_integer
from polarmap.code.lagrange import LagrangeCode, largest_k, largest_reliable_k, recovery_threshold
from polarmap.code.masked import MaskedCode
from polarmap.code.polar import MAX_WORKERS, PolarCode
from polarmap.code.uncoded import Uncoded
from polarmap.errors import CodeError
from polarmap.planning.planner import Plan


def options_of_plan(
    plan: Plan, blocks: int | None, workers: int | None, code: str | Code
) -> tuple[int, int, str | Code]:
    """Blocks, workers and code of a plan; CodeError where the caller asks for others too."""
    if not isinstance(plan, Plan):
        raise CodeError(f"plan must be a Plan as polarmap.plan returns it, not {type(plan).__name__}")
    for name, given, planned in (("blocks", blocks, plan.k), ("workers", workers, plan.n)):
        if given is not None and not (is_integer(given) and given == planned):
            raise CodeError(f"{name}={given}, but the plan is for {planned}: leave {name} out, or plan again")
    if not is_one_of(code, ("auto",)):
        raise CodeError(f"the plan says which code: leave code={code!r} out")
    if plan.code == "uncoded":
        return plan.k, plan.n, Uncoded(plan.k)
    if plan.code == "rotation":
        return plan.k, plan.n, "auto"
    decoder = "sequential" if plan.code == "sequential" else "optimal"
    return plan.k, plan.n, PolarCode(plan.n, plan.k, "arikan", decoder)


DEFAULT_NOISE = 100.0


class CodeOptions(NamedTuple):
    """How the caller of coded_map wants data coded; see there."""

    blocks: int | None = None
    workers: int | None = None
    code: str | Code = "auto"
    degree: int = 1
    private: int = 0
    noise: float = DEFAULT_NOISE


def choose_code(data: Any, choice: CodeOptions, rtol: float | None = None) -> tuple[Blocks, Code]:
    """The blocks of the data and the code that carries them."""
    blocks, workers, code, *_ = choice
    degree = blocks_.checked_count("degree", choice.degree)
    _check_private(choice)
    if not isinstance(code, str):
        return _given(data, blocks, workers, code, degree)
    if code not in ("auto", "rotation", "arikan"):
        raise CodeError(f"code must be 'auto', 'rotation', 'arikan' or a PolarCode, not {code!r}")
    if degree > 1 and code != "auto":
        raise CodeError(f"the {code} kernel carries linear f only: with degree={degree} leave code out")
    if workers is not None:
        workers = blocks_.checked_count("workers", workers)
    if blocks is None and hasattr(data, "shape") and data.shape and data.shape[0]:
        blocks = _usual_count(int(data.shape[0]), workers, choice)
    cut = blocks_.cut(data, blocks)
    chosen = _chosen(cut, workers, choice)
    for dtype in cut.dtypes:
        chosen.parity_dtype(dtype)
    if not isinstance(chosen, PolarCode):
        _check_accuracy(chosen, cut, rtol)
    return cut, chosen


def _chosen(cut: Blocks, workers: int | None, choice: CodeOptions) -> PolarCode | LagrangeCode | MaskedCode:
    k, t, degree = cut.k, choice.private, choice.degree
    if t:
        return MaskedCode(_third_more(k + t) if workers is None else workers, k, t, choice.noise)
    if degree > 1:
        needed = recovery_threshold(k, degree, "circle")
        return LagrangeCode(_third_more(needed) if workers is None else workers, k, degree)
    return _polar(k, cut.dtypes, workers, str(choice.code))


def _usual_count(total: int, workers: int | None, choice: CodeOptions) -> int:
    """k for an array of so many rows: near 24, or as many as the workers carry."""
    if workers is None:
        plain = choice.degree == 1 and not choice.private  # others lose digits as k grows
        return blocks_.usual_count(total, blocks_.DEFAULT_BLOCKS, None if plain else blocks_.DEFAULT_BLOCKS)
    most = max(1, largest_k(3 * min(workers, MAX_WORKERS) // 4, choice.degree) - choice.private)
    return blocks_.usual_count(total, most, most)


def _third_more(needed: int) -> int:
    return needed + math.ceil(needed / 3)


def _check_private(choice: CodeOptions) -> None:
    t = choice.private
    if not is_integer(t) or t < 0:
        raise CodeError(f"private must be 0 or the number of workers that may collude, not {t!r}")
    if not is_number(choice.noise):
        raise CodeError(f"noise must be a positive number, not {choice.noise!r}")
    if not t and choice.noise != DEFAULT_NOISE:
        raise CodeError("noise= masks data from workers that may collude: say how many with private=")
    if t and (choice.degree > 1 or choice.code != "auto"):
        raise CodeError("private= has a code of its own, for linear f: leave code and degree out")


def _given(
    data: Any, blocks: int | None, workers: int | None, code: Code, degree: int
) -> tuple[Blocks, Code]:
    """The blocks for a code of the caller's."""
    if not all(hasattr(code, part) for part in ("n", "k", "recovery_threshold", "parity", "plan")):
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


def choose_polar_code(
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
        k = _usual_count(total, workers, CodeOptions())
    if k > total:
        raise CodeError(f"blocks={k} is more than the {total} rows of the data; use blocks <= {total}")
    if isinstance(code, PolarCode):
        _check_fit(code, k, workers)
        chosen = code
    elif is_one_of(code, ("auto", "rotation", "arikan")):
        chosen = _polar(k, [dtype], workers, code)
    else:
        raise CodeError(f"code must be 'auto', 'rotation', 'arikan' or a PolarCode, not {code!r}")
    chosen.parity_dtype(dtype)
    return chosen


def _polar(k: int, dtypes: Sequence[np.dtype[Any]], workers: int | None, kernel: str) -> PolarCode:
    n = _third_more(k) if workers is None else workers
    if kernel == "auto":
        kernel = "arikan" if any(is_exact(dtype) for dtype in dtypes) else "rotation"
    if n <= k:
        raise CodeError(f"workers={n} leaves no parity for {k} blocks: use workers > {k}")
    return PolarCode(n, k, kernel=kernel)


def _check_accuracy(code: LagrangeCode | MaskedCode, cut: Blocks, rtol: float | None) -> None:
    """CodeError, before anything starts, for a code that would seldom decode within rtol."""
    inexact = [dtype for dtype in cut.dtypes if not is_exact(dtype)]
    limits = [(default_rtol(one) if rtol is None else rtol) / epsilon(one) for one in inexact]
    limit = min(limits, default=np.inf)
    if code.is_reliable(limit):
        return
    lost = (code.n - code.recovery_threshold + 1) // 2
    if isinstance(code, LagrangeCode):
        fits = largest_reliable_k(code.n, code.degree, limit)
        advice = f"blocks={fits} is the most that {code.n} workers carry" if fits else "raise rtol"
        raise CodeError(
            f"with {lost} of {code.n} workers missing, decoding f of degree {code.degree} on {cut.k} blocks "
            f"would multiply errors by {code.amplification(lost).ninety:.2g}, and rtol permits {limit:.2g}: "
            + advice
        )
    raise CodeError(
        f"with {lost} of {code.n} workers missing, noise of {code.noise:g} times the data would drown more "
        "digits than rtol permits: lower noise, raise rtol, or use more workers"
    )
