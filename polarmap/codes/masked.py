"""MaskedCode: coded blocks that are all mixtures with noise, so that few workers learn little.

    G = [D, N] for the unknowns f of (data, noise),   T = [I, 0],   coded blocks = G (data, noise)

Frozen inputs of a code are zero; here t of its inputs are noise instead (secret sharing over the
reals, as in Lagrange coded computing, Yu et al. 2019, arXiv 1806.00939, there over finite fields).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from polarmap.codes.checks import checked_count, is_positive
from polarmap.codes.design import UniformStream, subsets
from polarmap.codes.dtypes import Floats, Indices, is_integer
from polarmap.codes.linear import LinearCode
from polarmap.codes.recovery import left_inverse
from polarmap.errors import CodeError

MAX_N = 1 << 16

SEEDS, PATTERNS = 8, 64  # tried up to 64 blocks, and the most patterns of arrivals each is tried on
COALITIONS = 4096  # sets of t workers whose leakage is computed one by one; a sample beyond
CONSTANT = 0.25  # norm of a row of noise coefficients
RELIABLE = 0.9  # of the patterns of half the spare losses must decode for a code to be worth its launch


@dataclass(frozen=True)
class Masked:
    """For `code=` of `coded_map`: a code that masks the data, with the sizes that the data ask for.

    Any `colluders` workers that put together what they got see the data only under noise. No block is
    sent as it is.

    * Floating data, a `MaskedCode`: normal noise. k + colluders results determine the rest, for linear
      or affine f. Not perfect secrecy: `MaskedCode.leakage` bounds what they learn.
    * Integers, a `MaskedIntegerCode`: uniform noise modulo 2^64. They learn nothing, and no digits are
      lost; f must be linear with integer results, and it takes more workers.

    Parameters
    ----------
    colluders : int
        t, how many workers may put together what they got.
    noise : float
        Of floating data: standard deviation of what masks them, in root mean squares of the data. Leakage
        falls with its square, and its digits are lost in decoding.

    Examples
    --------
    >>> from polarmap import coded_map
    >>> from polarmap.codes import Masked
    >>> from polarmap.testing import ReplayExecutor
    >>> A = np.arange(12.0).reshape(6, 2)
    >>> code = Masked(colluders=1, noise=30.0)
    >>> y = coded_map(np.negative, A, blocks=3, tasks=5, code=code, executor=ReplayExecutor())
    >>> bool(np.allclose(y.concatenate(), -A)), len(y.report.recovered)
    (True, 3)
    """

    colluders: int = 1
    noise: float = 100.0

    def __post_init__(self) -> None:
        if not is_integer(self.colluders) or self.colluders < 1:
            raise CodeError(
                "colluders must be 1 or more, the number of workers that may put together what they got, "
                f"not {self.colluders!r}"
            )
        if not is_positive(self.noise):
            raise CodeError(f"noise must be a positive number, not {self.noise!r}")


class MaskedCode(LinearCode):
    """n mixtures of k data blocks and t noise blocks; any k + t results give those of the data.

    Parameters
    ----------
    n : int
        Coded blocks (workers), more than k + t.
    k : int
        Data blocks, at least 2.
    t : int
        Workers that may collude.
    noise : float
        Standard deviation of what masks the data in each mixture, in root mean squares of the data.

    Notes
    -----
    A worker gets x_i = D_i s + N_i r with data s and independent normal noise r. What a coalition T of
    t learns of s, per entry of a block and on average over them, is at most
    1/2 log2 det(1 + (N_T R N_T')^-1 D_T S D_T') bits, R and S the covariances of noise and data: a
    normal s with the same covariance tells most. There is no perfect secrecy over the reals: leakage
    falls with the square of the noise and is never 0.

    Examples
    --------
    >>> code = MaskedCode(6, 3, 1)
    >>> mixed = code.parity(np.arange(4.0).reshape(4, 1))  # three data blocks, one of noise
    >>> recovery = code.recovery(np.arange(6) > 0, exact=False)
    >>> decoded = recovery.recover(dict(enumerate(mixed)), np.dtype(float))
    >>> (decoded.ravel().round(6) + 0.0).tolist()
    [0.0, 1.0, 2.0]
    """

    assumption = "linear or affine in its block"
    no_integers = (
        "{dtype} blocks cannot be masked by real noise: use MaskedIntegerCode(n, k, t), or .astype(float)"
    )

    def __init__(self, n: int, k: int, t: int, noise: float = 100.0) -> None:
        n, k, t = checked_count("n", n), checked_count("k", k), checked_count("t", t)
        if n > MAX_N:
            raise CodeError(f"a masked code has at most {MAX_N} workers, not n = {n}")
        if not is_positive(noise):
            raise CodeError(f"noise must be a positive number, not {noise!r}")
        if k < 2:  # rows that sum to one leave a single block no mixtures to differ in
            raise CodeError("a masked code needs at least k = 2 data blocks")
        if n <= k + t:
            raise CodeError(
                f"{k} data blocks and {t} of noise need {k + t} results and a spare one, so n = {n} workers "
                f"are too few: use n > {k + t}"
            )
        self.n, self.k, self.t, self.noise = n, k, t, float(noise)
        self.name = f"masked against {self.t}, noise {self.noise:g}"

    def __repr__(self) -> str:
        return f"MaskedCode({self.n}, {self.k}, {self.t}, noise={self.noise:g})"

    @property
    def recovery_threshold(self) -> int:
        """How many results determine those of the data blocks: k + t."""
        return self.k + self.t

    @cached_property
    def coefficients(self) -> Floats:
        """Coded = coefficients @ (data, noise), shape (n, k + t); rows sum to one."""
        return best_mixture(self.n, self.k, self.t)

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise blocks, in root mean squares of the data."""
        return self.noise / CONSTANT

    @cached_property
    def gain(self) -> float:  # type: ignore[override]
        """The largest root mean square of a coded block, in that of the data."""
        squares = self.coefficients[:, : self.k] ** 2
        return float(np.sqrt(squares.sum(axis=1).max() + self.noise**2))

    def leakage(self, correlated: bool = False) -> float:
        """Bits per entry that the most fortunate t workers learn of all data blocks together, at most.

        `correlated`: whatever the correlation of the blocks, rather than for uncorrelated ones.

        Examples
        --------
        >>> code = MaskedCode(12, 8, 1, noise=100)
        >>> code.leakage() < 0.0001 < code.leakage(correlated=True)
        True
        """
        # Neighbours have the most similar noise.
        neighbours = [(first + np.arange(self.t)) % self.n for first in range(self.n)]
        coalitions = subsets(self.n, self.t, COALITIONS) + neighbours
        return max(self._learned(one, correlated) for one in coalitions)

    def _learned(self, coalition: Indices, correlated: bool) -> float:
        data, noise = self.coefficients[coalition, : self.k], self.coefficients[coalition, self.k :]
        seen = np.linalg.solve(noise, data) / self.deviation * (np.sqrt(self.k) if correlated else 1.0)
        return float(0.5 * np.log2(1 + np.linalg.svd(seen, compute_uv=False) ** 2).sum())

    def is_reliable(self, limit: float) -> bool:
        """Whether nine in ten ways to lose half of the spare results stay within `limit`."""
        lost = (self.n - self.recovery_threshold + 1) // 2
        arrivals = subsets(self.n, self.n - lost, PATTERNS)
        norms = [_amplification(self.coefficients, self.k, one) for one in arrivals]
        return self.gain * float(np.quantile(norms, RELIABLE, method="inverted_cdf")) <= limit


def noise_coefficients(n: int, t: int) -> Floats:
    """N, (n, t): any t rows are independent, as far apart as they can be on a circle; rows of one norm.

    Half-integer frequencies for even t; for odd t whole ones with alternating signs, so that the
    constant is no combination of them.

    >>> np.linalg.norm(noise_coefficients(5, 2), axis=1).round(12).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    angles = 2 * np.pi * np.arange(n) / n
    if t % 2 == 0:
        phases = np.outer(angles, np.arange(t // 2) + 0.5)
        return np.asarray(np.concatenate([np.cos(phases), np.sin(phases)], axis=1) * np.sqrt(2 / t))
    phases = np.outer(angles, np.arange(1, (t - 1) // 2 + 1))
    waves = [np.ones((n, 1)), np.sqrt(2) * np.cos(phases), np.sqrt(2) * np.sin(phases)]
    signs = 1.0 - 2.0 * (np.arange(n) % 2)
    return np.asarray(np.concatenate(waves, axis=1) * (signs / np.sqrt(t))[:, None])


@lru_cache(maxsize=64)
def best_mixture(n: int, k: int, t: int) -> Floats:
    """[D, N] of the seed whose worst amplification over patterns of k + t arrivals is smallest."""
    if n > 64:
        return _mixture(n, k, t, 0)
    patterns = subsets(n, k + t, PATTERNS)

    def worst(matrix: Floats) -> float:
        return max(_amplification(matrix, k, arrived) for arrived in patterns)

    return min((_mixture(n, k, t, seed) for seed in range(SEEDS)), key=worst)


def _mixture(n: int, k: int, t: int, seed: int) -> Floats:
    """Rows sum to one; beside that, D is a random rotation orthogonal to the noise and the constant."""
    noise = CONSTANT * noise_coefficients(n, t)
    left = 1 - noise.sum(axis=1, keepdims=True)
    tall, square = (
        UniformStream(rows, k - 1, one).normal(rows, k - 1) for rows, one in ((n, seed), (k, seed + SEEDS))
    )
    basis = np.linalg.qr(np.concatenate([np.ones((n, 1)), noise, tall], axis=1))[0]
    turned = np.linalg.qr(np.concatenate([np.ones((k, 1)), square], axis=1))[0]
    rest = basis[:, t + 1 :] @ turned[:, 1:].T * np.sqrt(n / k)
    return np.concatenate([left / k + rest, noise], axis=1)


def _amplification(matrix: Floats, k: int, arrived: Indices) -> float:
    return float(np.linalg.norm(left_inverse(matrix[arrived])[:k], axis=1).max())
