"""Which blocks, and which code for them: what the caller left open is filled in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from polarmap.blocks.array_like import is_sparse, read_data
from polarmap.blocks.coded import CodedBlocks, CodedData
from polarmap.blocks.equal import DEFAULT_BLOCKS, Blocks, cut, default_block_count
from polarmap.blocks.masked import MaskedBlocks
from polarmap.blocks.sparse import SparseBlocks, SparseCodedBlocks, as_csr, cheaper
from polarmap.code.checks import checked_count, is_one_of
from polarmap.code.dtypes import default_rtol, epsilon, is_exact
from polarmap.code.lagrange import LagrangeCode, largest_k, largest_reliable_k, recovery_threshold
from polarmap.code.linear import LinearCode
from polarmap.code.masked import Masked, MaskedCode
from polarmap.code.masked_integers import MaskedIntegerCode, blocks_for, workers_for
from polarmap.code.polar import MAX_WORKERS, PolarCode
from polarmap.code.uncoded import Uncoded
from polarmap.errors import CodeError

CodeName = Literal["auto", "rotation", "arikan"]
NAMES = ("auto", "rotation", "arikan")

REMEMBERED_N = 2048  # codes of up to so many workers are kept: the coefficients of 16 take 128 MB at most


class CodeOptions(NamedTuple):
    """How the caller of coded_map wants data coded; see there."""

    blocks: int | None = None
    workers: int | None = None
    code: CodeName | LinearCode | Masked = "auto"
    degree: int = 1


def choose_code(data: Any, options: CodeOptions, rtol: float | None = None) -> tuple[Blocks, LinearCode]:
    """The blocks of the data and the code that carries them."""
    blocks, workers, code, degree = options
    data = read_data(data)
    degree = checked_count("degree", degree)
    if not isinstance(code, (str, Masked)):
        return _given(data, blocks, workers, code, degree)
    _check_name(code, degree)
    if workers is not None:
        workers = checked_count("workers", workers)
    if blocks is None and hasattr(data, "shape") and data.shape and data.shape[0]:
        blocks = block_count(int(data.shape[0]), options, [data.dtype])
    data_blocks = cut(data, blocks)
    chosen = _chosen(data_blocks, workers, code, degree)
    _check_dtypes(chosen, data_blocks)
    if isinstance(chosen, (LagrangeCode, MaskedCode)):
        _check_accuracy(chosen, data_blocks, rtol)
    return data_blocks, chosen


def _check_name(code: str | Masked, degree: int) -> None:
    """CodeError for a word that names no code, and for a code that does not carry f of such a degree."""
    if isinstance(code, Masked):
        if degree > 1:
            raise CodeError(f"{code!r} carries linear f only: leave degree={degree} or the code out")
    elif code not in NAMES:
        raise CodeError(_no_code(code))
    elif degree > 1 and code != "auto":
        raise CodeError(f"the {code} kernel carries linear f only: with degree={degree} leave code out")


def _no_code(code: object) -> str:
    return (
        f"code must be 'auto', 'rotation', 'arikan', Masked() or a code such as PolarCode(n, k), not {code!r}"
    )


def _chosen(
    blocks: Blocks, workers: int | None, code: CodeName | Masked, degree: int
) -> PolarCode | LagrangeCode | MaskedCode | MaskedIntegerCode:
    k = blocks.k
    if isinstance(code, Masked):
        return _masked(blocks, workers, code)
    if degree > 1:
        needed = recovery_threshold(k, degree, "circle")
        return LagrangeCode(_third_more(needed) if workers is None else workers, k, degree)
    return _polar(k, blocks.dtypes, workers, code)


def block_count(total: int, options: CodeOptions, dtypes: Sequence[np.dtype[Any]]) -> int:
    """k for so many rows: near 24, or as many as the workers carry; CodeError if there are fewer rows."""
    blocks, workers, code, degree = options
    if blocks is not None:
        k = checked_count("blocks", blocks)
    elif isinstance(code, LinearCode):
        k = code.k
    else:
        workers = None if workers is None else checked_count("workers", workers)
        degree, masked = checked_count("degree", degree), _masked_limit(code, dtypes, workers)
        if workers is None:
            plain = degree == 1 and masked is None  # others lose digits as k grows
            k = default_block_count(total, DEFAULT_BLOCKS, None if plain else DEFAULT_BLOCKS)
        else:
            most = masked or max(1, largest_k(3 * min(workers, MAX_WORKERS) // 4, degree))
            k = default_block_count(total, most, most)
    if k > total:
        raise CodeError(f"blocks={k} is more than the {total} rows of the data; use blocks <= {total}")
    return k


def _masked(blocks: Blocks, workers: int | None, code: Masked) -> MaskedCode | MaskedIntegerCode:
    """Noise over the reals for floating data, modulo 2^64 for integers."""
    k, t = blocks.k, int(code.colluders)
    exact = [is_exact(dtype) for dtype in blocks.dtypes]
    if not any(exact):
        return MaskedCode(_third_more(k + t) if workers is None else workers, k, t, code.noise)
    if not all(exact):
        raise CodeError(
            f"{code!r} masks integers modulo 2^64 and floats over the reals, not {_listed(blocks.dtypes)} of "
            "one block together: convert the integers with .astype(float)"
        )
    return MaskedIntegerCode(workers_for(k, t) if workers is None else workers, k, t)


def _listed(dtypes: Sequence[np.dtype[Any]]) -> str:
    return " and ".join(sorted({str(dtype) for dtype in dtypes}))


def _masked_limit(code: object, dtypes: Sequence[np.dtype[Any]], workers: int | None) -> int | None:
    """The most blocks of data of such dtypes that are to be masked; None if they are not."""
    if not isinstance(code, Masked):
        return None
    t = int(code.colluders)
    if workers is None:
        return DEFAULT_BLOCKS
    return (
        blocks_for(workers, t)
        if any(map(is_exact, dtypes))
        else max(1, 3 * min(workers, MAX_WORKERS) // 4 - t)
    )


def _third_more(needed: int) -> int:
    return needed + math.ceil(needed / 3)


def _given(
    data: Any, blocks: int | None, workers: int | None, code: LinearCode, degree: int
) -> tuple[Blocks, LinearCode]:
    """The blocks of data for a code that the caller gave."""
    if not isinstance(code, LinearCode):
        raise CodeError(_no_code(code))
    if degree != code.degree and degree != 1:
        raise CodeError(f"{code!r} does not carry f of degree {degree}: leave one of them out")
    data_blocks = cut(data, code.k if blocks is None else blocks)
    _check_fit(code, data_blocks.k, workers)
    _check_dtypes(code, data_blocks)
    return data_blocks, code


def _check_dtypes(code: LinearCode, blocks: Blocks) -> None:
    """CodeError for data that the code cannot carry."""
    for dtype in blocks.dtypes:
        code.parity_dtype(dtype)


def _check_fit(code: LinearCode, k: int, workers: int | None) -> None:
    n = code.n if workers is None else checked_count("workers", workers)
    if (code.n, code.k) != (n, k):
        raise CodeError(f"{code!r} does not fit {k} blocks on {n} workers")


def choose_polar_code(
    total: int, dtype: np.dtype[Any], blocks: int | None, workers: int | None, code: CodeName | PolarCode
) -> PolarCode:
    """The code for an array of `total` rows that is not to be cut yet."""
    if workers is not None:
        workers = checked_count("workers", workers)
    k = block_count(total, CodeOptions(blocks, workers, code), [dtype])
    if isinstance(code, PolarCode):
        _check_fit(code, k, workers)
        chosen = code
    elif is_one_of(code, NAMES):
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
    return _made(n, k, kernel) if n <= REMEMBERED_N else PolarCode(n, k, kernel=kernel)


@lru_cache(maxsize=16)
def _made(n: int, k: int, kernel: str) -> PolarCode:
    """The code of these sizes, whose coefficients are computed once for all maps that use it."""
    return PolarCode(n, k, kernel=kernel)


def _check_accuracy(code: LagrangeCode | MaskedCode, blocks: Blocks, rtol: float | None) -> None:
    """CodeError, before anything starts, for a code that would seldom decode within rtol."""
    inexact = [dtype for dtype in blocks.dtypes if not is_exact(dtype)]
    limits = [(default_rtol(one) if rtol is None else rtol) / epsilon(one) for one in inexact]
    limit = min(limits, default=np.inf)
    if code.is_reliable(limit):
        return
    lost = (code.n - code.recovery_threshold + 1) // 2
    if isinstance(code, LagrangeCode):
        fits = largest_reliable_k(code.n, code.degree, limit)
        advice = f"blocks={fits} is the most that {code.n} workers carry" if fits else "raise rtol"
        raise CodeError(
            f"with {lost} of {code.n} workers missing, decoding f of degree {code.degree} on {code.k} blocks "
            f"would multiply errors by {code.amplification(lost).ninety:.2g}, and rtol permits {limit:.2g}: "
            + advice
        )
    raise CodeError(
        f"with {lost} of {code.n} workers missing, noise of {code.noise:g} times the data would drown more "
        "digits than rtol permits: lower noise, raise rtol, or use more workers"
    )


def encoded(data: Any, options: CodeOptions, rtol: float | None, parity_for: str = "") -> CodedData:
    """The coded blocks of the data, which may be encoded already.

    parity_for : what has asked for parity, so that copies of late tasks would not do in its place.
    """
    if is_sparse(data):
        return encode_sparse(data, options, parity_for=parity_for)
    if not hasattr(data, "coded_blocks"):
        blocks, code = choose_code(data, options, rtol)
        if isinstance(code, (MaskedCode, MaskedIntegerCode)):
            return MaskedBlocks(blocks, code)
        return CodedBlocks(blocks, code)
    coded: CodedData = data.coded_blocks()
    fits = options._replace(
        blocks=None if options.blocks == coded.code.k else options.blocks,
        workers=None if options.workers == coded.n else options.workers,
        code="auto" if is_one_of(options.code, (coded.code.option,)) else options.code,
    )
    if not all(map(_is_same, fits, CodeOptions())):
        raise CodeError(
            f"the data is encoded already, as {coded.code.k} blocks for {coded.n} workers with "
            f"{coded.code!r}: leave blocks, workers, code and degree out"
        )
    return coded


def _is_same(option: Any, default: Any) -> bool:
    return option is default or (isinstance(option, (str, int, float, np.number)) and bool(option == default))


def encode_sparse(
    data: Any, options: CodeOptions, *, keep: bool = False, parity_for: str = "", name: str = "data"
) -> SparseCodedBlocks:
    """The coded blocks of a sparse matrix, or its blocks alone for copies of late tasks: what costs less.

    keep : hold on to parity blocks for the next map of the same matrix.
    """
    blocks, workers, code, degree = options
    if degree != 1 or not (isinstance(code, (PolarCode, Uncoded)) or code in NAMES):
        what = f"degree={degree}" if degree != 1 else f"code={code!r}"
        raise CodeError(
            f"{name} is a sparse {type(data).__name__}, which code='rotation', 'arikan' or a PolarCode "
            f"carries: with {what} use {name}.toarray()"
        )
    matrix = as_csr(data, name)
    if isinstance(code, Uncoded):
        return SparseCodedBlocks(SparseBlocks(matrix, code.k), code)
    polar = choose_polar_code(matrix.shape[0], matrix.dtype, blocks, workers, cast(CodeName, code))
    data_blocks = SparseBlocks(matrix, polar.k)
    asked = parity_for or ("" if code == "auto" else f"code={code!r}")
    if asked:
        return SparseCodedBlocks(data_blocks, polar, f"coded, because {asked} asks for it", keep)
    return SparseCodedBlocks(data_blocks, *cheaper(data_blocks, polar), keep=keep)


def encode_once(
    data: Any, blocks: int | None, workers: int | None, code: CodeName | PolarCode
) -> CodedBlocks:
    """Data that `coded_map` accepts, coded with the first map of it and then kept for the next ones."""
    return CodedBlocks(*choose_code(data, CodeOptions(blocks, workers, code)), keep=True)


def check_not_masked(code: object) -> None:
    """CodeError for a code that mixes data with noise, where matrices are coded once for many products."""
    if isinstance(code, (Masked, MaskedCode, MaskedIntegerCode)):
        raise CodeError(
            f"{code!r} masks the data of one coded_map: use coded_map(lambda block: block @ x, A, code=...)"
        )
