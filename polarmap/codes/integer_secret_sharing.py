"""Secret sharing for integers modulo 2^64, with perfect secrecy: colluding workers learn nothing.

    coded blocks = G u  modulo 2^64,   u = (data, noise),   G = [D, N],   T = [I, 0]

D and N are columns of the Arikan butterfly, each of which belongs to an input. The inputs of the Reed-Muller
code RM(r, m) carry uniform noise. The dual of this code has distance 2^(r+1), so any t < 2^(r+1) rows of N
are independent modulo 2. The blocks of t workers are therefore uniformly distributed, regardless of the data.
Of the remaining inputs, the most reliable ones carry data, as in a polar code, and all others are frozen.
`coded_map` selects this code for integers and code=SecretSharing(...).
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from math import inf

import numpy as np
import numpy.typing as npt

from polarmap.codes.base import ErasureDecoder
from polarmap.codes.compute import tiling, transforms
from polarmap.codes.linear_code import LinearCode
from polarmap.codes.modular_decoders import FLOAT_RESULT_ERROR, ModularLinearDecoder
from polarmap.codes.polar import OPTIMAL_DESIGN_FRACTION
from polarmap.codes.polar_construction import compute_input_erasure_probabilities, round_up_to_power_of_two
from polarmap.dtypes import Array, DType, Indices, Mask, check_supported_dtype, is_integer_dtype
from polarmap.errors import CodeError
from polarmap.validation import check_positive_int

# Maximum number of coded blocks. Decoding computes ranks of dense matrices of this size, modulo 2.
MAX_N = 1 << 12


class IntegerSecretSharingCode(LinearCode):
    """A code that hides integer data from the workers by adding random noise modulo 2^64.

    Each coded block is a sum of data blocks and noise blocks. Any t colluding workers see only uniformly
    distributed numbers, so they learn nothing, regardless of their prior knowledge and computing power.
    Decoding is exact. f must be linear over the integers, with f(0) = 0 and integer results. A constant term
    of f could not be separated from the noise.

    Parameters
    ----------
    n : int
        Number of coded blocks (workers); more than data and noise blocks together, at most 4,096.
    k : int
        Number of data blocks, at least 1.
    n_colluders : int
        Number t of workers that may collude.

    Notes
    -----
    For n = 2^m, the number of noise blocks is 1, m + 1, m (m + 1) / 2 + 1, ... for t = 1, 3, 7, ...
    (MacWilliams and Sloane 1977, chapter 13). No code over the integers modulo 2 needs only t noise blocks
    for every n. On average, decoding needs two or three results more than data and noise blocks.

    Examples
    --------
    >>> code = IntegerSecretSharingCode(8, 3, 1)
    >>> noise = np.array([[2**63 + 5]], np.uint64).view(np.int64)
    >>> mixed = code.encode_parity(np.concatenate([[[1], [2], [3]], noise]))
    >>> recovery = code.make_decoder(np.arange(8) != 2, modular=True)
    >>> arrived = {i: row for i, row in enumerate(mixed) if i != 2}
    >>> recovery.decode(arrived, np.dtype(int)).ravel().tolist()
    [1, 2, 3]
    """

    requirement = "linear over the integers, with f(0) = 0"
    supports_integers = adds_noise = True
    is_mds = False
    noise_std = inf  # The noise is uniform over all 64-bit integers, so it hides data of any magnitude.

    def __init__(self, n: int, k: int, n_colluders: int) -> None:
        n, k = check_positive_int("n", n), check_positive_int("k", k)
        n_colluders = check_positive_int("n_colluders", n_colluders)
        if n > MAX_N:
            raise CodeError(f"n must be at most {MAX_N} for secret sharing of integers, not {n}")
        n_noise_blocks = count_noise_blocks(n, n_colluders)
        if n <= k + n_noise_blocks:
            raise CodeError(
                f"n must be more than {k + n_noise_blocks} with {k} data blocks and {n_noise_blocks} noise "
                f"blocks (against {n_colluders} colluders), not {n}: "
                f"use n = {compute_min_tasks(k, n_colluders)}"
            )
        self.n, self.k, self.n_colluders = n, k, n_colluders
        self.name = f"masked against {self.n_colluders}, uniform noise"

    def __repr__(self) -> str:
        return f"IntegerSecretSharingCode({self.n}, {self.k}, {self.n_colluders})"

    @property
    def n_noise_blocks(self) -> int:
        """The number of input blocks with uniform noise, which hide the data from colluding workers."""
        return count_noise_blocks(self.n, self.n_colluders)

    @property
    def n_input_blocks(self) -> int:
        """The number of blocks that the encoder takes as input: data blocks and noise blocks."""
        return len(self.data_and_noise_input_indices)

    @cached_property
    def data_and_noise_input_indices(self) -> Indices:
        """The butterfly inputs (rows of its input array) that carry data and noise.

        The inputs of the k data blocks come first, then those of the noise blocks. All others are zero.
        """
        noise_inputs = choose_noise_input_indices(self.n, self.n_colluders)
        mother_length = round_up_to_power_of_two(self.n)
        erasure_probability = OPTIMAL_DESIGN_FRACTION * (self.n - self.k - len(noise_inputs)) / self.n
        position_probabilities = np.full(mother_length, erasure_probability)
        position_probabilities[: mother_length - self.n] = 1.0
        candidate_inputs = np.setdiff1d(np.arange(mother_length - self.n, mother_length), noise_inputs)
        input_probabilities = compute_input_erasure_probabilities(position_probabilities)[candidate_inputs]
        best_first = candidate_inputs[np.argsort(input_probabilities, kind="stable")]
        return np.concatenate([np.sort(best_first[: self.k]), noise_inputs])

    @cached_property
    def encoding_matrix(self) -> Array:
        """The encoding matrix E, shape (n, k + noise blocks), of zeros and ones.

        The coded blocks are E @ (data blocks, noise blocks), modulo 2^64.
        """
        mother_length, input_indices = round_up_to_power_of_two(self.n), self.data_and_noise_input_indices
        columns = np.zeros((mother_length, len(input_indices)), np.int64)
        columns[input_indices, np.arange(len(input_indices))] = 1
        return transforms.apply_arikan_transform(columns)[mother_length - self.n :]

    def parity_dtype(self, dtype: npt.DTypeLike) -> DType:
        """Return the dtype of the coded blocks, a 64-bit integer type.

        Data of narrower integer types is converted to int64, because coded blocks are numbers modulo 2^64.

        Raises
        ------
        CodeError
            If `dtype` is not an integer type.
        """
        data_dtype = check_supported_dtype(dtype, "the data")
        if not is_integer_dtype(data_dtype):
            advice = "Use SecretSharingCode(n, k, t)."
            raise CodeError(f"{data_dtype} blocks cannot be combined with noise modulo 2^64. {advice}")
        return data_dtype if data_dtype.itemsize == 8 else np.dtype(np.int64)

    def _encode_parity_into(self, blocks: tiling.FlatBlocks, out: Array) -> None:
        mother_length = round_up_to_power_of_two(self.n)

        def encode_tile(columns: slice) -> None:
            tile = np.zeros((mother_length, columns.stop - columns.start), out.dtype)
            tile[self.data_and_noise_input_indices] = tiling.gather_columns(blocks, columns, out.dtype)
            out[:, columns] = transforms.apply_arikan_transform(tile)[mother_length - self.n :]

        tiling.parallel_for(encode_tile, list(tiling.iter_column_tiles(out.shape[1], mother_length, 8)))

    def make_decoder(self, arrived_mask: Mask, modular: bool) -> ErasureDecoder:
        """Build the decoder for integer results. Raise CodeError if `modular` is False."""
        if not modular:
            raise CodeError(FLOAT_RESULT_ERROR)
        return ModularLinearDecoder(self, arrived_mask)


@lru_cache(maxsize=64)
def choose_noise_input_indices(n: int, n_colluders: int) -> Indices:
    """Choose the butterfly inputs that carry noise, so that any t of the n outputs are uniformly distributed.

    Then the coded blocks of any t workers reveal nothing about the data. The inputs are those of the
    Reed-Muller code RM(r, m): the columns of the butterfly matrix with 2^(m-r) or more ones. Punctured inputs
    are omitted.

    Parameters
    ----------
    n : int
        Number of coded blocks.
    n_colluders : int
        Number t of workers that may collude.

    Returns
    -------
    index array, ascending

    Examples
    --------
    >>> [choose_noise_input_indices(n, t).tolist() for n, t in ((8, 1), (8, 3), (6, 3))]
    [[7], [3, 5, 6, 7], [3, 5, 6, 7]]
    """
    mother_length = round_up_to_power_of_two(n)
    # The order r of the Reed-Muller code is the smallest with 2^(r+1) > t, where t is `n_colluders`.
    reed_muller_order = (n_colluders + 1).bit_length() - 1 + ((n_colluders + 1) & n_colluders != 0) - 1
    min_bit_count = mother_length.bit_length() - 1 - reed_muller_order
    return np.array(
        [i for i in range(mother_length - n, mother_length) if i.bit_count() >= min_bit_count], dtype=np.intp
    )


def count_noise_blocks(n: int, n_colluders: int) -> int:
    """Return the number of noise blocks that hide the data from any `n_colluders` of n workers.

    Examples
    --------
    >>> [count_noise_blocks(64, t) for t in (1, 2, 3, 7)]
    [1, 7, 7, 22]
    """
    return len(choose_noise_input_indices(n, n_colluders))


def compute_min_tasks(k: int, n_colluders: int) -> int:
    """Return the smallest recommended number of tasks for k data blocks.

    With this number, at least a quarter of the results are redundant, so that some of them may be late.

    Parameters
    ----------
    k : int
        Number of data blocks.
    n_colluders : int
        Number of workers that may collude.

    Examples
    --------
    >>> compute_min_tasks(24, 1), compute_min_tasks(24, 3)
    (34, 42)
    """
    n = k + n_colluders + 2
    while n <= MAX_N and 4 * (k + count_noise_blocks(n, n_colluders)) > 3 * n:
        n += 1
    return n


def compute_max_data_blocks(n_workers: int, n_colluders: int) -> int:
    """Return the largest recommended number of data blocks for `n_workers` workers.

    With this number, at least a quarter of the results are redundant, so that some of them may be late.

    Parameters
    ----------
    n_workers : int
        Number of coded blocks.
    n_colluders : int
        Number of workers that may collude.

    Returns
    -------
    int
        At least 1.

    Examples
    --------
    >>> compute_max_data_blocks(34, 1), compute_max_data_blocks(44, 3)
    (24, 26)
    """
    return max(1, 3 * n_workers // 4 - count_noise_blocks(n_workers, n_colluders))
