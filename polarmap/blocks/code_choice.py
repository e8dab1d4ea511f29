"""Choose the number of blocks and the code of a map, and encode its data.

    options of coded_map (blocks, tasks, code, degree) --> DataBlocks, LinearCode --> CodedData

Options that the user leaves out are chosen here: about 24 blocks, and a third more tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np

from polarmap.blocks.array_like import is_array_like, is_scipy_sparse, load_array_like
from polarmap.blocks.coded import CodedBlocks, CodedData, SecretSharingBlocks
from polarmap.blocks.equal import (
    DEFAULT_N_BLOCKS,
    DataBlocks,
    check_encodable_array,
    check_no_empty_blocks,
    choose_default_n_blocks,
    cut_array_into_blocks,
    cut_sequence_into_blocks,
)
from polarmap.blocks.sparse import (
    SparseCodedBlocks,
    SparseDataBlocks,
    choose_code_or_backups,
    to_canonical_csr,
)
from polarmap.codes.integer_secret_sharing import (
    IntegerSecretSharingCode,
    compute_max_data_blocks,
    compute_min_tasks,
)
from polarmap.codes.linear_code import LinearCode
from polarmap.codes.polar import MAX_GROUPED_N, MAX_N, PolarCode, choose_n_groups
from polarmap.codes.secret_sharing import SecretSharing, SecretSharingCode
from polarmap.dtypes import get_default_rtol, is_integer_dtype, machine_epsilon
from polarmap.errors import CodeError
from polarmap.validation import check_positive_int, is_choice

if TYPE_CHECKING:
    from polarmap.executors.engine import PartitionedData

CodeName = Literal["auto", "rotation", "arikan"]
CODE_NAMES = ("auto", "rotation", "arikan")

# Codes for more tasks than this are not cached. The cache holds 16 codes, and their coefficients must fit in
# 128 MB.
MAX_CACHED_N = 2048
# For these numbers of data blocks, an "arikan" code with a third more tasks has a data block that is part of
# no parity block. If its result were lost, it could not be decoded. One additional task avoids this.
UNCHECKED_BLOCK_COUNTS = (2, 5)


class CodeOptions(NamedTuple):
    """The options of `coded_map` that determine the erasure code, such as the number of blocks and of tasks.

    An option that is None or "auto" is chosen by polarmap.
    """

    blocks: int | None = None
    tasks: int | None = None
    code: CodeName | LinearCode | SecretSharing = "auto"
    degree: int = 1

    @property
    def given_code(self) -> LinearCode | None:
        """The code object that the user passed as `code`, or None if polarmap creates the code."""
        return self.code if isinstance(self.code, LinearCode) else None

    @property
    def is_plain_linear(self) -> bool:
        """Whether a plain linear code is sufficient, because f is linear and the data is not hidden by noise.

        Other codes (for polynomial f or for secret sharing) decode less accurately for large numbers of
        blocks.
        """
        return self.degree == 1 and not isinstance(self.code, SecretSharing)

    @property
    def requested_k(self) -> int | None:
        """The number of blocks requested by the user, or None if polarmap chooses it."""
        given_code = self.given_code
        return given_code.k if self.blocks is None and given_code is not None else self.blocks

    def check(self) -> CodeOptions:
        """Validate the options and return them, with counts converted to int. Raise CodeError if invalid."""
        blocks, tasks, code, degree = self
        degree = check_positive_int("degree", degree)
        if isinstance(code, LinearCode):
            if degree not in (1, code.degree):
                raise CodeError(f"{code!r} does not support f of degree {degree}: leave code or degree out")
        elif not (isinstance(code, SecretSharing) or is_choice(code, CODE_NAMES)):
            raise CodeError(
                "code must be 'auto', 'rotation', 'arikan', SecretSharing() or a code such as "
                f"PolarCode(n, k), not {code!r}"
            )
        elif degree > 1 and code != "auto":
            code_text = f"the {code} kernel" if isinstance(code, str) else repr(code)
            raise CodeError(f"{code_text} supports only linear f: leave degree={degree} or code out")
        blocks = None if blocks is None else check_positive_int("blocks", blocks)
        tasks = None if tasks is None else check_positive_int("tasks", tasks)
        return CodeOptions(blocks, tasks, code, degree)


def cut_blocks_and_choose_code(
    data: Any, options: CodeOptions, rtol: float | None = None
) -> tuple[DataBlocks, LinearCode]:
    """Cut the data of a map into blocks, and choose a code for them. Return the blocks and the code.

    The blocks are not encoded yet. `rtol` is the permitted relative error of decoding, or None for the
    default of the dtype.
    """
    data, options = load_array_like(data), options.check()
    if is_array_like(data):
        check_encodable_array(data)
        data_blocks = cut_array_into_blocks(data, choose_n_blocks(int(data.shape[0]), options, [data.dtype]))
    else:
        data_blocks = cut_sequence_into_blocks(data, options.requested_k)
    chosen_code = _make_code(data_blocks.k, data_blocks.dtypes, options)
    if options.given_code is None and not options.is_plain_linear:
        _check_decoding_reliability(chosen_code, data_blocks, rtol)
    return data_blocks, chosen_code


def choose_polar_code(
    n_rows: int, dtype: np.dtype[Any], n_blocks: int | None, n_tasks: int | None, code: CodeName | PolarCode
) -> PolarCode:
    """Return a polar code that suits an array of `n_rows` rows.

    The code determines into how many blocks the array is cut, and how many tasks a map has. The caller may
    prescribe these numbers. A number that is None, and a code that is "auto", is chosen here.
    """
    check_polar_code_or_name(code)
    options = CodeOptions(n_blocks, n_tasks, code).check()
    return cast(PolarCode, _make_code(choose_n_blocks(n_rows, options, [dtype]), [dtype], options))


def check_polar_code_or_name(code: object) -> None:
    """Raise CodeError unless `code` is a PolarCode or a name: "auto", "rotation" or "arikan"."""
    if not (isinstance(code, PolarCode) or is_choice(code, CODE_NAMES)):
        raise CodeError(f"code must be 'auto', 'rotation', 'arikan' or a PolarCode, not {code!r}")


def choose_n_blocks(n_rows: int, options: CodeOptions, dtypes: Sequence[np.dtype[Any]]) -> int:
    """Return the number of blocks into which an array of `n_rows` rows is cut.

    If `options` does not specify it, it is about 24 or, for a given number of tasks, as many as these tasks
    can protect. Raises CodeError if a specified number of blocks would leave a block without rows.
    """
    _, n_tasks, code, degree = options
    n_blocks = options.requested_k
    if n_blocks is None and n_tasks is None:
        max_blocks = None if options.is_plain_linear else DEFAULT_N_BLOCKS
        n_blocks = choose_default_n_blocks(n_rows, DEFAULT_N_BLOCKS, max_blocks)
    elif n_blocks is None:
        max_blocks = _get_max_blocks(cast(int, n_tasks), code, degree, dtypes)
        n_blocks = choose_default_n_blocks(n_rows, max_blocks, max_blocks)
    if n_blocks > n_rows:
        raise CodeError(
            f"blocks={n_blocks} is more than the {n_rows} rows of the data; use blocks <= {n_rows}"
        )
    check_no_empty_blocks(n_rows, n_blocks)
    return n_blocks


def _get_max_blocks(n_tasks: int, code: object, degree: int, dtypes: Sequence[np.dtype[Any]]) -> int:
    """Return the maximum number of blocks that `n_tasks` tasks can protect well enough.

    With this number of blocks, all results can still be computed if about a quarter of the tasks fail. Codes
    for secret sharing of integers need more redundancy, so they have a lower maximum.
    """
    n_needed = 3 * min(n_tasks, MAX_GROUPED_N if degree == 1 else MAX_N) // 4
    if not isinstance(code, SecretSharing):
        if degree == 1:
            return max(1, n_needed)
        from polarmap.codes.lagrange import compute_max_k  # lazy import: slow, and rarely needed

        return max(1, compute_max_k(n_needed, degree))
    if any(map(is_integer_dtype, dtypes)):
        return compute_max_data_blocks(n_tasks, int(code.n_colluders))
    return max(1, n_needed - int(code.n_colluders))


def _make_code(k: int, dtypes: Sequence[np.dtype[Any]], options: CodeOptions) -> LinearCode:
    """Return the code object that the options describe, for k blocks whose arrays have these dtypes.

    Raises CodeError if the options contradict k, or if the code does not support a dtype.
    """
    _, n_tasks, code, degree = options
    if (given_code := options.given_code) is not None:
        if (given_code.n, given_code.k) != (n_tasks or given_code.n, k):
            raise CodeError(f"{code!r} does not fit {k} blocks on {n_tasks or given_code.n} tasks")
        chosen_code = given_code
    elif isinstance(code, SecretSharing):
        chosen_code = _make_secret_sharing_code(k, dtypes, n_tasks, code)
    elif degree > 1:
        from polarmap.codes.lagrange import (
            LagrangeCode,
            compute_recovery_threshold,
        )  # lazy import: most maps have degree 1

        n_needed = compute_recovery_threshold(k, degree, "circle")
        chosen_code = LagrangeCode(n_tasks or get_default_n_tasks(n_needed), k, degree)
    else:
        chosen_code = _make_polar_code(k, dtypes, n_tasks, cast(CodeName, code))
    for dtype in dtypes:
        chosen_code.parity_dtype(dtype)
    return chosen_code


def get_default_n_tasks(n_needed_results: int) -> int:
    """Return the default number of tasks: one third more than the number of required results."""
    return n_needed_results + math.ceil(n_needed_results / 3)


def get_default_polar_n_tasks(k: int, kernel: str) -> int:
    """Return the default number of tasks of a polar code for k data blocks: about a third more than k.

    With this number of tasks, the result of any single task may be missing.

    >>> [get_default_polar_n_tasks(k, "arikan") for k in (24, 5)], get_default_polar_n_tasks(5, "rotation")
    ([32, 8], 7)
    """
    return get_default_n_tasks(k) + (kernel == "arikan" and k in UNCHECKED_BLOCK_COUNTS)


def _make_secret_sharing_code(
    k: int, dtypes: Sequence[np.dtype[Any]], n_tasks: int | None, code: SecretSharing
) -> LinearCode:
    """Return a secret-sharing code, which hides the data from workers by adding random noise.

    Floats are encoded over the real numbers, and integers modulo 2^64.
    """
    n_colluders = int(code.n_colluders)
    is_integer = [is_integer_dtype(dtype) for dtype in dtypes]
    if not any(is_integer):
        return SecretSharingCode(n_tasks or get_default_n_tasks(k + n_colluders), k, n_colluders, code.noise)
    if not all(is_integer):
        dtypes_text = " and ".join(sorted({str(dtype) for dtype in dtypes}))
        raise CodeError(
            f"{code!r} cannot mask blocks that contain both integers and floats ({dtypes_text}): convert the "
            "integers with .astype(float)"
        )
    return IntegerSecretSharingCode(n_tasks or compute_min_tasks(k, n_colluders), k, n_colluders)


def _make_polar_code(k: int, dtypes: Sequence[np.dtype[Any]], tasks: int | None, kernel: str) -> PolarCode:
    if kernel == "auto":
        kernel = "arikan" if any(is_integer_dtype(dtype) for dtype in dtypes) else "rotation"
    n = tasks or get_default_polar_n_tasks(k, kernel)
    if n <= k:
        raise CodeError(f"tasks={n} leaves no parity for {k} blocks: use tasks > {k}")
    max_n = min(MAX_GROUPED_N, MAX_N * min(k, n - k))
    if n > max_n:
        raise CodeError(f"tasks={n} is too many for {k} blocks: use tasks <= {max_n}")
    n_groups = choose_n_groups(n, k)
    if n_groups == 1 and n > MAX_CACHED_N:
        return PolarCode(n, k, kernel=kernel)
    return _get_cached_polar_code(n, k, kernel, n_groups)


@lru_cache(maxsize=16)
def _get_cached_polar_code(n: int, k: int, kernel: str, n_groups: int) -> PolarCode:
    """Return a polar code with these parameters. Recently used codes, with their coefficients, are cached."""
    return PolarCode(n, k, kernel=kernel, groups=n_groups)


def _check_decoding_reliability(code: LinearCode, data_blocks: DataBlocks, rtol: float | None) -> None:
    """Raise CodeError if this code often amplifies rounding errors beyond the permitted error of results.

    `rtol` is the permitted relative error of decoded results, or None for the default of the dtype.
    """
    inexact_dtypes = [dtype for dtype in data_blocks.dtypes if not is_integer_dtype(dtype)]
    amplification_limits = [
        (get_default_rtol(inexact_dtype) if rtol is None else rtol) / machine_epsilon(inexact_dtype)
        for inexact_dtype in inexact_dtypes
    ]
    max_amplification = min(amplification_limits, default=np.inf)
    if problem := code.describe_ill_conditioning(max_amplification):
        raise CodeError(problem)


def encode_blocks(
    data: Any, options: CodeOptions, rtol: float | None, parity_required_by: str = ""
) -> CodedData:
    """Encode the data of a map unless it is already encoded, and return the coded blocks.

    Parameters
    ----------
    data : object
        The data of a map. It is already encoded if it has a method `coded_blocks`.
    options : CodeOptions
        The options that determine the number of blocks and the code.
    rtol : float or None
        The permitted relative error of decoding. None for the default.
    parity_required_by : str
        The option that needs parity blocks, such as "out=", or "". Without such an option, backups of
        late tasks may replace parity blocks, as they do for some sparse data.
    """
    if is_scipy_sparse(data):
        return encode_sparse(data, options, parity_required_by=parity_required_by)
    if not hasattr(data, "coded_blocks"):
        blocks, code = cut_blocks_and_choose_code(data, options, rtol)
        if code.adds_noise:
            return SecretSharingBlocks(blocks, cast("SecretSharingCode | IntegerSecretSharingCode", code))
        return CodedBlocks(blocks, code)
    coded_data: CodedData = data.coded_blocks()
    requested = options.check()
    conflicting = requested._replace(
        blocks=None if requested.blocks == coded_data.code.k else requested.blocks,
        tasks=None if requested.tasks == coded_data.n else requested.tasks,
        code="auto" if requested.code == coded_data.code.option_name else requested.code,
    )
    if conflicting != CodeOptions():
        raise CodeError(
            f"the data is already encoded, as {coded_data.code.k} blocks for {coded_data.n} tasks with "
            f"{coded_data.code!r}: leave blocks, tasks, code and degree out"
        )
    return coded_data


def encode_on_cluster(
    partitioned_data: PartitionedData, options: CodeOptions, rtol: float | None
) -> CodedData:
    """Encode data on the cluster that stores it, without loading it here, and return the coded blocks."""
    from polarmap.blocks.on_cluster import ClusterCodedBlocks, ClusterDataBlocks

    data_blocks, options = ClusterDataBlocks(partitioned_data), options.check()
    code = _make_code(data_blocks.k, data_blocks.dtypes, options)
    if code.adds_noise:
        raise CodeError(
            f"{options.code!r} hides data from workers, but this data is on the cluster: leave code out"
        )
    if options.given_code is None and not options.is_plain_linear:
        _check_decoding_reliability(code, data_blocks, rtol)
    return ClusterCodedBlocks(data_blocks, code)


def encode_sparse(
    data: Any,
    options: CodeOptions,
    *,
    keep_parity: bool = False,
    parity_required_by: str = "",
    argument_name: str = "data",
) -> SparseCodedBlocks:
    """Encode a sparse matrix, or return only its data blocks if parity blocks would be too dense.

    Without parity blocks, a map starts backup tasks (second copies) of late tasks instead.

    Parameters
    ----------
    data : scipy.sparse matrix or array
        The sparse matrix.
    options : CodeOptions
        The options that determine the number of blocks and the code.
    keep_parity : bool
        Whether to keep the parity blocks in memory for the next map of the same matrix.
    parity_required_by : str
        The option that requires parity blocks, or "" if backups may replace them.
    argument_name : str
        The name of the argument, for error messages.
    """
    n_blocks, n_tasks, code, degree = options
    given_code = options.given_code
    supports_sparse = code in CODE_NAMES if given_code is None else given_code.supports_sparse
    if degree != 1 or not supports_sparse:
        option_text = f"degree={degree}" if degree != 1 else f"code={code!r}"
        raise CodeError(
            f"{argument_name} is a sparse {type(data).__name__}, which only code='rotation', 'arikan' or a "
            f"PolarCode supports: with {option_text}, pass {argument_name}.toarray()"
        )
    matrix = to_canonical_csr(data, argument_name)
    if given_code is not None and not given_code.is_redundant:
        return SparseCodedBlocks(SparseDataBlocks(matrix, given_code.k), given_code)
    polar_code = choose_polar_code(matrix.shape[0], matrix.dtype, n_blocks, n_tasks, cast(CodeName, code))
    data_blocks = SparseDataBlocks(matrix, polar_code.k)
    required_by = parity_required_by or ("" if code == "auto" else f"code={code!r}")
    code_and_reason = (
        (polar_code, f"coded, because {required_by} needs parity blocks")
        if required_by
        else choose_code_or_backups(data_blocks, polar_code)
    )
    return SparseCodedBlocks(data_blocks, *code_and_reason, keep_parity=keep_parity)


def encode_for_reuse(
    data: Any, n_blocks: int | None, n_tasks: int | None, code: CodeName | PolarCode
) -> CodedBlocks:
    """Return coded blocks whose parity blocks stay in memory, for several maps over the same data.

    The first map computes the parity blocks, and later maps reuse them.
    """
    return CodedBlocks(
        *cut_blocks_and_choose_code(data, CodeOptions(n_blocks, n_tasks, code)), keep_parity=True
    )


def check_not_secret_sharing(code: object) -> None:
    """Raise CodeError if `code` is a secret-sharing code, which must not be used for more than one map."""
    if isinstance(code, SecretSharing) or (isinstance(code, LinearCode) and code.adds_noise):
        raise CodeError(
            f"{code!r} masks data for a single map: use coded_map(lambda block: block @ x, A, code=...)"
        )
