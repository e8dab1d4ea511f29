"""How many arrivals a code needs, when they come in random order.

The workers are alike, so which of them are early does not depend on how early they are: the m-th
arrival completes the job with a probability that is a property of the code alone. It is simulated
once per code, and every run-time distribution is then integrated exactly (`order_statistics`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.codes.arikan_code import ArikanCode
from polarmap.codes.modular_linalg import pack_rows_gf2, reduce_row_gf2
from polarmap.codes.polar import PolarCode
from polarmap.errors import CodeError
from polarmap.planning.distributions import Floats

Array = npt.NDArray[Any]

RANK_TOL = 1e-11  # a column whose new part is smaller, relative to the others', has none
ARIKAN_SCHEMES = ("sequential", "optimal", "integers")  # schemes of the arikan code, each with its decoder
TILE_BYTES = 1 << 20  # of the butterfly of some trials: what a core's cache holds


class ArrivalsNeeded(NamedTuple):
    """The distribution of the number of arrivals that determine the data.

    Attributes
    ----------
    counts
        Distinct numbers m, ascending, (j,).
    probabilities
        Their probabilities, (j,).
    n_trials
        Orders of arrival simulated; 0 if the distribution is exact.
    """

    counts: Floats
    probabilities: Floats
    n_trials: int

    def decodable_probabilities(self, n: int) -> Floats:
        """P(m arrivals suffice) for m = 0..n."""
        cumulative = np.append(0.0, self.probabilities.cumsum())
        return cumulative[np.searchsorted(self.counts, np.arange(n + 1), "right")]


def get_decoder_name(scheme: str) -> str:
    """The decoder of the code that a scheme names.

    >>> get_decoder_name("sequential"), get_decoder_name("integers"), get_decoder_name("rotation")
    ('sequential', 'optimal', 'optimal')
    """
    return "sequential" if scheme == "sequential" else "optimal"


@lru_cache(maxsize=256)
def simulate_arrivals_needed(
    n: int, k: int, scheme: str, erasure: float | None, n_trials: int, seed: int
) -> ArrivalsNeeded:
    """What a decoder of the arikan code needs, by the scheme that names it: one of DECODED.

    >>> needed = simulate_arrivals_needed(16, 12, "sequential", None, 2000, 0)
    >>> round(float(needed.counts @ needed.probabilities) - 12, 1)
    0.8
    """
    code = PolarCode(n, k, "arikan", get_decoder_name(scheme), erasure)
    ordered_ranks = np.repeat(np.arange(1, n + 1, dtype=np.int32)[None], n_trials, axis=0)
    arrival_ranks = np.ascontiguousarray(np.random.default_rng(seed).permuted(ordered_ranks, axis=1).T)
    decoding_ranks = compute_decoding_times(code, arrival_ranks, scheme)
    arrival_counts, frequencies = np.unique(decoding_ranks, return_counts=True)
    return ArrivalsNeeded(arrival_counts.astype(float), frequencies / n_trials, n_trials)


def compute_decoding_times(code: PolarCode, arrival_times: Array, scheme: str) -> Array:
    """When blocks that arrive at such times, or in such turns, (n, trials), determine the data, (trials,)."""
    if scheme == "sequential":
        return sequential_decoding_times(code, arrival_times)
    arrival_orders = np.argsort(arrival_times, axis=0, kind="stable").T
    n_needed = count_arrivals_needed(code, arrival_orders, modular=scheme == "integers")
    trials = np.arange(len(arrival_orders))
    return np.asarray(arrival_times[arrival_orders[trials, n_needed - 1], trials])


def sequential_decoding_times(code: PolarCode, arrival_times: Array) -> Array:
    """When the sequential decoder is through, in one max/min butterfly.

    Parameters
    ----------
    code : PolarCode
        With decoder="sequential".
    arrival_times : array (n, trials)
        Arrival times (or ranks) of coded blocks 0..n-1; inf, or the largest integer, for never.

    Returns
    -------
    array (trials,), of the same dtype
        A pair of workers finishes its minus branch when the later of the two arrives and its plus
        branch when the earlier does; the job, when every unfrozen input has, or all data blocks
        have arrived untouched.

    Examples
    --------
    >>> code = PolarCode(4, 2, "arikan", "sequential")
    >>> sequential_decoding_times(code, np.array([[1.0], [9.0], [3.0], [2.0]])).tolist()
    [2.0]
    """
    is_table = arrival_times.ndim == 2 and len(arrival_times) == code.n
    if not isinstance(code, ArikanCode) or code.decoder != "sequential" or not is_table:
        raise CodeError(f"arrivals of shape ({code.n}, trials) at a sequential decoder are needed")
    zero_input_mask, n_trials = code.zero_input_mask, arrival_times.shape[1]
    mother_length = zero_input_mask.size
    tile_width = max(1, TILE_BYTES // (mother_length * arrival_times.itemsize))
    finish_times = np.empty(n_trials, arrival_times.dtype)
    table = np.empty((mother_length, min(tile_width, n_trials)), arrival_times.dtype)
    for start in range(0, n_trials, tile_width):
        batch_times = arrival_times[:, start : start + tile_width]
        tile = table[:, : batch_times.shape[1]]
        tile[: mother_length - code.n] = _get_infinite_time(arrival_times.dtype)
        tile[code.codeword_positions] = batch_times
        _polarize_arrival_times(tile.reshape(*zero_input_mask.shape, -1))
        decoding_times = tile[~zero_input_mask.ravel()].max(axis=0)
        data_arrival_times = batch_times[: code.k].max(axis=0)
        finish_times[start : start + tile_width] = np.minimum(decoding_times, data_arrival_times)
    return finish_times


def _polarize_arrival_times(times: Array) -> None:
    """Replace, in place along the first axis, every pair by its maximum and its minimum."""
    half = len(times) // 2
    while half:
        pairs = times.reshape(-1, 2, half, *times.shape[1:])
        later = np.maximum(pairs[:, 0], pairs[:, 1])
        np.minimum(pairs[:, 0], pairs[:, 1], out=pairs[:, 1])
        pairs[:, 0] = later
        half //= 2


# A set of blocks may be missing iff its columns of C are independent. So the blocks are taken away
# from the last arrival backwards until one depends on those taken: one elimination per order.


def count_arrivals_needed(code: PolarCode, arrival_orders: Array, modular: bool) -> npt.NDArray[np.intp]:
    """The arrivals that the optimal decoder needs in each order of blocks, (trials, n) -> (trials,).

    modular : for integers modulo 2^64.
    """
    if modular:
        packed_columns = pack_rows_gf2(code.parity_check_matrix.T)
        counts = [_count_arrivals_needed_gf2(packed_columns, order.tolist()) for order in arrival_orders]
        return np.array(counts)
    check_matrix = code.parity_check_matrix.astype(float)
    return np.array([_count_arrivals_needed_over_reals(check_matrix, order) for order in arrival_orders])


def _count_arrivals_needed_over_reals(check_matrix: Floats, arrival_order: Array) -> int:
    """The arrivals needed in this order, for real numbers."""
    last_arrivals = arrival_order[::-1][: len(check_matrix)]
    triangular_factor: Array = np.asarray(np.linalg.qr(check_matrix[:, last_arrivals], mode="r"))
    diagonal = np.abs(np.diag(triangular_factor))
    dependent_indices = np.flatnonzero(diagonal <= RANK_TOL * np.maximum.accumulate(diagonal))
    return len(arrival_order) - int(dependent_indices[0] if len(dependent_indices) else len(last_arrivals))


def _count_arrivals_needed_gf2(packed_columns: list[int], arrival_order: list[int]) -> int:
    """The arrivals needed in this order, over GF(2), where rows are bits of Python integers."""
    basis_by_leading_bit: dict[int, int] = {}
    for n_missing, block_index in enumerate(reversed(arrival_order)):
        remainder = reduce_row_gf2(packed_columns[block_index], basis_by_leading_bit)
        if not remainder:
            return len(arrival_order) - n_missing
        basis_by_leading_bit[remainder.bit_length()] = remainder
    raise AssertionError("n columns of n - k bits are dependent")


def _get_infinite_time(dtype: np.dtype[Any]) -> float | int:
    return np.inf if dtype.kind == "f" else int(np.iinfo(dtype).max)
