"""Evaluate parity checks to detect wrong results, and to find out which worker returned them.

If m > k results have arrived, m - k parity checks remain that decoding does not need. Their residuals should
be zero up to rounding. A larger residual means that f is not linear, or that a worker returned a wrong
result. Two or more checks can locate the wrong block. A map verifies its results with
`evaluate_parity_checks`, `locate_erroneous_blocks` and `bound_undetected_error`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from polarmap.codes import modular_linalg
from polarmap.codes.base import (
    COEFFICIENT_TOL,
    ErasureDecoder,
    ReceivedBlocks,
    compute_nonzero_mask,
)
from polarmap.codes.compute import block_matmul, tiling
from polarmap.dtypes import (
    Array,
    DType,
    Floats,
    Indices,
    Mask,
    UInt64Array,
    is_integer_dtype,
    machine_epsilon,
    to_real_dtype,
)

# An entry may have a rounding error of this many machine epsilons, times the largest value in the array.
ROUNDING_UNITS = 1024
MAX_LOCATION_ENTRIES = 64  # Examine at most this many violated entries to locate a wrong block.


class ParityCheckResidual(NamedTuple):
    """The outcome of `evaluate_parity_checks`: how far the results are from satisfying the checks.

    Attributes
    ----------
    max_relative : float
        Largest residual, relative to the values. If a check is violated, each residual is divided by the
        largest value of the same entry in any block. Otherwise the residuals are rounding errors, which are
        divided by the largest value of all blocks.
    violations : index array
        Flat positions of the entries whose residual exceeds the tolerance; empty if all checks hold.
    is_finite : bool
        True if the residual is finite in all entries.
    violated_check_blocks : tuple of int
        The positions in `ErasureDecoder.check_blocks` of the blocks with violated checks, if there are
        violations.
    """

    max_relative: float
    violations: Indices
    is_finite: bool
    violated_check_blocks: tuple[int, ...] = (0,)


def compute_parity_check_tolerance(dtype: DType) -> float:
    """Return the relative residual above which a parity check counts as violated: the square root of eps.

    The rounding errors of a numerically stable function f are smaller. Wrong results with errors below this
    tolerance are not detected; `bound_undetected_error` bounds their effect.
    """
    return float(np.sqrt(machine_epsilon(dtype)))


def estimate_relative_rounding_error(dtype: DType) -> float:
    """Return the tolerated rounding error of each entry, relative to the largest value in the array."""
    return min(ROUNDING_UNITS * machine_epsilon(dtype), compute_parity_check_tolerance(dtype))


def compute_max_abs(arrays: Sequence[Array]) -> float:
    """Return the largest absolute value in the arrays, or 0 if all arrays are empty.

    >>> compute_max_abs([np.zeros(2), np.array(-3)]), compute_max_abs([np.empty(0)])
    (3.0, 0.0)
    """
    return max(float(np.abs(batch).max(initial=0)) for batch in _iter_concatenated_batches(arrays))


def _iter_concatenated_batches(arrays: Sequence[Array]) -> Iterator[Array]:
    """Yield the arrays, concatenating small ones: one NumPy call per batch is faster than one per array."""
    start, batch_bytes = 0, 0
    for stop, array in enumerate(arrays):
        batch_bytes += array.nbytes
        if batch_bytes > tiling.TILE_BYTES:
            if start < stop:
                yield np.concatenate(arrays[start:stop], axis=None)
            start, batch_bytes = stop, array.nbytes
    yield arrays[start] if start == len(arrays) - 1 else np.concatenate(arrays[start:], axis=None)


def compute_checked_blocks_mask(decoder: ErasureDecoder, dtype: DType) -> Mask:
    """Return a mask of the arrived results in which the parity checks detect every error.

    Parameters
    ----------
    decoder : ErasureDecoder
        Decoder for the arrived results.
    dtype : dtype
        Data type of the results, which selects the arithmetic.

    Returns
    -------
    boolean array (arrived,)
    """
    return decoder.over(dtype).checked_arrivals_mask


def compute_max_blocks_per_parity_check(decoder: ErasureDecoder, dtype: DType) -> int:
    """Return the largest number of blocks that one parity check combines, for results of `dtype`.

    A check of two blocks only compares them. If the blocks are equal, the check holds for every function f
    and does not test whether f is linear.
    """
    return max(
        int(compute_nonzero_mask(checks).sum(axis=1).max(initial=0))
        for _, _, checks in decoder.over(dtype).check_blocks
    )


def bound_undetected_error(
    decoder: ErasureDecoder,
    max_residual: float | None,
    error_by_data_block: Mapping[int, float],
    n_systematic: int,
) -> float:
    """Bound the error that a single wrong block can cause in a target without violating a parity check.

    If block j deviates by d, the residual of check i changes by |H_ij d|, and target b changes by |W_bj d|.
    Here H are the checks and W the decoding weights. The observed residual r and the known errors e_b of
    recovered blocks therefore bound d:

            |d| <= min(r / max_i |H_ij|, min over b of e_b / |W_bj|)

    The result is the largest change of a target over all j. Blocks without any bound are left out.

    Parameters
    ----------
    decoder : ErasureDecoder
        Decoder over the reals.
    max_residual : float or None
        Largest residual r of the redundant parity checks; None if the checks were not evaluated.
    error_by_data_block : mapping from int to float
        Errors e_b of recovered data blocks that were compared with a local evaluation, by block index.
    n_systematic : int
        Number of leading blocks that are returned as received.

    Returns
    -------
    float
        The bound, in the units of the residuals; 0 if no target is missing.
    """
    if not len(decoder.missing_indices):
        return 0.0
    error_gains = np.maximum(decoder.max_weight_magnitudes, decoder.arrived_indices < n_systematic)
    deviation_bounds = np.full(len(decoder.arrived_indices), np.inf)
    if max_residual is not None:
        for _, columns, checks in decoder.check_blocks:
            deviation_bounds[columns] = _divide_or_inf(max_residual, np.abs(checks).max(axis=0, initial=0))
    for block_index, local_error in error_by_data_block.items():
        block_row = int(np.searchsorted(decoder.missing_indices, block_index))
        local_bounds = _divide_or_inf(local_error, decoder.get_weight_magnitudes_of_target(block_row))
        deviation_bounds = np.minimum(deviation_bounds, local_bounds)
    finite_mask = np.isfinite(deviation_bounds)
    return float((error_gains[finite_mask] * deviation_bounds[finite_mask]).max(initial=0.0))


def _divide_or_inf(deviation: float, coefficients: Floats) -> Floats:
    """Return deviation / coefficients, with inf where a coefficient is zero up to COEFFICIENT_TOL."""
    nonzero_mask = coefficients > COEFFICIENT_TOL
    return np.where(nonzero_mask, deviation / np.where(nonzero_mask, coefficients, 1.0), np.inf)


def evaluate_parity_checks(
    decoder: ErasureDecoder,
    received: ReceivedBlocks,
    dtype: DType,
    rtol: float | None = None,
    lowest_precision_dtype: DType | None = None,
    absolute_tolerance: float = 0.0,
    magnitude_before_cancellation: float = 0.0,
) -> ParityCheckResidual:
    """Evaluate the parity checks on the results that have arrived.

    If each result consists of several arrays, call this function once for each of them.

    Parameters
    ----------
    decoder : ErasureDecoder
        Decoder for the arrived results.
    received : mapping from int to array (b,)
        Flat results by block index.
    dtype : dtype
        Data type of the results.
    rtol : float, optional
        Relative tolerance, if larger than that of `compute_parity_check_tolerance`.
    lowest_precision_dtype : dtype, optional
        Less precise dtype to which the blocks were rounded at some point. By default, `dtype`.
    absolute_tolerance : float
        Absolute error that is always tolerated in each entry.
    magnitude_before_cancellation : float
        Magnitude of the terms that f adds up, if the terms may cancel. If larger than the largest entry, it
        is used to estimate the rounding errors.

    Returns
    -------
    ParityCheckResidual
        For integers that are decoded modulo 2^64, `max_relative` is 1 if a check is violated, and 0
        otherwise.
    """
    if dtype.kind == "c":
        real_dtype = to_real_dtype(dtype)
        real_blocks = {
            block_index: block.astype(dtype, copy=False).view(real_dtype)
            for block_index, block in received.items()
        }
        tolerances = rtol, lowest_precision_dtype, absolute_tolerance, magnitude_before_cancellation
        real_residual = evaluate_parity_checks(decoder, real_blocks, real_dtype, *tolerances)
        return real_residual._replace(violations=np.unique(real_residual.violations // 2))
    arrived_blocks = [received[int(block_index)] for block_index in decoder.arrived_indices]
    check_blocks = decoder.over(dtype).check_blocks
    if is_integer_dtype(check_blocks[0].entries.dtype):
        evaluate = partial(_evaluate_modular_checks, dtype=dtype)
    else:
        rounding_dtype = _choose_tolerance_dtype(dtype, lowest_precision_dtype)
        max_value = max(compute_max_abs(arrived_blocks), magnitude_before_cancellation)
        absolute_tol = max(estimate_relative_rounding_error(rounding_dtype) * max_value, absolute_tolerance)
        relative_tol = max(compute_parity_check_tolerance(rounding_dtype), rtol or 0.0)
        evaluate = partial(
            _evaluate_real_checks,
            relative_tol=relative_tol,
            absolute_tol=absolute_tol,
            max_value=max_value,
        )
    residuals = [
        evaluate(checks, _select_blocks(arrived_blocks, columns)) for _, columns, checks in check_blocks
    ]
    return _combine_residuals(residuals)


def _select_blocks(blocks: list[Array], positions: Indices | slice) -> list[Array]:
    """Return the blocks at the given positions of a list, for an index array or a slice."""
    return blocks[positions] if isinstance(positions, slice) else [blocks[i] for i in positions.tolist()]


def _combine_residuals(residuals: list[ParityCheckResidual]) -> ParityCheckResidual:
    """Combine the residuals of several sets of parity checks into one for all checks."""
    if len(residuals) == 1:
        return residuals[0]
    violated_check_blocks = tuple(i for i, residual in enumerate(residuals) if len(residual.violations))
    return ParityCheckResidual(
        max(residuals[i].max_relative for i in violated_check_blocks or range(len(residuals))),
        np.unique(np.concatenate([residual.violations for residual in residuals])),
        all(residual.is_finite for residual in residuals),
        violated_check_blocks,
    )


def _evaluate_real_checks(
    checks: Floats | UInt64Array,
    blocks: list[Array],
    relative_tol: float,
    absolute_tol: float,
    max_value: float,
) -> ParityCheckResidual:
    """Evaluate parity checks of real numbers, tile by tile.

    A check is violated in an entry if its residual exceeds `absolute_tol` plus `relative_tol` times the
    largest value of the entry in any block.
    """
    max_rounding, max_violation, violations, is_finite = 0.0, 0.0, [], True
    for columns in tiling.iter_column_tiles(blocks[0].size, len(blocks), 8):
        tile = tiling.gather_columns(blocks, columns, np.float64)
        with tiling.ignore_nonfinite_warnings():
            deviation = np.abs(block_matmul.matmul(checks, tile)).max(axis=0, initial=0)
            scale = np.abs(tile).max(axis=0)
            is_finite &= bool(np.isfinite(deviation).all())
            violation_mask = deviation > relative_tol * scale + absolute_tol
            relative_deviation = np.maximum(deviation - absolute_tol, 0) / np.where(scale > 0, scale, 1)
        max_violation = max(max_violation, float(relative_deviation.max(initial=0)))
        max_rounding = max(max_rounding, float(deviation.max(initial=0)) / (max_value or 1.0))
        violations.append(columns.start + np.flatnonzero(violation_mask))
    violated_entries = np.concatenate(violations) if violations else np.empty(0, np.intp)
    residual = max_violation if len(violated_entries) else max_rounding
    return ParityCheckResidual(residual, violated_entries, is_finite)


def locate_erroneous_blocks(
    decoder: ErasureDecoder,
    received: ReceivedBlocks,
    violated_entries: Indices,
    dtype: DType,
    lowest_precision_dtype: DType | None = None,
    violated_check_blocks: Sequence[int] = (0,),
) -> list[int]:
    """Return the blocks that may be wrong: an error in each of them alone could explain all violations.

    Parameters
    ----------
    decoder : ErasureDecoder
        Decoder for the arrived results.
    received : mapping from int to array (b,)
        Flat results by block index.
    violated_entries : index array
        Flat positions from `ParityCheckResidual.violations`, not empty.
    dtype : dtype
        Data type of the results.
    lowest_precision_dtype : dtype, optional
        Less precise dtype to which the blocks were rounded at some point. By default, `dtype`.
    violated_check_blocks : sequence of int
        `ParityCheckResidual.violated_check_blocks`.

    Returns
    -------
    list of int
        Block indices, in ascending order. Empty if fewer than two checks are available, or if no single block
        explains the violations.
    """
    # Each result occurs in a single block of the block-diagonal check matrix. If checks of several blocks are
    # violated, no single wrong result explains this.
    if len(violated_check_blocks) > 1:
        return []
    _, columns, checks = decoder.over(dtype).check_blocks[violated_check_blocks[0]]
    if len(checks) < 2:
        return []
    n_violated = len(violated_entries)
    sample = np.linspace(0, n_violated - 1, min(n_violated, MAX_LOCATION_ENTRIES)).astype(int)
    entries = violated_entries[sample]
    checked_indices = decoder.arrived_indices[columns]
    values = np.stack([received[block_index][entries] for block_index in checked_indices.tolist()])
    if is_integer_dtype(checks.dtype):
        modular_deviation = modular_linalg.matmul_mod64(checks, values.astype(np.int64))
        culprit_columns = _locate_modular_errors(checks.view(np.uint64), modular_deviation, dtype)
    else:
        rounding_dtype = _choose_tolerance_dtype(dtype, lowest_precision_dtype)
        culprit_columns = _locate_real_errors(checks, values, rounding_dtype)
    return [int(block_index) for block_index in checked_indices[culprit_columns]]


def _locate_real_errors(checks: Floats, values: Array, rounding_dtype: DType) -> Indices:
    """Return the columns of the parity checks whose block could have caused all violations on its own.

    If a single block is wrong, the residuals of all checks are a multiple of its column, up to rounding.
    """
    if values.dtype.kind == "c":
        values = np.concatenate([values.real, values.imag], axis=1)
    deviation = checks @ values.astype(np.float64)
    # Scale the deviations so that their squares do not overflow.
    deviation /= np.abs(deviation).max(initial=np.finfo(float).tiny)
    relative_tol = max(1e-6, 8 * compute_parity_check_tolerance(rounding_dtype))
    max_residual_norm = relative_tol * np.linalg.norm(deviation)
    check_norms = np.linalg.norm(checks, axis=0)
    # Leave out columns of zeros, which belong to blocks that no check involves.
    checked_columns = np.flatnonzero(check_norms > COEFFICIENT_TOL)
    directions = (checks[:, checked_columns] / check_norms[checked_columns]).T
    residual_norms = np.array(
        [np.linalg.norm(deviation - np.outer(direction, direction @ deviation)) for direction in directions]
    )
    return checked_columns[residual_norms <= max_residual_norm]


def _choose_tolerance_dtype(dtype: DType, lowest_precision_dtype: DType | None) -> DType:
    """Return the floating dtype that limits the precision of the results, or float64 for integers."""
    return np.dtype(np.float64) if is_integer_dtype(dtype) else lowest_precision_dtype or dtype


def _evaluate_modular_checks(
    checks: Floats | UInt64Array, blocks: list[Array], dtype: DType
) -> ParityCheckResidual:
    bit_mask = np.uint64((1 << 8 * dtype.itemsize) - 1)
    violations = []
    for columns in tiling.iter_column_tiles(blocks[0].size, len(blocks), 8):
        tile = tiling.gather_columns(blocks, columns, np.int64)
        deviation = modular_linalg.matmul_mod64(checks, tile) & bit_mask
        violations.append(columns.start + np.flatnonzero(deviation.any(axis=0)))
    violated_entries = np.concatenate(violations) if violations else np.empty(0, np.intp)
    return ParityCheckResidual(float(len(violated_entries) > 0), violated_entries, True)


def _locate_modular_errors(checks: UInt64Array, deviation: UInt64Array, dtype: DType) -> Indices:
    """Return the columns of the parity checks whose block could have caused all violations, modulo 2^bits.

    A block could have caused the violations if eliminating its error from the checks makes all residuals
    zero. The pivot of the elimination is the check whose coefficient has the fewest factors of two.
    """
    bit_mask = np.uint64((1 << 8 * dtype.itemsize) - 1)
    explaining_columns = []
    for column, coefficients in enumerate(checks.T):
        lowest_bits = coefficients & (~coefficients + np.uint64(1))
        # The largest power of two that divides each coefficient. Zero is divisible by every power of two.
        powers_of_two = np.where(coefficients > 0, lowest_bits, bit_mask)
        pivot = int(np.argmin(powers_of_two))
        if not coefficients[pivot]:
            continue
        power_of_two, pivot_deviation = powers_of_two[pivot], deviation[pivot]
        quotients = coefficients // power_of_two
        remaining_deviation = quotients[:, None] * pivot_deviation - quotients[pivot] * deviation
        remainder = pivot_deviation & (power_of_two - np.uint64(1)) & bit_mask
        if not (remaining_deviation & bit_mask).any() and not remainder.any():
            explaining_columns.append(column)
    return np.array(explaining_columns, np.intp)
