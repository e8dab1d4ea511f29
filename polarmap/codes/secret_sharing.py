"""SecretSharingCode: coded blocks that are all mixtures with noise, so that few workers learn little.

    G = [D, N] for the unknowns f of (data, noise),   T = [I, 0],   coded blocks = G (data, noise)

Frozen inputs of a code are zero; here t of its inputs are noise instead (secret sharing over the
reals, as in Lagrange coded computing, Yu et al. 2019, arXiv 1806.00939, there over finite fields).
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

MAX_N = 1 << 16

N_SEEDS, MAX_PATTERNS = 8, 64  # tried up to 64 blocks, and the most patterns of arrivals each is tried on
MAX_COALITIONS = 4096  # sets of t workers whose leakage is computed one by one; a sample beyond
NOISE_ROW_NORM = 0.25  # norm of a row of noise coefficients
RELIABLE_QUANTILE = (
    0.9  # of the patterns of half the spare losses must decode for a code to be worth its launch
)


@dataclass(frozen=True)
class SecretSharing:
    """For `code=` of `coded_map`: a code that masks the data, with the sizes that the data ask for.

    Any `n_colluders` workers that put together what they got see the data only under noise. No block is
    sent as it is.

    * Floating data, a `SecretSharingCode`: normal noise. k + colluders results determine the rest, for linear
      or affine f. Not perfect secrecy: `SecretSharingCode.leakage` bounds what they learn.
    * Integers, a `IntegerSecretSharingCode`: uniform noise modulo 2^64. They learn nothing, and no digits are
      lost; f must be linear with integer results, and it takes more workers.

    Parameters
    ----------
    n_colluders : int
        t, how many workers may put together what they got.
    noise : float
        Of floating data: standard deviation of what masks them, in root mean squares of the data. Leakage
        falls with its square, and its digits are lost in decoding.

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
                "n_colluders must be 1 or more, the number of workers that may put together what they got, "
                f"not {self.n_colluders!r}"
            )
        if not is_positive_number(self.noise):
            raise CodeError(f"noise must be a positive number, not {self.noise!r}")


class SecretSharingCode(LinearCode):
    """n mixtures of k data blocks and t noise blocks; any k + t results give those of the data.

    Parameters
    ----------
    n : int
        Coded blocks (workers), more than k + t.
    k : int
        Data blocks, at least 2.
    n_colluders : int
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
    >>> code = SecretSharingCode(6, 3, 1)
    >>> mixed = code.encode_parity(np.arange(4.0).reshape(4, 1))  # three data blocks, one of noise
    >>> recovery = code.make_decoder(np.arange(6) > 0, modular=False)
    >>> decoded = recovery.decode(dict(enumerate(mixed)), np.dtype(float))
    >>> (decoded.ravel().round(6) + 0.0).tolist()
    [0.0, 1.0, 2.0]
    """

    requirement = "linear or affine in its block"
    adds_noise = True
    integer_error_template = (
        "{dtype} blocks cannot be masked by real noise: use IntegerSecretSharingCode(n, k, "
        "t), or .astype(float)"
    )

    def __init__(self, n: int, k: int, n_colluders: int, noise: float = 100.0) -> None:
        n, k = check_positive_int("n", n), check_positive_int("k", k)
        n_colluders = check_positive_int("n_colluders", n_colluders)
        if n > MAX_N:
            raise CodeError(f"a masked code has at most {MAX_N} workers, not n = {n}")
        if not is_positive_number(noise):
            raise CodeError(f"noise must be a positive number, not {noise!r}")
        if k < 2:  # rows that sum to one leave a single block no mixtures to differ in
            raise CodeError("a masked code needs at least k = 2 data blocks")
        if n <= k + n_colluders:
            raise CodeError(
                f"{k} data blocks and {n_colluders} of noise need {k + n_colluders} results and a spare one, "
                f"so n = {n} workers are too few: use n > {k + n_colluders}"
            )
        self.n, self.k, self.n_colluders, self.noise = n, k, n_colluders, float(noise)
        self.name = f"masked against {self.n_colluders}, noise {self.noise:g}"

    def __repr__(self) -> str:
        return f"SecretSharingCode({self.n}, {self.k}, {self.n_colluders}, noise={self.noise:g})"

    @property
    def recovery_threshold(self) -> int:
        """How many results determine those of the data blocks: k + t."""
        return self.k + self.n_colluders

    @property
    def n_noise_blocks(self) -> int:
        """The number of noise blocks that the data is mixed with: t."""
        return self.n_colluders

    @cached_property
    def encoding_matrix(self) -> Floats:
        """Coded = coefficients @ (data, noise), shape (n, k + t); rows sum to one."""
        return select_generator_matrix(self.n, self.k, self.n_colluders)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise blocks, in root mean squares of the data."""
        return self.noise / NOISE_ROW_NORM

    @cached_property
    def rms_gain(self) -> float:  # type: ignore[override]
        """The largest root mean square of a coded block, in that of the data."""
        squared_coefficients = self.encoding_matrix[:, : self.k] ** 2
        return float(np.sqrt(squared_coefficients.sum(axis=1).max() + self.noise**2))

    def leakage(self, correlated: bool = False) -> float:
        """Bits per entry that the most fortunate t workers learn of all data blocks together, at most.

        `correlated`: whatever the correlation of the blocks, rather than for uncorrelated ones.

        Examples
        --------
        >>> code = SecretSharingCode(12, 8, 1, noise=100)
        >>> code.leakage() < 0.0001 < code.leakage(correlated=True)
        True
        """
        # Neighbours have the most similar noise.
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
        """Return why the code seldom decodes within `max_amplification`, and what to do; "" if it does."""
        if self.is_well_conditioned(max_amplification):
            return ""
        n_erasures = (self.n - self.recovery_threshold + 1) // 2
        return (
            f"with {n_erasures} of {self.n} results missing, noise of {self.noise:g} times the data would "
            "drown more digits than rtol permits: lower noise, raise rtol, or use more tasks"
        )

    def is_well_conditioned(self, max_amplification: float) -> bool:
        """Whether nine in ten ways to lose half of the spare results stay within `max_amplification`."""
        n_erasures = (self.n - self.recovery_threshold + 1) // 2
        amplifications = [
            _compute_amplification(self.encoding_matrix, self.k, arrived_indices)
            for arrived_indices in sample_subsets(self.n, self.n - n_erasures, MAX_PATTERNS)
        ]
        p90 = float(np.quantile(amplifications, RELIABLE_QUANTILE, method="inverted_cdf"))
        return self.rms_gain * p90 <= max_amplification


def make_noise_matrix(n: int, n_colluders: int) -> Floats:
    """N, (n, t): any t rows are independent, as far apart as they can be on a circle; rows of one norm.

    Half-integer frequencies for even t; for odd t whole ones with alternating signs, so that the
    constant is no combination of them.

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
    """[D, N] of the seed whose worst amplification over patterns of k + t arrivals is smallest."""
    if n > 64:
        return _make_random_generator_matrix(n, k, n_colluders, 0)
    arrival_patterns = sample_subsets(n, k + n_colluders, MAX_PATTERNS)

    def compute_max_amplification(generator_matrix: Floats) -> float:
        return max(_compute_amplification(generator_matrix, k, arrived) for arrived in arrival_patterns)

    candidates = (_make_random_generator_matrix(n, k, n_colluders, seed) for seed in range(N_SEEDS))
    return min(candidates, key=compute_max_amplification)


def _make_random_generator_matrix(n: int, k: int, n_colluders: int, seed: int) -> Floats:
    """Rows sum to one; beside that, D is a random rotation orthogonal to the noise and the constant."""
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
