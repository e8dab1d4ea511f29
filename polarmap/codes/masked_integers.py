"""MaskedIntegerCode: integers under uniform noise modulo 2^64, of which few workers learn nothing at all.

    G = [D, N] for the unknowns u of (data, noise),   T = [I, 0],   coded blocks = G u  modulo 2^64

D and N are columns of the Arikan butterfly. Its inputs of the Reed-Muller code RM(r, m) carry noise:
the dual of that code has distance 2^(r+1), so any t < 2^(r+1) rows of N are independent modulo 2, hence
solvable modulo 2^64, and what t workers get is uniform whatever the data are. The other inputs that
polarization finds best carry the data, the rest is frozen.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from polarmap.codes import kernels, tiled
from polarmap.codes.algebra import Recovery
from polarmap.codes.checks import checked_count
from polarmap.codes.design import erasure_probabilities, power_of_two_above
from polarmap.codes.dtypes import Array, DType, Indices, Mask, check_dtype, is_exact
from polarmap.codes.linear import LinearCode
from polarmap.codes.modular import NO_FLOATS, LinearModularRecovery
from polarmap.codes.polar import OPTIMAL_SHARE
from polarmap.errors import CodeError

MAX_N = 1 << 12  # ranks modulo 2 are of dense matrices


class MaskedIntegerCode(LinearCode):
    """n mixtures of k blocks of integers and of uniform noise, modulo 2^64.

    Any t workers together see uniform numbers: perfect secrecy, whatever they know of the data and
    however long they compute. No digits are lost. f must be linear over the integers, with f(0) = 0
    and integer results: a constant that f adds cannot be told from noise.

    Parameters
    ----------
    n : int
        Coded blocks (workers), more than data and noise blocks together; at most 4,096.
    k : int
        Data blocks, at least 1.
    t : int
        Workers that may put together what they got.

    Notes
    -----
    Noise of 1, m + 1, m (m + 1) / 2 + 1, ... blocks for t = 1, 3, 7, ..., n = 2^m (MacWilliams and
    Sloane 1977, chapter 13). Over the integers modulo 2 no code does with t for every n; results of
    about two or three workers more than data and noise blocks are needed on average.

    Examples
    --------
    >>> code = MaskedIntegerCode(8, 3, 1)
    >>> noise = np.array([[2**63 + 5]], np.uint64).view(np.int64)
    >>> mixed = code.parity(np.concatenate([[[1], [2], [3]], noise]))
    >>> recovery = code.recovery(np.arange(8) != 2, exact=True)
    >>> arrived = {i: row for i, row in enumerate(mixed) if i != 2}
    >>> recovery.recover(arrived, np.dtype(int)).ravel().tolist()
    [1, 2, 3]
    """

    assumption = "linear over the integers, with f(0) = 0"
    carries_integers = True
    is_mds = False

    def __init__(self, n: int, k: int, t: int) -> None:
        n, k, t = checked_count("n", n), checked_count("k", k), checked_count("t", t)
        if n > MAX_N:
            raise CodeError(f"a code of masked integers has at most {MAX_N} workers, not n = {n}")
        noise = noise_count(n, t)
        if n <= k + noise:
            raise CodeError(
                f"{k} data blocks, and {noise} of noise against {t} colluders among {n} workers, need "
                f"{k + noise} results and a spare one: use n = {tasks_for(k, t)}"
            )
        self.n, self.k, self.t = n, k, t
        self.name = f"masked against {self.t}, uniform noise"

    def __repr__(self) -> str:
        return f"MaskedIntegerCode({self.n}, {self.k}, {self.t})"

    @property
    def noise_blocks(self) -> int:
        """How many blocks of uniform noise the data are mixed with."""
        return noise_count(self.n, self.t)

    @property
    def mixed(self) -> int:
        """How many blocks the coded blocks are mixed of: data and noise."""
        return len(self.inputs)

    @cached_property
    def inputs(self) -> Indices:
        """Inputs of the butterfly that carry the data blocks, then those that carry noise."""
        noise = noise_inputs(self.n, self.t)
        length = power_of_two_above(self.n)
        leaves = np.full(length, OPTIMAL_SHARE * (self.n - self.k - len(noise)) / self.n)
        leaves[: length - self.n] = 1.0
        others = np.setdiff1d(np.arange(length - self.n, length), noise)
        best = others[np.argsort(erasure_probabilities(leaves)[others], kind="stable")[: self.k]]
        return np.concatenate([np.sort(best), noise])

    @cached_property
    def coefficients(self) -> Array:
        """G = [D, N], shape (n, k + noise blocks), of zeros and ones."""
        length = power_of_two_above(self.n)
        columns = np.zeros((length, len(self.inputs)), np.int64)
        columns[self.inputs, np.arange(len(self.inputs))] = 1
        return kernels.arikan(columns)[length - self.n :]

    def parity_dtype(self, dtype: npt.DTypeLike) -> DType:
        """Dtype of the mixtures: 64 bits, since fewer would wrap where results have more."""
        checked = check_dtype(dtype, "the data")
        if not is_exact(checked):
            raise CodeError(f"{checked} blocks cannot be masked modulo 2^64: use MaskedCode(n, k, t)")
        return checked if checked.itemsize == 8 else np.dtype(np.int64)

    def _fill_parity(self, rows: tiled.Rows, out: Array) -> None:
        length = power_of_two_above(self.n)

        def work(columns: slice) -> None:
            tile = np.zeros((length, columns.stop - columns.start), out.dtype)
            tile[self.inputs] = tiled.gather(rows, columns, out.dtype)
            out[:, columns] = kernels.arikan(tile)[length - self.n :]

        tiled.over_cores(work, list(tiled.tiles(out.shape[1], length, 8)))

    def recovery(self, arrived: Mask, exact: bool) -> Recovery:
        """How to recover the results of the data blocks; CodeError for those that are no integers."""
        if not exact:
            raise CodeError(NO_FLOATS)
        return LinearModularRecovery(self, arrived)


@lru_cache(maxsize=64)
def noise_inputs(n: int, t: int) -> Indices:
    """Inputs of the butterfly that carry noise, so that any t of n outputs are independent and uniform.

    Those of RM(r, m), whose columns have weight 2^(m-r) or more, as far as outputs that are sent see them.

    >>> noise_inputs(8, 1).tolist(), noise_inputs(8, 3).tolist(), noise_inputs(6, 3).tolist()
    ([7], [3, 5, 6, 7], [3, 5, 6, 7])
    """
    length = power_of_two_above(n)
    order = (t + 1).bit_length() - 1 + ((t + 1) & t != 0) - 1  # the least r with 2^(r+1) > t
    ones = length.bit_length() - 1 - order
    return np.array([i for i in range(length - n, length) if i.bit_count() >= ones], dtype=np.intp)


def noise_count(n: int, t: int) -> int:
    """How many blocks of noise keep the data from any t of n workers.

    >>> [noise_count(64, t) for t in (1, 2, 3, 7)]
    [1, 7, 7, 22]
    """
    return len(noise_inputs(n, t))


def tasks_for(k: int, t: int) -> int:
    """The fewest workers of whose results a quarter is spare, with k data blocks and t colluders.

    >>> tasks_for(24, 1), tasks_for(24, 3)
    (34, 42)
    """
    n = k + t + 2
    while n <= MAX_N and 4 * (k + noise_count(n, t)) > 3 * n:
        n += 1
    return n


def blocks_for(workers: int, t: int) -> int:
    """The most data blocks that leave a quarter of the results of `workers` spare, at least one.

    >>> blocks_for(34, 1), blocks_for(44, 3)
    (24, 26)
    """
    return max(1, 3 * workers // 4 - noise_count(workers, t))
