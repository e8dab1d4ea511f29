"""The Hadamard kernel [[1, 1], [1, -1]], with a pseudo-random frozen set, for floats.

    H x = v,   where v is zero on the frozen and on the punctured inputs

The frozen set (the inputs that are set to zero) is random, because with channel polarization this code would
equal the Arikan code up to signs. Input 0, whose column of H is constant, is never frozen. Constants are
therefore codewords, and f may be affine. Many square submatrices of H are singular, so decoding needs a few
more than k results. For a random frozen set, butterflies cannot encode systematically, so the encoder
multiplies by the parity matrix P.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np

from polarmap.codes.base import compute_nonzero_mask
from polarmap.codes.polar import PolarCode
from polarmap.codes.polar_construction import round_up_to_power_of_two
from polarmap.codes.splitmix import SplitMix64, sample_subsets
from polarmap.dtypes import Array, Floats, Indices

# Maximum number of coded blocks. Constructing a code with 2,048 blocks would take 16 s.
MAX_HADAMARD_N = 1024
# A code with up to MAX_SEED_SEARCH_N blocks uses the best of N_SEEDS random frozen sets. They are compared on
# up to MAX_PATTERNS erasure patterns, i.e. sets of missing results.
MAX_SEED_SEARCH_N, N_SEEDS, MAX_PATTERNS = 64, 8, 64
# The norms of columns are multiplied by weights between 1 and 1 + TIE_BREAKER before the largest is chosen as
# a pivot. Otherwise, rounding errors would decide between columns of equal norm.
TIE_BREAKER = 1e-3


class HadamardCode(PolarCode):
    """A polar code with the Hadamard kernel [[1, 1], [1, -1]], for floats.

    The parameters are the same as for `PolarCode`. The coded blocks are entries of x = H v, where H is the
    Hadamard matrix with N rows, and N is the smallest power of two >= n. The inputs v are zero on a
    pseudo-random set, the frozen set.

    If n < N, the last N - n entries of x are punctured (not sent), and the last N - n inputs are zero as
    well. The n sent entries determine the others, because this corner of H is invertible for every n.
    """

    kernel = option_name = "hadamard"
    is_mds, has_uneven_parity = False, True
    _max_n = MAX_HADAMARD_N
    integer_error_template = (
        "the hadamard kernel does not support {dtype} blocks, because its parity blocks are fractions. Use "
        "kernel='arikan' for exact integers, or convert the data to a floating dtype."
    )

    @cached_property
    def seed(self) -> int:
        """The seed of the pseudo-random frozen set.

        By default, the best of several seeds is used for up to 64 coded blocks, and 0 for larger codes.
        """
        if self._seed is not None or self.n > MAX_SEED_SEARCH_N:
            return self._seed or 0
        return select_frozen_set_seed(self.n, self.k)

    @cached_property
    def frozen_set(self) -> Indices:
        """The indices of the n - k inputs that are always zero (frozen), in ascending order.

        Input 0 is never frozen.
        """
        return choose_random_frozen_set(self.n, self.k, self.seed)

    @cached_property
    def codeword_positions(self) -> Indices:
        """The row of the Hadamard matrix that each coded block belongs to, shape (n,).

        The rows of the data blocks come first, then those of the parity blocks.
        """
        parity_positions = choose_parity_positions(self._input_checks, self.n, self.n - self.k)
        return np.concatenate([np.setdiff1d(np.arange(self.n), parity_positions), parity_positions])

    @cached_property
    def encoding_matrix(self) -> Array:
        """The parity matrix P, shape (n - k, k), as float64: parity blocks = P @ data blocks."""
        data_positions, parity_positions = np.split(self.codeword_positions, [self.k])
        unsent_positions = np.arange(self.n, self._input_checks.shape[1])
        solved_checks = self._input_checks[:, np.concatenate([parity_positions, unsent_positions])]
        solution = np.linalg.solve(solved_checks, -self._input_checks[:, data_positions])
        parity_rows = np.asarray(solution[: self.n - self.k], np.float64)
        # Set coefficients to zero that differ from zero only because of rounding errors.
        return np.where(compute_nonzero_mask(parity_rows), parity_rows, 0.0)

    def precompute_encoding(self) -> None:
        """Choose the frozen set, compute the parity matrix, and cache both."""
        _ = self.encoding_matrix  # Reading the property computes P and caches it.

    @property
    def _input_checks(self) -> Floats:
        return make_zero_input_checks(self.n, self.frozen_set)


def make_hadamard_matrix(size: int) -> Floats:
    """Build the Hadamard matrix of order `size`, a power of two.

    >>> make_hadamard_matrix(4).astype(int).tolist()
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    """
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def make_zero_input_checks(n: int, frozen_set: Indices) -> Floats:
    """Build a parity-check matrix, whose product with every codeword is zero.

    It consists of the rows of the Hadamard matrix that belong to zero inputs.

    Parameters
    ----------
    n : int
        Number of coded blocks.
    frozen_set : index array
        Frozen inputs. The last N - n inputs are zero as well.

    Returns
    -------
    array (checks, N)
        One parity check per row. N is the smallest power of two >= n.
    """
    transform_size = round_up_to_power_of_two(n)
    zero_inputs = np.concatenate([frozen_set, np.arange(n, transform_size)])
    return np.asarray(make_hadamard_matrix(transform_size)[zero_inputs])


def choose_random_frozen_set(n: int, k: int, seed: int) -> Indices:
    """Draw the frozen set: n - k different random numbers from 1 to n - 1, in ascending order.

    Parameters
    ----------
    n, k : int
        Number of coded blocks and of data blocks.
    seed : int
        Seed of the random draw.

    Examples
    --------
    >>> choose_random_frozen_set(8, 6, 0).tolist(), choose_random_frozen_set(3, 1, 5).tolist()
    ([4, 5], [1, 2])
    """
    return np.sort(1 + SplitMix64(seed, n, k).permutation(n - 1)[: n - k])


def choose_parity_positions(input_checks: Floats, n: int, n_parity: int) -> Indices:
    """Choose the codeword positions of the parity blocks so that encoding is numerically stable.

    The positions are the pivot columns of a Gram-Schmidt orthogonalization with column pivoting, after the
    columns of the punctured positions have been eliminated. At first, many columns have the same norm, so
    rounding errors would decide between them. Multiplying the norms by slightly different weights makes the
    choice the same on every machine.

    Parameters
    ----------
    input_checks : array (checks, N)
        Parity checks, as from `make_zero_input_checks`.
    n, n_parity : int
        Number of coded blocks and of parity blocks.

    Returns
    -------
    index array (n_parity,), ascending
    """
    unsent_basis = np.linalg.qr(input_checks[:, n:])[0]
    residual = input_checks[:, :n] - unsent_basis @ (unsent_basis.T @ input_checks[:, :n])
    weights = 1 + TIE_BREAKER * SplitMix64(n, n_parity).random(n)
    parity_positions = []
    for _ in range(n_parity):
        norms = np.sqrt(np.einsum("ij,ij->j", residual, residual))
        parity_positions.append(int(np.argmax(weights * norms)))
        direction = residual[:, parity_positions[-1]] / norms[parity_positions[-1]]
        residual -= np.outer(direction, direction @ residual)
    return np.sort(parity_positions)


@lru_cache(maxsize=256)
def select_frozen_set_seed(n: int, k: int) -> int:
    """Return the seed of the best frozen set among N_SEEDS seeds.

    For a sample of sets of k results, each seed is rated by the number of sets that can be decoded.
    """
    erasure_patterns = np.stack(sample_subsets(n, n - k, MAX_PATTERNS))
    unsent_positions = np.arange(n, round_up_to_power_of_two(n))
    unsent_patterns = np.broadcast_to(unsent_positions, (len(erasure_patterns), len(unsent_positions)))
    unknown_leaves = np.concatenate([erasure_patterns, unsent_patterns], axis=1)

    def count_decodable_patterns(seed: int) -> int:
        checks = make_zero_input_checks(n, choose_random_frozen_set(n, k, seed))
        ranks = np.linalg.matrix_rank(checks[:, unknown_leaves].swapaxes(0, 1))
        return int((ranks == len(checks)).sum())

    return max(range(N_SEEDS), key=count_decodable_patterns)  # The lowest of several best seeds.
