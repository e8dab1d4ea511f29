"""The parity equations left over once the missing blocks are determined.

With m > k arrivals the received blocks alone satisfy m - k equations. A residual means that f is
not linear, or that a worker returned garbage; two equations or more can tell which worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polarmap.codes import modular, tiled
from polarmap.codes.algebra import TINY, Recovery, Results, are_nonzero, are_seen
from polarmap.codes.dtypes import Array, DType, Floats, Indices, Mask, Words, epsilon, is_exact, real_dtype

NOISE_FLOOR = 1024  # roundings of the largest number of a leaf that any of its entries may carry
MOST_COLUMNS = 64  # entries looked at to find a culprit


class Residual(NamedTuple):
    """What the left-over equations say of one leaf.

    relative : largest residual. Where equations are broken, as a share of the largest value of
        that entry in any block; else, being rounding, of the largest value of the leaf.
    broken : entries (flat positions) where it exceeds rounding; empty if the equations hold.
    finite : whether the residual could be evaluated everywhere.
    """

    relative: float
    broken: Indices
    finite: bool


def tolerance(dtype: DType) -> float:
    """The relative residual above which an equation is broken: the square root of eps.

    Below it lies the rounding of any sensible f; what it lets pass is in the reported bound.
    """
    return float(np.sqrt(epsilon(dtype)))


def noise(dtype: DType) -> float:
    """The share of the largest number of a leaf that may be rounding in any of its entries."""
    return min(NOISE_FLOOR * epsilon(dtype), tolerance(dtype))


def largest_magnitude(arrays: Sequence[Array]) -> float:
    """The largest absolute value in any of them; 0 where all are empty.

    >>> largest_magnitude([np.zeros(2), np.array(-3)]), largest_magnitude([np.empty(0)])
    (3.0, 0.0)
    """
    if sum([array.nbytes for array in arrays]) <= tiled.TILE_BYTES:
        # Many small calls take longer than a copy.
        arrays = [np.concatenate(arrays, axis=None)]
    return max(float(np.abs(array).max(initial=0)) for array in arrays)


def covered(recovery: Recovery, dtype: DType) -> Mask:
    """Which arrived blocks of `dtype` show in a left-over equation whatever they deviate by, (arrived,)."""
    return np.asarray(are_seen(recovery.checks_of(dtype)).any(axis=0))


def most_terms(recovery: Recovery, dtype: DType) -> int:
    """The most blocks of `dtype` that stand in one left-over equation: two that are equal hold for any f."""
    return int(are_nonzero(recovery.checks_of(dtype)).sum(axis=1).max(initial=0))


def undetected(
    recovery: Recovery, largest: float | None, evaluated: Mapping[int, float], returned: int
) -> float:
    """The largest error that one deviating block can have caused unseen, in the unit of the residuals.

    A block that deviates by d breaks an equation by its coefficient times d, and moves a recovered
    block by its weight times d: what was measured bounds the one and so the other.

    Parameters
    ----------
    largest : float, optional
        The largest residual of the left-over equations; None if they were not looked at.
    evaluated : mapping from data block to float
        By how much recovered blocks missed what they should be.
    returned : int
        The first so many blocks are handed out themselves.
    """
    if not len(recovery.missing):
        return 0.0
    weights = recovery.weights
    reach = np.maximum(np.maximum(weights.max(axis=0), -weights.min(axis=0)), recovery.arrived < returned)
    least = np.full(len(recovery.arrived), np.inf)
    if largest is not None and len(recovery.checks):
        least = _quotient(largest, np.abs(recovery.checks).max(axis=0))
    for block, missed in evaluated.items():
        least = np.minimum(
            least, _quotient(missed, np.abs(weights[np.searchsorted(recovery.missing, block)]))
        )
    seen = np.isfinite(least)
    return float((reach[seen] * least[seen]).max(initial=0.0))


def _quotient(deviation: float, coefficients: Floats) -> Floats:
    """deviation / coefficients; inf where a coefficient is nothing but rounding."""
    seen = coefficients > TINY
    return np.where(seen, deviation / np.where(seen, coefficients, 1.0), np.inf)


def residual(
    recovery: Recovery,
    rows: Results,
    dtype: DType,
    rtol: float | None = None,
    precision: DType | None = None,
    error: float = 0.0,
    terms: float = 0.0,
) -> Residual:
    """Evaluate the left-over equations on the arrived flat blocks of one leaf.

    `precision` is a coarser dtype in which the blocks were rounded on the way, if there is one,
    `error` what each entry may be off by anyway, and `terms` how large entries are where the terms do not
    cancel whose sums they are, if that is known: rounding is a share of that, too.
    """
    if dtype.kind == "c":
        real = real_dtype(dtype)
        halves = {index: row.astype(dtype, copy=False).view(real) for index, row in rows.items()}
        found = residual(recovery, halves, real, rtol, precision, error, terms)
        return found._replace(broken=np.unique(found.broken // 2))
    received = [rows[int(index)] for index in recovery.arrived]
    checks = recovery.checks_of(dtype)
    if is_exact(checks.dtype):
        return _integer_residual(checks, received, dtype)
    sized = _sized(dtype, precision)
    largest = max(largest_magnitude(received), terms)
    floor = max(noise(sized) * largest, error)
    return _real_residual(checks, received, max(tolerance(sized), rtol or 0.0), floor, largest)


def _real_residual(
    checks: Floats | Words, received: list[Array], limit: float, floor: float, largest: float
) -> Residual:
    """An entry breaks an equation by more than `limit` of its largest value in any block, and `floor`."""
    rounding, worst, broken, finite = 0.0, 0.0, [], True
    for columns in tiled.tiles(received[0].size, len(received), 8):
        tile = tiled.gather(received, columns, np.float64)
        with tiled.ignoring_inf():
            deviation = np.abs(tiled.matmul(checks, tile)).max(axis=0, initial=0)
            scale = np.abs(tile).max(axis=0)
            finite &= bool(np.isfinite(deviation).all())
            over = deviation > limit * scale + floor
            share = np.maximum(deviation - floor, 0) / np.where(scale > 0, scale, 1)
        worst = max(worst, float(share.max(initial=0)))
        rounding = max(rounding, float(deviation.max(initial=0)) / (largest or 1.0))
        broken.append(columns.start + np.flatnonzero(over))
    entries = np.concatenate(broken) if broken else np.empty(0, np.intp)
    return Residual(worst if len(entries) else rounding, entries, finite)


def culprits(
    recovery: Recovery, rows: Results, broken: Indices, dtype: DType, precision: DType | None = None
) -> list[int]:
    """The blocks of which one alone can explain the broken entries; needs two equations or more."""
    columns = broken[np.linspace(0, len(broken) - 1, min(len(broken), MOST_COLUMNS)).astype(int)]
    received = np.stack([rows[int(index)][columns] for index in recovery.arrived])
    checks = recovery.checks_of(dtype)
    if len(checks) < 2:
        return []
    if is_exact(checks.dtype):
        left_over = modular.matmul(checks, received.astype(np.int64))
        found = _integer_culprits(checks.view(np.uint64), left_over, dtype)
        return [int(index) for index in recovery.arrived[found]]
    if dtype.kind == "c":
        received = np.concatenate([received.real, received.imag], axis=1)
    deviation = checks @ received.astype(np.float64)
    deviation /= np.abs(deviation).max(initial=np.finfo(float).tiny)  # its squares must not overflow
    allowed = max(1e-6, 8 * tolerance(_sized(dtype, precision))) * np.linalg.norm(deviation)
    norms = np.linalg.norm(checks, axis=0)
    checked = np.flatnonzero(norms > TINY)  # the others stand in no equation
    directions = (checks[:, checked] / norms[checked]).T
    left = [np.linalg.norm(deviation - np.outer(one, one @ deviation)) for one in directions]
    return [int(i) for i, rest in zip(recovery.arrived[checked], left) if rest <= allowed]


def _sized(dtype: DType, precision: DType | None) -> DType:
    """The floating dtype by whose rounding results of `dtype` may be off: float64 for integers."""
    return np.dtype(np.float64) if is_exact(dtype) else precision or dtype


def _integer_residual(checks: Floats | Words, received: list[Array], dtype: DType) -> Residual:
    bits = np.uint64((1 << 8 * dtype.itemsize) - 1)
    broken = []
    for columns in tiled.tiles(received[0].size, len(received), 8):
        deviation = modular.matmul(checks, tiled.gather(received, columns, np.int64)) & bits
        broken.append(columns.start + np.flatnonzero(deviation.any(axis=0)))
    found = np.concatenate(broken) if broken else np.empty(0, np.intp)
    return Residual(float(len(found) > 0), found, True)


def _integer_culprits(checks: Words, deviation: Words, dtype: DType) -> Indices:
    """The columns of `checks` of which one alone can explain how equations deviate, modulo 2^bits.

    The equations without a column are those less as much of one as takes it out of them: of the one in which
    it has the fewest factors of two.
    """
    bits = np.uint64((1 << 8 * dtype.itemsize) - 1)
    found = []
    for column, ours in enumerate(checks.T):
        twos = np.where(ours > 0, ours & (~ours + np.uint64(1)), bits)  # the largest power of two in each
        pivot = int(np.argmin(twos))
        if not ours[pivot]:
            continue
        others = (ours // twos[pivot])[:, None] * deviation[pivot] - (ours[pivot] // twos[pivot]) * deviation
        is_multiple = deviation[pivot] & (twos[pivot] - np.uint64(1)) & bits
        if not (others & bits).any() and not is_multiple.any():
            found.append(column)
    return np.array(found, np.intp)
