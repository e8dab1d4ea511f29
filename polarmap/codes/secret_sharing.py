"""Secret sharing over the reals: every coded block contains noise, so that colluding workers learn little.

    coded blocks = G (data, noise),   G = [D, N],   unknowns = f(data, noise),   T = [I, 0]

A polar code sets its frozen inputs to zero. Here, t inputs carry noise instead. Lagrange coded computing (Yu
et al. 2019, arXiv 1806.00939) does the same over finite fields. To use secret sharing, pass `SecretSharing`
as `code=` of `coded_map`. `integer_secret_sharing` implements the code for integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from polarmap.codes.linear_code import LinearCode
from polarmap.codes.real_decoders import compute_left_inverse
from polarmap.codes.splitmix import SplitMix64, sample_subsets
from polarmap.dtypes import Floats, Indices, is_integer
from polarmap.errors import CodeError
from polarmap.validation import check_positive_int, is_positive_number

MAX_N = 1 << 16  # Maximum number of coded blocks.

# A code with up to 64 blocks uses the best of N_SEEDS random matrices. They are compared on up to
# MAX_PATTERNS erasure patterns, i.e. sets of missing results.
N_SEEDS, MAX_PATTERNS = 8, 64
# The leakage is the information that a coalition of t workers can learn. It is computed for all coalitions if
# there are at most this many, and otherwise for a random sample of this size.
MAX_COALITIONS = 4096
# The 2-norm of the noise coefficients in each coded block.
NOISE_ROW_NORM = 0.25
# A code counts as reliable if this fraction of erasure patterns (sets of missing results) can be decoded
# accurately. The patterns have half as many missing results as there are redundant results.
RELIABLE_QUANTILE = 0.9


@dataclass(frozen=True)
class SecretSharing:
    """Options for secret sharing, to be passed to `coded_map` as `code=`.

    Every coded block contains noise, which hides the data from the workers. The code depends on the dtype:

    * Floats use a `SecretSharingCode` with normal noise. Any k + t results suffice to decode, and f may be
      linear or affine. Secrecy is not perfect: `SecretSharingCode.leakage` bounds what colluders learn.
    * Integers use an `IntegerSecretSharingCode` with uniform noise modulo 2^64. Colluders learn nothing, and
      decoding is exact. f must be linear with integer results, and the code needs more workers.

    Parameters
    ----------
    n_colluders : int
        Number t of workers that may collude.
    noise : float
        Standard deviation of the noise in each coded block, relative to the root mean square of the data. It
        applies to floats only. Leakage is inversely proportional to its square, and decoding loses about
        log10(noise) digits.

    Examples
    --------
    >>> from polarmap import coded_map
    >>> from polarmap.codes import SecretSharing
    >>> from polarmap.testing import ReplayExecutor
    >>> A = np.arange(12.0).reshape(6, 2)
    >>> code = SecretSharing(n_colluders=1, noise=30.0)
    >>> y = coded_map(np.negative, A, blocks=3, tasks=5, code=code, executor=ReplayExecutor())
    >>> bool(np.allclose(y.concatenate(), -A)), len(y.report.recovered)
    (True, 3)
    """

    n_colluders: int = 1
    noise: float = 100.0

    def __post_init__(self) -> None:
        if not is_integer(self.n_colluders) or self.n_colluders < 1:
            raise CodeError(
                "n_colluders (workers that may combine their blocks) must be an integer >= 1, "
                f"not {self.n_colluders!r}"
            )
        if not is_positive_number(self.noise):
            raise CodeError(f"noise must be a positive number, not {self.noise!r}")


class SecretSharingCode(LinearCode):
    """A code that hides the data from the workers by adding random noise to every coded block.

    The n coded blocks are linear combinations of k data blocks and t noise blocks. Any k + t results suffice
    to decode, and any t colluding workers learn little about the data.

    Parameters
    ----------
    n : int
        Number of coded blocks (workers), more than k + t.
    k : int
        Number of data blocks, at least 2.
    n_colluders : int
        Number t of workers that may collude.
    noise : float
        Standard deviation of the noise in each coded block, relative to the root mean square of the data.

    Notes
    -----
    Worker i receives x_i = D_i s + N_i r with data s and independent normal noise r. On average over the
    entries of a block, a coalition T of t workers learns at most
    1/2 log2 det(1 + (N_T R N_T')^-1 D_T S D_T') bits of s per entry, where R and S are the covariances of
    noise and data. The bound is attained by normally distributed data. Perfect secrecy is impossible over the
    reals: leakage is inversely proportional to the square of the noise and never 0.

    Examples
    --------
    >>> code = SecretSharingCode(6, 3, 1)
    >>> mixed = code.encode_parity(np.arange(4.0).reshape(4, 1))  # Three data blocks and a noise block.
    >>> recovery = code.make_decoder(np.arange(6) > 0, modular=False)
    >>> decoded = recovery.decode(dict(enumerate(mixed)), np.dtype(float))
    >>> (decoded.ravel().round(6) + 0.0).tolist()
    [0.0, 1.0, 2.0]
    """

    requirement = "linear or affine in its block"
    adds_noise = True
    integer_error_template = (
        "{dtype} blocks cannot be combined with real noise. Use IntegerSecretSharingCode(n, k, "
        "t), or convert the data with .astype(float)."
    )

    def __init__(self, n: int, k: int, n_colluders: int, noise: float = 100.0) -> None:
        n, k = check_positive_int("n", n), check_positive_int("k", k)
        n_colluders = check_positive_int("n_colluders", n_colluders)
        if n > MAX_N:
            raise CodeError(f"n must be at most {MAX_N} for secret sharing, not {n}")
        if not is_positive_number(noise):
            raise CodeError(f"noise must be a positive number, not {noise!r}")
        # The rows of the encoding matrix must sum to one. With one data block, this would leave no choice for
        # the coefficients of the data.
        if k < 2:
            raise CodeError(f"k must be at least 2 for secret sharing, not {k}")
        if n <= k + n_colluders:
            raise CodeError(
                f"n must be more than {k + n_colluders} with {k} data blocks and {n_colluders} noise blocks, "
                f"not {n}: use n > {k + n_colluders}"
            )
        self.n, self.k, self.n_colluders, self.noise = n, k, n_colluders, float(noise)
        self.name = f"masked against {self.n_colluders}, noise {self.noise:g}"

    def __repr__(self) -> str:
        return f"SecretSharingCode({self.n}, {self.k}, {self.n_colluders}, noise={self.noise:g})"

    @property
    def recovery_threshold(self) -> int:
        """The number of results that are needed to decode: k data blocks plus t noise blocks."""
        return self.k + self.n_colluders

    @property
    def n_noise_blocks(self) -> int:
        """The number of noise blocks, which equals the number of colluders."""
        return self.n_colluders

    @cached_property
    def encoding_matrix(self) -> Floats:
        """The encoding matrix E, shape (n, k + t): coded blocks = E @ (data blocks, noise blocks).

        Its rows sum to one.
        """
        return select_generator_matrix(self.n, self.k, self.n_colluders)

    @property
    def noise_std(self) -> float:
        """The standard deviation of the noise blocks, relative to the root mean square of the data."""
        return self.noise / NOISE_ROW_NORM

    @cached_property
    def rms_gain(self) -> float:  # type: ignore[override]
        """The largest ratio of the root mean square of a coded block to that of the data.

        Coded blocks are large, because they contain the noise.
        """
        squared_coefficients = self.encoding_matrix[:, : self.k] ** 2
        return float(np.sqrt(squared_coefficients.sum(axis=1).max() + self.noise**2))

    def leakage(self, correlated: bool = False) -> float:
        """Compute an upper bound on the information that t colluding workers can learn about the data.

        The bound is the maximum over all sets of t workers, or over a sample of them if there are more than
        4,096.

        Parameters
        ----------
        correlated : bool
            If True, the bound holds even if the data blocks are correlated. By default, it only holds for
            uncorrelated data blocks.

        Returns
        -------
        float
            Bits per entry of a block.

        Examples
        --------
        >>> code = SecretSharingCode(12, 8, 1, noise=100)
        >>> code.leakage() < 0.0001 < code.leakage(correlated=True)
        True
        """
        # A random sample may lack the worst coalitions. Always include coalitions of neighbouring workers:
        # their noise is the most similar, so they are likely to learn the most.
        adjacent_coalitions = [
            (first_worker + np.arange(self.n_colluders)) % self.n for first_worker in range(self.n)
        ]
        coalitions = sample_subsets(self.n, self.n_colluders, MAX_COALITIONS) + adjacent_coalitions
        return max(self._compute_leakage_bits(coalition, correlated) for coalition in coalitions)

    def _compute_leakage_bits(self, coalition: Indices, correlated: bool) -> float:
        data_matrix, noise_matrix = np.split(self.encoding_matrix[coalition], [self.k], axis=1)
        signal_to_noise = np.linalg.solve(noise_matrix, data_matrix) / self.noise_std
        if correlated:
            signal_to_noise *= np.sqrt(self.k)
        return float(0.5 * np.log2(1 + np.linalg.svd(signal_to_noise, compute_uv=False) ** 2).sum())

    def describe_ill_conditioning(self, max_amplification: float) -> str:
        """Return a text that explains why decoding may be too inaccurate, or "" if it is accurate enough."""
        if self.is_well_conditioned(max_amplification):
            return ""
        n_erasures = (self.n - self.recovery_threshold + 1) // 2
        return (
            f"with {n_erasures} of {self.n} results missing, noise of {self.noise:g} times the data would "
            "cost more digits than rtol permits: lower noise, raise rtol, or use more tasks"
        )

    def is_well_conditioned(self, max_amplification: float) -> bool:
        """Return whether decoding is accurate in most cases.

        The criterion considers sets with half as many missing results as there are redundant results.
        Decoding must be accurate for 90 % of these sets.

        Parameters
        ----------
        max_amplification : float
            Decoding is accurate if it multiplies errors by at most this factor.
        """
        n_erasures = (self.n - self.recovery_threshold + 1) // 2
        amplifications = [
            _compute_amplification(self.encoding_matrix, self.k, arrived_indices)
            for arrived_indices in sample_subsets(self.n, self.n - n_erasures, MAX_PATTERNS)
        ]
        p90 = float(np.quantile(amplifications, RELIABLE_QUANTILE, method="inverted_cdf"))
        return self.rms_gain * p90 <= max_amplification


def make_noise_matrix(n: int, n_colluders: int) -> Floats:
    """Build the matrix of noise coefficients of the coded blocks, shape (n, t), where t is `n_colluders`.

    Any t rows are linearly independent, so t colluding workers cannot combine their blocks such that the
    noise cancels. The rows have norm 1. The columns are sine and cosine waves on n evenly spaced points of
    the circle, with half-integer frequencies for even t, and with integer frequencies and alternating signs
    for odd t. The constant vector is therefore not in their span.

    >>> np.linalg.norm(make_noise_matrix(5, 2), axis=1).round(12).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    angles = 2 * np.pi * np.arange(n) / n
    if n_colluders % 2 == 0:
        phases = np.outer(angles, np.arange(n_colluders // 2) + 0.5)
        return np.asarray(np.concatenate([np.cos(phases), np.sin(phases)], axis=1) * np.sqrt(2 / n_colluders))
    phases = np.outer(angles, np.arange(1, (n_colluders - 1) // 2 + 1))
    waves = [np.ones((n, 1)), np.sqrt(2) * np.cos(phases), np.sqrt(2) * np.sin(phases)]
    signs = 1.0 - 2.0 * (np.arange(n) % 2)
    return np.asarray(np.concatenate(waves, axis=1) * (signs / np.sqrt(n_colluders))[:, None])


@lru_cache(maxsize=64)
def select_generator_matrix(n: int, k: int, n_colluders: int) -> Floats:
    """Choose a matrix for encoding data and noise blocks, such that decoding multiplies errors the least.

    For up to 64 coded blocks, N_SEEDS random matrices are compared. The criterion is the largest factor by
    which decoding multiplies errors, over a sample of sets of k + t arrived results. For more blocks, the
    matrix of seed 0 is returned.

    Parameters
    ----------
    n, k, n_colluders : int
        Number of coded blocks, of data blocks, and number t of noise blocks.

    Returns
    -------
    array (n, k + t)
    """
    if n > 64:
        return _make_random_generator_matrix(n, k, n_colluders, 0)
    arrival_patterns = sample_subsets(n, k + n_colluders, MAX_PATTERNS)

    def compute_max_amplification(generator_matrix: Floats) -> float:
        return max(_compute_amplification(generator_matrix, k, arrived) for arrived in arrival_patterns)

    candidates = (_make_random_generator_matrix(n, k, n_colluders, seed) for seed in range(N_SEEDS))
    return min(candidates, key=compute_max_amplification)


def _make_random_generator_matrix(n: int, k: int, n_colluders: int, seed: int) -> Floats:
    """Build a random matrix that encodes data and noise blocks, shape (n, k + t).

    The matrix is [D, N] with data coefficients D and noise coefficients N, and its rows sum to one. Apart
    from a constant that is added to each row of D, the columns of D are orthogonal to those of N and to the
    constant vector.
    """
    noise_matrix = NOISE_ROW_NORM * make_noise_matrix(n, n_colluders)
    row_remainders = 1 - noise_matrix.sum(axis=1, keepdims=True)
    tall_normals = SplitMix64(n, k - 1, seed).standard_normal(n, k - 1)
    square_normals = SplitMix64(k, k - 1, seed + N_SEEDS).standard_normal(k, k - 1)
    basis = np.linalg.qr(np.concatenate([np.ones((n, 1)), noise_matrix, tall_normals], axis=1))[0]
    rotation = np.linalg.qr(np.concatenate([np.ones((k, 1)), square_normals], axis=1))[0]
    data_part = basis[:, n_colluders + 1 :] @ rotation[:, 1:].T * np.sqrt(n / k)
    return np.concatenate([row_remainders / k + data_part, noise_matrix], axis=1)


def _compute_amplification(generator_matrix: Floats, k: int, arrived_indices: Indices) -> float:
    weights = compute_left_inverse(generator_matrix[arrived_indices])[:k]
    return float(np.linalg.norm(weights, axis=1).max())
