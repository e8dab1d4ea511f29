"""The parity equations left over once the missing blocks are determined.

With m > k arrivals the received blocks alone satisfy m - k equations. A residual means that f is
not linear, or that a worker returned garbage; two equations or more can tell which worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polarmap.codes import modular_linalg
from polarmap.codes.base import (
    COEFFICIENT_TOL,
    ErasureDecoder,
    ReceivedBlocks,
    compute_invertible_mask,
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

ROUNDING_UNITS = 1024  # roundings of the largest number of a leaf that any of its entries may carry
MAX_LOCATION_ENTRIES = 64  # entries looked at to find a culprit


class ParityCheckResidual(NamedTuple):
    """What the left-over equations say of one leaf.

    max_relative : largest residual. Where equations are broken, as a share of the largest value of
        that entry in any block; else, being rounding, of the largest value of the leaf.
    violations : entries (flat positions) where it exceeds rounding; empty if the equations hold.
    is_finite : whether the residual could be evaluated everywhere.
    """

    max_relative: float
    violations: Indices
    is_finite: bool


def compute_parity_check_tolerance(dtype: DType) -> float:
    """The relative residual above which an equation is broken: the square root of eps.

    Below it lies the rounding of any sensible f; what it lets pass is in the reported bound.
    """
    return float(np.sqrt(machine_epsilon(dtype)))


def estimate_relative_rounding_error(dtype: DType) -> float:
    """The share of the largest number of a leaf that may be rounding in any of its entries."""
    return min(ROUNDING_UNITS * machine_epsilon(dtype), compute_parity_check_tolerance(dtype))


def compute_max_abs(arrays: Sequence[Array]) -> float:
    """The largest absolute value in any of them; 0 where all are empty.

    >>> compute_max_abs([np.zeros(2), np.array(-3)]), compute_max_abs([np.empty(0)])
    (3.0, 0.0)
    """
    if sum([array.nbytes for array in arrays]) <= tiling.TILE_BYTES:
        # Many small calls take longer than a copy.
        arrays = [np.concatenate(arrays, axis=None)]
    return max(float(np.abs(array).max(initial=0)) for array in arrays)


def compute_checked_blocks_mask(decoder: ErasureDecoder, dtype: DType) -> Mask:
    """Which arrived blocks of `dtype` show in a left-over equation whatever they deviate by, (arrived,)."""
    return np.asarray(compute_invertible_mask(decoder.over(dtype).check_matrix).any(axis=0))


def compute_max_blocks_per_parity_check(decoder: ErasureDecoder, dtype: DType) -> int:
    """The most blocks of `dtype` that stand in one left-over equation: two that are equal hold for any f."""
    return int(compute_nonzero_mask(decoder.over(dtype).check_matrix).sum(axis=1).max(initial=0))


def bound_undetected_error(
    decoder: ErasureDecoder,
    max_residual: float | None,
    error_by_data_block: Mapping[int, float],
    n_systematic: int,
) -> float:
    """The largest error that one deviating block can have caused unseen, in the unit of the residuals.

    A block that deviates by d breaks an equation by its coefficient times d, and moves a recovered
    block by its weight times d: what was measured bounds the one and so the other.

    Parameters
    ----------
    decoder : ErasureDecoder
        Over the reals.
    max_residual : float, optional
        The largest residual of the left-over equations; None if they were not looked at.
    error_by_data_block : mapping from data block to float
        By how much recovered blocks missed what they should be.
    n_systematic : int
        The first so many blocks are handed out themselves.
    """
    if not len(decoder.missing_indices):
        return 0.0
    error_gains = np.maximum(decoder.max_weight_magnitudes, decoder.arrived_indices < n_systematic)
    deviation_bounds = np.full(len(decoder.arrived_indices), np.inf)
    if max_residual is not None and len(decoder.check_matrix):
        deviation_bounds = _divide_or_inf(max_residual, np.abs(decoder.check_matrix).max(axis=0))
    for block_index, local_error in error_by_data_block.items():
        block_row = np.searchsorted(decoder.missing_indices, block_index)
        local_bounds = _divide_or_inf(local_error, decoder.weight_magnitudes[block_row])
        deviation_bounds = np.minimum(deviation_bounds, local_bounds)
    finite_mask = np.isfinite(deviation_bounds)
    return float((error_gains[finite_mask] * deviation_bounds[finite_mask]).max(initial=0.0))


def _divide_or_inf(deviation: float, coefficients: Floats) -> Floats:
    """deviation / coefficients; inf where a coefficient is nothing but rounding."""
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
    """Evaluate the left-over equations on the arrived flat blocks of one leaf.

    `lowest_precision_dtype` is a coarser dtype in which the blocks were rounded on the way, if there is one,
    `absolute_tolerance` what each entry may be off by anyway, and `magnitude_before_cancellation` how large
    entries are where the terms do not cancel whose sums they are, if that is known: rounding is a share of
    that, too.
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
    checks = decoder.over(dtype).check_matrix
    if is_integer_dtype(checks.dtype):
        return _evaluate_modular_checks(checks, arrived_blocks, dtype)
    rounding_dtype = _choose_tolerance_dtype(dtype, lowest_precision_dtype)
    max_value = max(compute_max_abs(arrived_blocks), magnitude_before_cancellation)
    absolute_tol = max(estimate_relative_rounding_error(rounding_dtype) * max_value, absolute_tolerance)
    relative_tol = max(compute_parity_check_tolerance(rounding_dtype), rtol or 0.0)
    return _evaluate_real_checks(checks, arrived_blocks, relative_tol, absolute_tol, max_value)


def _evaluate_real_checks(
    checks: Floats | UInt64Array,
    blocks: list[Array],
    relative_tol: float,
    absolute_tol: float,
    max_value: float,
) -> ParityCheckResidual:
    """An entry breaks an equation by more than `relative_tol` of its largest value in any block, and
    `absolute_tol`.
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
) -> list[int]:
    """The blocks of which one alone can explain the broken entries; needs two equations or more."""
    n_violated = len(violated_entries)
    sample = np.linspace(0, n_violated - 1, min(n_violated, MAX_LOCATION_ENTRIES)).astype(int)
    entries = violated_entries[sample]
    values = np.stack([received[int(block_index)][entries] for block_index in decoder.arrived_indices])
    checks = decoder.over(dtype).check_matrix
    if len(checks) < 2:
        return []
    if is_integer_dtype(checks.dtype):
        modular_deviation = modular_linalg.matmul_mod64(checks, values.astype(np.int64))
        culprit_indices = _locate_modular_errors(checks.view(np.uint64), modular_deviation, dtype)
        return [int(block_index) for block_index in decoder.arrived_indices[culprit_indices]]
    if dtype.kind == "c":
        values = np.concatenate([values.real, values.imag], axis=1)
    deviation = checks @ values.astype(np.float64)
    deviation /= np.abs(deviation).max(initial=np.finfo(float).tiny)  # its squares must not overflow
    rounding_dtype = _choose_tolerance_dtype(dtype, lowest_precision_dtype)
    relative_tol = max(1e-6, 8 * compute_parity_check_tolerance(rounding_dtype))
    max_residual_norm = relative_tol * np.linalg.norm(deviation)
    check_norms = np.linalg.norm(checks, axis=0)
    checked_indices = np.flatnonzero(check_norms > COEFFICIENT_TOL)  # the others stand in no equation
    directions = (checks[:, checked_indices] / check_norms[checked_indices]).T
    residual_norms = [
        np.linalg.norm(deviation - np.outer(direction, direction @ deviation)) for direction in directions
    ]
    return [
        int(candidate_index)
        for candidate_index, residual_norm in zip(decoder.arrived_indices[checked_indices], residual_norms)
        if residual_norm <= max_residual_norm
    ]


def _choose_tolerance_dtype(dtype: DType, lowest_precision_dtype: DType | None) -> DType:
    """The floating dtype by whose rounding results of `dtype` may be off: float64 for integers."""
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
    """The columns of `checks` of which one alone can explain how equations deviate, modulo 2^bits.

    The equations without a column are those less as much of one as takes it out of them: of the one in which
    it has the fewest factors of two.
    """
    bit_mask = np.uint64((1 << 8 * dtype.itemsize) - 1)
    explaining_columns = []
    for column, coefficients in enumerate(checks.T):
        lowest_bits = coefficients & (~coefficients + np.uint64(1))
        powers_of_two = np.where(coefficients > 0, lowest_bits, bit_mask)  # the largest that divide each
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
