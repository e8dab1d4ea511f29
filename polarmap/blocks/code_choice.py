"""Which blocks, and which code for them: what the caller left open is filled in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np

from polarmap.blocks.array_like import is_array, is_sparse, read_data
from polarmap.blocks.coded import CodedBlocks, CodedData
from polarmap.blocks.equal import (
    DEFAULT_BLOCKS,
    Blocks,
    check_array,
    check_filled,
    cut_array,
    cut_sequence,
    default_block_count,
)
from polarmap.blocks.masked import MaskedBlocks
from polarmap.blocks.sparse import SparseBlocks, SparseCodedBlocks, as_csr, cheaper
from polarmap.codes.integer_secret_sharing import (
    IntegerSecretSharingCode,
    compute_max_data_blocks,
    compute_min_tasks,
)
from polarmap.codes.lagrange import (
    LagrangeCode,
    compute_max_k,
    compute_max_well_conditioned_k,
    compute_recovery_threshold,
)
from polarmap.codes.linear_code import LinearCode
from polarmap.codes.polar import MAX_N, PolarCode
from polarmap.codes.secret_sharing import SecretSharing, SecretSharingCode
from polarmap.codes.uncoded import Uncoded
from polarmap.dtypes import default_rtol, is_integer_dtype, machine_epsilon
from polarmap.errors import CodeError
from polarmap.validation import check_positive_int, is_choice

if TYPE_CHECKING:
    from polarmap.executors.cluster_data import CutData

CodeName = Literal["auto", "rotation", "arikan"]
NAMES = ("auto", "rotation", "arikan")

REMEMBERED_N = 2048  # codes of up to so large n are kept: the coefficients of 16 take 128 MB at most
# Numbers of data blocks of which an arikan code with a third more tasks leaves one without a parity check:
UNCHECKED_BLOCK_COUNTS = (2, 5)


class CodeOptions(NamedTuple):
    """How the caller of coded_map wants data coded; see there."""

    blocks: int | None = None
    tasks: int | None = None
    code: CodeName | LinearCode | SecretSharing = "auto"
    degree: int = 1

    @property
    def k(self) -> int | None:
        """How many blocks the caller asks for; None if that is open."""
        return self.code.k if self.blocks is None and isinstance(self.code, LinearCode) else self.blocks

    def checked(self) -> CodeOptions:
        """The same with integers for numbers; CodeError for a code that is none, or not for such a degree."""
        blocks, tasks, code, degree = self
        degree = check_positive_int("degree", degree)
        if isinstance(code, LinearCode):
            if degree not in (1, code.degree):
                raise CodeError(f"{code!r} does not carry f of degree {degree}: leave one of them out")
        elif not (isinstance(code, SecretSharing) or is_choice(code, NAMES)):
            raise CodeError(
                "code must be 'auto', 'rotation', 'arikan', Masked() or a code such as PolarCode(n, k), "
                f"not {code!r}"
            )
        elif degree > 1 and code != "auto":
            what = f"the {code} kernel" if isinstance(code, str) else repr(code)
            raise CodeError(f"{what} carries linear f only: leave degree={degree} or the code out")
        blocks = None if blocks is None else check_positive_int("blocks", blocks)
        tasks = None if tasks is None else check_positive_int("tasks", tasks)
        return CodeOptions(blocks, tasks, code, degree)


def choose_code(data: Any, options: CodeOptions, rtol: float | None = None) -> tuple[Blocks, LinearCode]:
    """The blocks of the data and the code that carries them."""
    data, options = read_data(data), options.checked()
    if is_array(data):
        check_array(data)
        cut = cut_array(data, block_count(int(data.shape[0]), options, [data.dtype]))
    else:
        cut = cut_sequence(data, options.k)
    chosen = _code_of(cut.k, cut.dtypes, options)
    if isinstance(chosen, (LagrangeCode, SecretSharingCode)) and chosen is not options.code:
        _check_accuracy(chosen, cut, rtol)
    return cut, chosen


def choose_polar_code(
    total: int, dtype: np.dtype[Any], blocks: int | None, tasks: int | None, code: CodeName | PolarCode
) -> PolarCode:
    """The code for an array of `total` rows that is not to be cut yet."""
    if not (isinstance(code, PolarCode) or is_choice(code, NAMES)):
        raise CodeError(f"code must be 'auto', 'rotation', 'arikan' or a PolarCode, not {code!r}")
    options = CodeOptions(blocks, tasks, code).checked()
    return cast(PolarCode, _code_of(block_count(total, options, [dtype]), [dtype], options))


def block_count(total: int, options: CodeOptions, dtypes: Sequence[np.dtype[Any]]) -> int:
    """Return k for `total` rows: near 24, or as many as the tasks carry.

    CodeError for a number of the caller's that would leave a block without rows.
    """
    _, tasks, code, degree = options
    blocks = options.k
    if blocks is None and tasks is None:
        is_plain = degree == 1 and not isinstance(code, SecretSharing)  # others lose digits as k grows
        blocks = default_block_count(total, DEFAULT_BLOCKS, None if is_plain else DEFAULT_BLOCKS)
    elif blocks is None:
        most = _most_blocks(cast(int, tasks), code, degree, dtypes)
        blocks = default_block_count(total, most, most)
    if blocks > total:
        raise CodeError(f"blocks={blocks} is more than the {total} rows of the data; use blocks <= {total}")
    check_filled(total, blocks)
    return blocks


def _most_blocks(tasks: int, code: object, degree: int, dtypes: Sequence[np.dtype[Any]]) -> int:
    """As many as leave about a quarter of the results of so many tasks spare."""
    needed = 3 * min(tasks, MAX_N) // 4
    if not isinstance(code, SecretSharing):
        return max(1, compute_max_k(needed, degree))
    if any(map(is_integer_dtype, dtypes)):
        return compute_max_data_blocks(tasks, int(code.n_colluders))
    return max(1, needed - int(code.n_colluders))


def _code_of(k: int, dtypes: Sequence[np.dtype[Any]], options: CodeOptions) -> LinearCode:
    """The code that is meant for k blocks with leaves of such dtypes; CodeError if it cannot carry them."""
    _, tasks, code, degree = options
    if isinstance(code, LinearCode):
        if (code.n, code.k) != (tasks or code.n, k):
            raise CodeError(f"{code!r} does not fit {k} blocks on {tasks or code.n} tasks")
        chosen = code
    elif isinstance(code, SecretSharing):
        chosen = _masked(k, dtypes, tasks, code)
    elif degree > 1:
        needed = compute_recovery_threshold(k, degree, "circle")
        chosen = LagrangeCode(tasks or third_more(needed), k, degree)
    else:
        chosen = _polar(k, dtypes, tasks, code)
    for dtype in dtypes:
        chosen.parity_dtype(dtype)
    return chosen


def third_more(needed: int) -> int:
    """How many coded blocks there are by default for so many that are needed."""
    return needed + math.ceil(needed / 3)


def default_tasks(k: int, kernel: str) -> int:
    """Return the default number of coded blocks for k data blocks; any one of these may be lost.

    >>> default_tasks(24, "arikan"), default_tasks(5, "arikan"), default_tasks(5, "rotation")
    (32, 8, 7)
    """
    return third_more(k) + (kernel == "arikan" and k in UNCHECKED_BLOCK_COUNTS)


def _masked(k: int, dtypes: Sequence[np.dtype[Any]], tasks: int | None, code: SecretSharing) -> LinearCode:
    """Noise over the reals for floating data, modulo 2^64 for integers."""
    t = int(code.n_colluders)
    exact = [is_integer_dtype(dtype) for dtype in dtypes]
    if not any(exact):
        return SecretSharingCode(tasks or third_more(k + t), k, t, code.noise)
    if not all(exact):
        listed = " and ".join(sorted({str(dtype) for dtype in dtypes}))
        raise CodeError(
            f"{code!r} masks integers modulo 2^64 and floats over the reals, not {listed} of one block "
            "together: convert the integers with .astype(float)"
        )
    return IntegerSecretSharingCode(tasks or compute_min_tasks(k, t), k, t)


def _polar(k: int, dtypes: Sequence[np.dtype[Any]], tasks: int | None, kernel: str) -> PolarCode:
    if kernel == "auto":
        kernel = "arikan" if any(is_integer_dtype(dtype) for dtype in dtypes) else "rotation"
    n = tasks or default_tasks(k, kernel)
    if n <= k:
        raise CodeError(f"tasks={n} leaves no parity for {k} blocks: use tasks > {k}")
    return _made(n, k, kernel) if n <= REMEMBERED_N else PolarCode(n, k, kernel=kernel)


@lru_cache(maxsize=16)
def _made(n: int, k: int, kernel: str) -> PolarCode:
    """The code of these sizes, whose coefficients are computed once for all maps that use it."""
    return PolarCode(n, k, kernel=kernel)


def _check_accuracy(code: LagrangeCode | SecretSharingCode, blocks: Blocks, rtol: float | None) -> None:
    """CodeError, before anything starts, for a code that would seldom decode within rtol."""
    inexact = [dtype for dtype in blocks.dtypes if not is_integer_dtype(dtype)]
    limits = [(default_rtol(one) if rtol is None else rtol) / machine_epsilon(one) for one in inexact]
    limit = min(limits, default=np.inf)
    if code.is_well_conditioned(limit):
        return
    lost = (code.n - code.recovery_threshold + 1) // 2
    if isinstance(code, LagrangeCode):
        fits = compute_max_well_conditioned_k(code.n, code.degree, limit)
        advice = f"blocks={fits} is the most that {code.n} tasks carry" if fits else "raise rtol"
        raise CodeError(
            f"with {lost} of {code.n} results missing, decoding f of degree {code.degree} on {code.k} blocks "
            f"would multiply errors by {code.summarize_amplification(lost).p90:.2g}, and rtol permits {limit:.2g}: "
            + advice
        )
    raise CodeError(
        f"with {lost} of {code.n} results missing, noise of {code.noise:g} times the data would drown more "
        "digits than rtol permits: lower noise, raise rtol, or use more tasks"
    )


def encoded(data: Any, options: CodeOptions, rtol: float | None, parity_for: str = "") -> CodedData:
    """The coded blocks of the data, which may be encoded already.

    parity_for : what has asked for parity, so that copies of late tasks would not do in its place.
    """
    if is_sparse(data):
        return encode_sparse(data, options, parity_for=parity_for)
    if not hasattr(data, "coded_blocks"):
        blocks, code = choose_code(data, options, rtol)
        if isinstance(code, (SecretSharingCode, IntegerSecretSharingCode)):
            return MaskedBlocks(blocks, code)
        return CodedBlocks(blocks, code)
    coded: CodedData = data.coded_blocks()
    asked = options.checked()
    left = asked._replace(
        blocks=None if asked.blocks == coded.code.k else asked.blocks,
        tasks=None if asked.tasks == coded.n else asked.tasks,
        code="auto" if asked.code == coded.code.option_name else asked.code,
    )
    if left != CodeOptions():
        raise CodeError(
            f"the data is encoded already, as {coded.code.k} blocks for {coded.n} tasks with "
            f"{coded.code!r}: leave blocks, tasks, code and degree out"
        )
    return coded


def encoded_there(cut: CutData, options: CodeOptions, rtol: float | None) -> CodedData:
    """The coded blocks of data that stay on a cluster."""
    from polarmap.blocks.on_cluster import ClusterBlocks, CodedOnCluster

    blocks, options = ClusterBlocks(cut), options.checked()
    code = _code_of(blocks.k, blocks.dtypes, options)
    if isinstance(code, (SecretSharingCode, IntegerSecretSharingCode)):
        raise CodeError(f"{options.code!r} keeps data from workers, and these lie there: leave code out")
    if isinstance(code, LagrangeCode) and code is not options.code:
        _check_accuracy(code, blocks, rtol)
    return CodedOnCluster(blocks, code)


def encode_sparse(
    data: Any, options: CodeOptions, *, keep: bool = False, parity_for: str = "", name: str = "data"
) -> SparseCodedBlocks:
    """The coded blocks of a sparse matrix, or its blocks alone for copies of late tasks: what costs less.

    keep : hold on to parity blocks for the next map of the same matrix.
    """
    blocks, tasks, code, degree = options
    if degree != 1 or not (isinstance(code, (PolarCode, Uncoded)) or code in NAMES):
        what = f"degree={degree}" if degree != 1 else f"code={code!r}"
        raise CodeError(
            f"{name} is a sparse {type(data).__name__}, which code='rotation', 'arikan' or a PolarCode "
            f"carries: with {what} use {name}.toarray()"
        )
    matrix = as_csr(data, name)
    if isinstance(code, Uncoded):
        return SparseCodedBlocks(SparseBlocks(matrix, code.k), code)
    polar = choose_polar_code(matrix.shape[0], matrix.dtype, blocks, tasks, cast(CodeName, code))
    data_blocks = SparseBlocks(matrix, polar.k)
    asked = parity_for or ("" if code == "auto" else f"code={code!r}")
    chosen = (polar, f"coded, because {asked} asks for it") if asked else cheaper(data_blocks, polar)
    return SparseCodedBlocks(data_blocks, *chosen, keep=keep)


def encode_once(data: Any, blocks: int | None, tasks: int | None, code: CodeName | PolarCode) -> CodedBlocks:
    """Data that `coded_map` accepts, coded with the first map of it and then kept for the next ones."""
    return CodedBlocks(*choose_code(data, CodeOptions(blocks, tasks, code)), keep=True)


def check_not_masked(code: object) -> None:
    """CodeError for a code that mixes data with noise, where matrices are coded once for many products."""
    if isinstance(code, (SecretSharing, SecretSharingCode, IntegerSecretSharingCode)):
        raise CodeError(
            f"{code!r} masks the data of one coded_map: use coded_map(lambda block: block @ x, A, code=...)"
        )
