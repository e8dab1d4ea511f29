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
from polarmap.codes.polar import PolarCode
from polarmap.errors import CodeError
from polarmap.planning.distributions import Floats

Array = npt.NDArray[Any]

DEPENDENT = 1e-11  # a column whose new part is smaller, relative to the others', has none
DECODED = ("sequential", "optimal", "integers")  # schemes of the arikan code, each with its decoder
TILE_BYTES = 1 << 20  # of the butterfly of some trials: what a core's cache holds


class ArrivalsNeeded(NamedTuple):
    """The distribution of the number of arrivals that determine the data.

    Attributes
    ----------
    ranks
        Distinct numbers m, ascending, (j,).
    weights
        Their probabilities, (j,).
    trials
        Orders of arrival simulated; 0 if the distribution is exact.
    """

    ranks: Floats
    weights: Floats
    trials: int

    def decodes(self, n: int) -> Floats:
        """P(m arrivals suffice) for m = 0..n."""
        return np.append(0.0, self.weights.cumsum())[np.searchsorted(self.ranks, np.arange(n + 1), "right")]


def decoder_of(scheme: str) -> str:
    """The decoder of the code that a scheme names.

    >>> decoder_of("sequential"), decoder_of("integers"), decoder_of("rotation")
    ('sequential', 'optimal', 'optimal')
    """
    return "sequential" if scheme == "sequential" else "optimal"


@lru_cache(maxsize=256)
def simulated(n: int, k: int, scheme: str, erasure: float | None, trials: int, seed: int) -> ArrivalsNeeded:
    """What a decoder of the arikan code needs, by the scheme that names it: one of DECODED.

    >>> needed = simulated(16, 12, "sequential", None, 2000, 0)
    >>> round(float(needed.ranks @ needed.weights) - 12, 1)
    0.8
    """
    code = PolarCode(n, k, "arikan", decoder_of(scheme), erasure)
    in_turn = np.repeat(np.arange(1, n + 1, dtype=np.int32)[None], trials, axis=0)
    arrivals = np.ascontiguousarray(np.random.default_rng(seed).permuted(in_turn, axis=1).T)
    ranks, counts = np.unique(finish(code, arrivals, scheme), return_counts=True)
    return ArrivalsNeeded(ranks.astype(float), counts / trials, trials)


def finish(code: PolarCode, arrivals: Array, scheme: str) -> Array:
    """When blocks that arrive at such times, or in such turns, (n, trials), determine the data, (trials,)."""
    if scheme == "sequential":
        return sequential_finish(code, arrivals)
    orders = np.argsort(arrivals, axis=0, kind="stable").T
    ranks = optimal_ranks(code, orders, exact=scheme == "integers")
    return np.asarray(arrivals[orders[np.arange(len(orders)), ranks - 1], np.arange(len(orders))])


def sequential_finish(code: PolarCode, arrivals: Array) -> Array:
    """When the sequential decoder is through, in one max/min butterfly.

    Parameters
    ----------
    code : PolarCode
        With decoder="sequential".
    arrivals : array (n, trials)
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
    >>> sequential_finish(code, np.array([[1.0], [9.0], [3.0], [2.0]])).tolist()
    [2.0]
    """
    if (
        not isinstance(code, ArikanCode)
        or code.decoder != "sequential"
        or arrivals.ndim != 2
        or len(arrivals) != code.n
    ):
        raise CodeError(f"arrivals of shape ({code.n}, trials) at a sequential decoder are needed")
    frozen, trials = code.frozen_mask, arrivals.shape[1]
    length = frozen.size
    width = max(1, TILE_BYTES // (length * arrivals.itemsize))
    out = np.empty(trials, arrivals.dtype)
    leaves = np.empty((length, min(width, trials)), arrivals.dtype)
    for first in range(0, trials, width):
        part = arrivals[:, first : first + width]
        tile = leaves[:, : part.shape[1]]
        tile[: length - code.n] = _latest(arrivals.dtype)
        tile[code.order] = part
        _slow_and_fast(tile.reshape(*frozen.shape, -1))
        untouched = part[: code.k].max(axis=0)
        out[first : first + width] = np.minimum(tile[~frozen.ravel()].max(axis=0), untouched)
    return out


def _slow_and_fast(leaves: Array) -> None:
    """Replace, in place along the first axis, every pair by its maximum and its minimum."""
    half = len(leaves) // 2
    while half:
        pairs = leaves.reshape(-1, 2, half, *leaves.shape[1:])
        later = np.maximum(pairs[:, 0], pairs[:, 1])
        np.minimum(pairs[:, 0], pairs[:, 1], out=pairs[:, 1])
        pairs[:, 0] = later
        half //= 2


# A set of blocks may be missing iff its columns of C are independent. So the blocks are taken away
# from the last arrival backwards until one depends on those taken: one elimination per order.


def optimal_ranks(code: PolarCode, orders: Array, exact: bool) -> npt.NDArray[np.intp]:
    """The arrivals that the optimal decoder needs in each order of blocks, (trials, n) -> (trials,).

    exact : for integers modulo 2^64.
    """
    if exact:
        columns = _columns(code)
        return np.array([_integer_rank(columns, order.tolist()) for order in orders])
    check = code.parity_check.astype(float)
    return np.array([_real_rank(check, order) for order in orders])


def _real_rank(check: Floats, order: Array) -> int:
    """The arrivals needed in this order, for real numbers."""
    last = order[::-1][: len(check)]
    triangle: Array = np.asarray(np.linalg.qr(check[:, last], mode="r"))
    diagonal = np.abs(np.diag(triangle))
    dependent = np.flatnonzero(diagonal <= DEPENDENT * np.maximum.accumulate(diagonal))
    return len(order) - int(dependent[0] if len(dependent) else len(last))


def _integer_rank(columns: list[int], order: list[int]) -> int:
    """The arrivals needed in this order, over GF(2), where rows are bits of Python integers."""
    basis: dict[int, int] = {}  # leading bit -> column
    for missing, index in enumerate(reversed(order)):
        column = columns[index]
        while column and (lead := column.bit_length()) in basis:
            column ^= basis[lead]
        if not column:
            return len(order) - missing
        basis[lead] = column
    raise AssertionError("n columns of n - k bits are dependent")


def _columns(code: PolarCode) -> list[int]:
    """The columns of C = [P, -I] modulo 2, r bits each, as Python integers."""
    odd = (code.parity_check.T & 1).astype(np.uint8)
    return [int.from_bytes(row.tobytes(), "little") for row in np.packbits(odd, axis=1, bitorder="little")]


def _latest(dtype: np.dtype[Any]) -> float | int:
    return np.inf if dtype.kind == "f" else int(np.iinfo(dtype).max)
