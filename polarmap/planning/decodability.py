"""Simulate how many results must arrive, in random order, before a code can be decoded.

If all workers have the same run-time distribution, the order in which results arrive does not depend on when
they arrive. So the probability that the m-th result completes the job is a property of the code alone. It is
simulated once per code. Completion times for any run-time distribution are then computed from it without
further simulation (`order_statistics`).
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

# A numerical test for linearly dependent columns of a matrix. After the QR factorization, a column counts as
# dependent on the previous columns if its diagonal entry of R is at most this fraction of the largest
# previous entry.
RANK_TOL = 1e-11
ARIKAN_SCHEMES = ("sequential", "optimal", "integers")  # The schemes that use Arikan's kernel.
# Simulated jobs are processed in batches of about this many bytes, which fit into the CPU cache.
TILE_BYTES = 1 << 20


class ArrivalsNeeded(NamedTuple):
    """The probability distribution of the number of results needed to decode a job.

    Attributes
    ----------
    counts : array (j,)
        The possible numbers of results, in ascending order.
    probabilities : array (j,)
        The probability of each number.
    n_trials : int
        The number of simulated arrival orders; 0 if the distribution is exact.
    """

    counts: Floats
    probabilities: Floats
    n_trials: int

    def decodable_probabilities(self, n: int) -> Floats:
        """Return the probability that m results suffice to decode, for m = 0, 1, ..., n."""
        cumulative = np.append(0.0, self.probabilities.cumsum())
        return cumulative[np.searchsorted(self.counts, np.arange(n + 1), "right")]


def get_decoder_name(scheme: str) -> str:
    """Return the `decoder` argument of `PolarCode` for a scheme of `completion_time`.

    >>> get_decoder_name("sequential"), get_decoder_name("integers"), get_decoder_name("rotation")
    ('sequential', 'optimal', 'optimal')
    """
    return "sequential" if scheme == "sequential" else "optimal"


@lru_cache(maxsize=256)
def simulate_arrivals_needed(
    n: int, k: int, scheme: str, erasure: float | None, n_trials: int, seed: int
) -> ArrivalsNeeded:
    """Simulate how many results are needed to decode if they arrive in random order.

    The code is a polar code with Arikan's kernel, designed for the erasure probability `erasure`. `scheme`,
    one of ARIKAN_SCHEMES, determines the decoder.

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
    """Return when each simulated job becomes decodable, given the arrival times of its results.

    Parameters
    ----------
    code : PolarCode
        A code with Arikan's kernel and with the decoder of `scheme`.
    arrival_times : array (n, trials)
        The arrival time of each coded block's result, in seconds or as a rank (1 for the first).
    scheme : str
        One of ARIKAN_SCHEMES.

    Returns
    -------
    array (trials,), of the dtype of `arrival_times`
    """
    if scheme == "sequential":
        return sequential_decoding_times(code, arrival_times)
    arrival_orders = np.argsort(arrival_times, axis=0, kind="stable").T
    n_needed = count_arrivals_needed(code, arrival_orders, modular=scheme == "integers")
    trials = np.arange(len(arrival_orders))
    return np.asarray(arrival_times[arrival_orders[trials, n_needed - 1], trials])


def sequential_decoding_times(code: PolarCode, arrival_times: Array) -> Array:
    """Compute when jobs become decodable with the sequential (successive cancellation) decoder.

    This decoder computes the inputs of a polar code from the results in several steps. Each step computes two
    new values from each pair of values. One of them becomes known when both values of the pair are known, and
    the other when at least one is known. The times at which the inputs become known are therefore maxima and
    minima of pairs of arrival times, computed step by step.

    A job is decodable when all inputs that carry data are known. It is also decodable when the results of all
    data blocks have arrived.

    Parameters
    ----------
    code : PolarCode
        A code with Arikan's kernel and decoder="sequential".
    arrival_times : array (n, trials)
        The arrival time of each coded block's result, in seconds or as a rank. For a result that never
        arrives, pass inf or the largest integer of the dtype.

    Returns
    -------
    array (trials,), of the dtype of `arrival_times`

    Examples
    --------
    >>> code = PolarCode(4, 2, "arikan", "sequential")
    >>> sequential_decoding_times(code, np.array([[1.0], [9.0], [3.0], [2.0]])).tolist()
    [2.0]
    """
    is_table = arrival_times.ndim == 2 and len(arrival_times) == code.n
    if not isinstance(code, ArikanCode) or code.decoder != "sequential" or not is_table:
        raise CodeError(
            f"code must be an arikan code with decoder='sequential', and arrival_times of shape "
            f"({code.n}, trials), not of shape {arrival_times.shape}"
        )
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
    """Replace pairs of times by their maximum and minimum, in log2(N) stages, for N = len(times).

    The array is changed in place. The pairs are formed along the first axis, as in a fast Fourier transform:
    the members of a pair are N / 2 apart in the first stage, then N / 4, and so on.
    """
    half = len(times) // 2
    while half:
        pairs = times.reshape(-1, 2, half, *times.shape[1:])
        later = np.maximum(pairs[:, 0], pairs[:, 1])
        np.minimum(pairs[:, 0], pairs[:, 1], out=pairs[:, 1])
        pairs[:, 0] = later
        half //= 2


# How the functions below count the results that are needed: Missing results can be decoded if and only if
# their columns of the parity-check matrix are linearly independent. The functions therefore go backwards from
# the last result, and treat more and more results as missing until the columns become dependent. The results
# that are not treated as missing by then are needed.


def count_arrivals_needed(code: PolarCode, arrival_orders: Array, modular: bool) -> npt.NDArray[np.intp]:
    """Return how many results the optimal decoder needs for each arrival order.

    Parameters
    ----------
    code : PolarCode
        A code with Arikan's kernel.
    arrival_orders : index array (trials, n)
        The coded block indices of each trial, in the order in which the results arrive.
    modular : bool
        Decode integers modulo 2^64 instead of real numbers.

    Returns
    -------
    index array (trials,)
    """
    if modular:
        packed_columns = pack_rows_gf2(code.parity_check_matrix.T)
        counts = [_count_arrivals_needed_gf2(packed_columns, order.tolist()) for order in arrival_orders]
        return np.array(counts)
    check_matrix = code.parity_check_matrix.astype(float)
    return np.array([_count_arrivals_needed_over_reals(check_matrix, order) for order in arrival_orders])


def _count_arrivals_needed_over_reals(check_matrix: Floats, arrival_order: Array) -> int:
    """Return how many results are needed to decode real numbers if results arrive in this order.

    Parameters
    ----------
    check_matrix : array (n - k, n)
        The parity-check matrix.
    arrival_order : index array (n,)
        The coded block indices in the order of arrival.
    """
    last_arrivals = arrival_order[::-1][: len(check_matrix)]
    triangular_factor: Array = np.asarray(np.linalg.qr(check_matrix[:, last_arrivals], mode="r"))
    diagonal = np.abs(np.diag(triangular_factor))
    dependent_indices = np.flatnonzero(diagonal <= RANK_TOL * np.maximum.accumulate(diagonal))
    return len(arrival_order) - int(dependent_indices[0] if len(dependent_indices) else len(last_arrivals))


def _count_arrivals_needed_gf2(packed_columns: list[int], arrival_order: list[int]) -> int:
    """Return how many results are needed to decode over GF(2), the integers modulo 2.

    Parameters
    ----------
    packed_columns : list of int
        The columns of the parity-check matrix, each packed into the bits of a Python integer.
    arrival_order : list of int
        The coded block indices in the order of arrival.
    """
    basis_by_leading_bit: dict[int, int] = {}
    for n_missing, block_index in enumerate(reversed(arrival_order)):
        remainder = reduce_row_gf2(packed_columns[block_index], basis_by_leading_bit)
        if not remainder:
            return len(arrival_order) - n_missing
        basis_by_leading_bit[remainder.bit_length()] = remainder
    raise AssertionError("n columns of n - k bits are dependent")


def _get_infinite_time(dtype: np.dtype[Any]) -> float | int:
    return np.inf if dtype.kind == "f" else int(np.iinfo(dtype).max)
