"""Polar codes over the reals and the integers, the default codes of polarmap.

    data u_0 .. u_3  ->  coded blocks x = [I; P] u  ->  f(x_0) .. f(x_5)  ->  decode  ->  f(u_0) .. f(u_3)
    (k = 4)              (n = 6: 4 data, 2 parity)      (almost any two may be missing)

    G = [I; P],   T = I,   C = [P, -I],   C x = 0

The codewords of a polar code are x = B v. The butterfly B is an invertible network of operations on pairs of
blocks, as in a fast Fourier transform. Its inputs v are zero on a frozen set F of n - k inputs, so the rows F
of the inverse of B give n - k parity checks C x = 0. Solving them for the parity blocks gives x = [I; P] u.
If f is linear, the results satisfy the same checks, C f(x) = 0. The rows of P sum to one, so this also holds
if f is affine.

The butterfly repeats a 2 x 2 matrix, the polarization kernel. Each kernel is a subclass in its own module:
`rotation_code`, `arikan_code` and `hadamard_code`. The subclass defines P and the frozen set.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.compute import tiling
from polarmap.codes.linear_code import SystematicCode
from polarmap.dtypes import Array, Floats, Indices, check_supported_dtype, is_integer, is_integer_dtype
from polarmap.errors import CodeError, NotDecodableError, trimmed_tracebacks
from polarmap.validation import is_choice, is_real_number

# Maximum number of coded blocks of a code without groups.
MAX_N = 1 << 16
# Maximum number of coded blocks of a grouped code.
MAX_GROUPED_N = 1 << 20
# The names of the kernels. Each kernel is implemented in a module named <kernel>_code.
KERNELS = ("rotation", "arikan", "hadamard")
GROUPED = "grouped"  # The name under which the class of grouped codes is registered.
# A code for the optimal decoder is designed for an erasure probability (probability that a result is missing)
# of this fraction times (n - k) / n. With a smaller fraction, parity blocks combine more data blocks, which
# benefits an optimal decoder. For n >= 128, a fraction of 0.25 instead of 1 reduces the number of results
# needed beyond k by a factor of 2 to 25. For smaller n, it never increases this number (measured with
# planning.arrivals_needed).
OPTIMAL_DESIGN_FRACTION = 0.25
# Larger codes are divided into groups by default. Up to this many coded blocks, a single group is faster
# (measured with benchmarks/scale.py).
MAX_UNGROUPED_N = 4096
# Maximum number of coded blocks in a group, if there are enough parity blocks. With a power of two, integers
# can be decoded from the fewest results.
GROUP_SIZE = 1024
# Minimum number of data blocks and of parity blocks in a group. With fewer parity blocks, it would be too
# likely that a group loses more results than it has parity blocks. With fewer data blocks, groups save no
# time.
MIN_GROUP_BLOCKS = 64


def choose_n_groups(n: int, k: int) -> int:
    """Return the number of groups that the default code for k data blocks and n coded blocks is divided into.

    Each group is encoded and decoded independently, which is faster if there are thousands of blocks.

    >>> [choose_n_groups(n, 3 * n // 4) for n in (32, 4096, 10_000, 100_000)]
    [1, 1, 10, 98]
    >>> choose_n_groups(100_000, 99_000)
    15
    """
    if n <= MAX_UNGROUPED_N:
        return 1
    return max(1, -(-n // MAX_N), min(-(-n // GROUP_SIZE), min(k, n - k) // MIN_GROUP_BLOCKS))


def get_design_erasure_fraction(decoder_name: str) -> float:
    """Return the erasure probability that a code is designed for, as a fraction of (n - k) / n.

    This probability, with which a result is assumed to be missing, decides which inputs of the polar code are
    frozen. The best fraction depends on the decoder.

    Parameters
    ----------
    decoder_name : {"optimal", "sequential"}
        The `decoder` of the code.
    """
    return 1.0 if decoder_name == "sequential" else OPTIMAL_DESIGN_FRACTION


class PolarCode(SystematicCode):
    """A systematic polar code over the reals or over the integers.

    It turns k data blocks into n coded blocks: blocks 0..k-1 are the data blocks, and blocks k..n-1 are
    parity blocks. They satisfy the parity checks C x = 0 with C = [P, -I]. If f is linear or affine, the
    results f(x_j) satisfy the same checks. Missing results can therefore be computed from the results that
    arrived.

    Parameters
    ----------
    n : int
        Number of coded blocks, one per worker; k < n <= 65,536 in each group, and at most 1,024 for
        "hadamard".
    k : int
        Number of data blocks, at least 1.
    kernel : {"rotation", "arikan", "hadamard"}, optional
        "rotation" (default) is an orthogonal butterfly with pseudo-random angles, for floats. Almost any k
        results suffice to decode, as for an MDS code. "arikan" uses the matrix [[1, 1], [0, 1]] (arXiv
        1901.06811). Its coefficients are small integers, so integers are decoded exactly. "hadamard" uses
        [[1, 1], [1, -1]] and a pseudo-random frozen set, for floats. It needs a few more than k results.
    decoder : {"optimal", "sequential"}
        "optimal" decodes every erasure pattern that any decoder can decode. "sequential" (arikan only) is
        successive cancellation. It takes n log n additions and decodes fewer patterns.
    erasure : float or array-like (n,), optional
        Erasure probability for which the arikan frozen set is chosen by channel polarization. The default is
        (n - k) / n for the sequential decoder. For the optimal decoder, the inputs of lowest weight are
        frozen by default, as in a Reed-Muller code. Pass an array with one probability per worker if the
        workers differ. `worker_indices` then assigns the blocks to the workers.
    seed : int, optional
        Seed of the rotation angles, of the hadamard frozen set, or of the choice between arikan inputs of
        equal weight. The default is 0 for arikan and for more than 64 blocks, and otherwise the best of eight
        seeds: the one with the lowest amplification (rotation) or with the most decodable erasure patterns
        (hadamard).
    levels : int, optional
        Number of stages of the arikan butterfly. By default, all log2(N) stages, where N is the smallest
        power of two >= n. Fewer stages need fewer additions and more results. The code then consists of
        several butterflies of 2^levels blocks, each with its own data blocks and parity blocks.
    groups : int, optional
        Number of groups into which the blocks are divided. Each group is encoded and decoded independently.
        With groups of about 1,000 blocks, n may be up to 1,048,576, and the time of all operations is
        proportional to n. Every group needs enough results, so slightly more than k results are needed in
        total. The default is one group.

    Examples
    --------
    >>> code = PolarCode(6, 4)
    >>> coded = code.encode(np.arange(8.0).reshape(4, 2))
    >>> np.allclose(code.parity_check_matrix @ coded, 0)
    True
    >>> code.decode({0: coded[0], 2: coded[2], 4: coded[4], 5: coded[5]}).round(9).tolist()
    [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]]
    """

    requirement = "linear or affine in its block"
    can_estimate = supports_sparse = is_storable = True

    kernel: str = "rotation"
    _max_n: ClassVar[int] = MAX_N
    _supported_decoders: ClassVar[tuple[str, ...]] = ("optimal",)
    # Maps the name of each kernel, and "grouped", to its class. The classes are registered when their modules
    # are imported, which are named <variant>_code.
    _classes_by_variant: ClassVar[dict[str, type[PolarCode]]] = {}

    def __init_subclass__(cls, variant: str = "") -> None:
        cls._classes_by_variant.setdefault(variant or cls.kernel, cls)

    def __new__(
        cls, n: int, k: int, kernel: str | None = None, *args: Any, groups: int | None = None, **kwargs: Any
    ) -> PolarCode:
        """Create an instance of the subclass that implements `kernel` or grouped codes."""
        kernel = cls.kernel if kernel is None else kernel
        if not is_choice(kernel, KERNELS):
            kernels_text = ", ".join(map(repr, KERNELS))
            raise CodeError(f"kernel must be one of {kernels_text}, not {kernel!r}")
        variant = kernel if groups in (None, 1) else GROUPED
        if variant not in cls._classes_by_variant:
            # Importing the module of a kernel registers its class in `_classes_by_variant`.
            importlib.import_module(f"polarmap.codes.{variant}_code")
        if cls is PolarCode:
            return object.__new__(cls._classes_by_variant[variant])
        if kernel != cls.kernel:
            raise CodeError(f"{cls.__name__} has kernel={cls.kernel!r}, not {kernel!r}. Use PolarCode.")
        return object.__new__(cls)

    def __getnewargs__(self) -> tuple[int, int, str]:
        return self.n, self.k, self.kernel

    def __init__(
        self,
        n: int,
        k: int,
        kernel: str | None = None,
        decoder: str = "optimal",
        erasure: float | npt.ArrayLike | None = None,
        seed: int | None = None,
        levels: int | None = None,
        *,
        groups: int | None = None,
    ) -> None:
        _check_code_size(n, k, self._max_n)
        if not is_choice(decoder, ("optimal", "sequential")):
            raise CodeError(f"decoder must be 'optimal' or 'sequential', not {decoder!r}")
        if decoder not in self._supported_decoders:
            raise CodeError(f"decoder={decoder!r} needs kernel='arikan', not {self.kernel!r}")
        if seed is not None and not (is_integer(seed) and 0 <= seed < 1 << 64):
            raise CodeError(f"seed must be an integer from 0 to 2^64 - 1, not {seed!r}")
        self.n, self.k, self.decoder = int(n), int(k), decoder
        self.erasure = (
            get_design_erasure_fraction(decoder) * (n - k) / n
            if erasure is None
            else _check_erasure_probabilities(erasure, self.n)
        )
        self.levels = self._check_levels(levels)
        self._seed, self.erasure_option = seed, erasure
        self.levels_option = self.levels if self.levels < (self.n - 1).bit_length() else None
        self.name = f"{self.kernel} code" + ", sequential decoder" * (decoder == "sequential")

    def __repr__(self) -> str:
        levels_text = f", levels={self.levels}" if self.levels_option is not None else ""
        return f"PolarCode({self.n}, {self.k}, kernel={self.kernel!r}, decoder={self.decoder!r}{levels_text})"

    def _check_levels(self, levels: object) -> int:
        """Return the number of butterfly stages for the argument `levels`.

        Raise CodeError if the kernel does not support `levels`. By default, only None is supported.
        """
        if levels is not None:
            raise CodeError(
                f"levels={levels!r} needs kernel='arikan', because the {self.kernel} kernel always uses all "
                "levels"
            )
        return (self.n - 1).bit_length()

    def with_sizes(self, n: int, k: int) -> PolarCode:
        """Return a code with the same options, but different numbers of blocks.

        Parameters
        ----------
        n, k : int
            Number of coded blocks and of data blocks, as for `PolarCode`.

        Returns
        -------
        PolarCode
            Options that were not passed to this code have the defaults for the new sizes.

        Raises
        ------
        CodeError
            If `erasure` has one probability per worker, or `levels` does not fit the new sizes.

        Examples
        --------
        >>> PolarCode(32, 24, kernel="arikan", decoder="sequential").with_sizes(14, 10)
        PolarCode(14, 10, kernel='arikan', decoder='sequential')
        """
        if (n, k) == (self.n, self.k):
            return self
        if not isinstance(self.erasure, float):
            raise CodeError(
                f"{self!r} has one erasure probability for each of {self.n} workers, so it cannot be used "
                f"for {n} coded blocks. Pass a PolarCode({n}, {k}, ...), or a single number as erasure."
            )
        levels = self.levels if self.levels < min(self.n - 1, n - 1).bit_length() else None
        return type(self)(
            n, k, self.kernel, self.decoder, self.erasure_option, seed=self._seed, levels=levels
        )

    @property
    def rate(self) -> float:
        """The code rate k / n, the fraction of coded blocks that are data blocks."""
        return self.k / self.n

    @property
    def frozen_set(self) -> Indices:
        """The indices of the n - k butterfly inputs that are always zero (frozen), in ascending order.

        The arikan kernel numbers the inputs of all its butterflies from 0 to `mother_code_length` - 1. The
        hadamard kernel also sets inputs with an index of n or more to zero, which are not included here. The
        rotation kernel freezes the last n - k inputs of the transform x = [[I, 0], [P, -I]] u.
        """
        raise NotImplementedError

    @property
    def codeword_positions(self) -> Indices:
        """The position of each coded block in the codeword (the output of the butterfly), shape (n,).

        The positions of the data blocks come first, then those of the parity blocks.
        """
        return np.arange(self.n)

    @cached_property
    def worker_indices(self) -> Indices:
        """The index of the worker that should process each coded block, shape (n,).

        If all workers have the same erasure probability, block i goes to worker i. Otherwise, worker i has
        probability `erasure[i]`, and the assignment depends on the kernel. The rotation and hadamard kernels
        give the data blocks to the most reliable workers, because data blocks that arrive need no decoding.
        The arikan kernel sorts the workers along the codeword positions for the sequential decoder, which
        pairs reliable workers with unreliable ones. For the optimal decoder, it shuffles them. Both choices
        performed best in measurements.

        Examples
        --------
        >>> PolarCode(6, 4, erasure=[0.3, 0.1, 0.1, 0.3, 0.1, 0.1]).worker_indices.tolist()
        [1, 2, 4, 5, 0, 3]
        """
        if isinstance(self.erasure, float):
            return np.arange(self.n)
        worker_indices = np.empty(self.n, np.intp)
        worst_blocks_first = np.argsort(-self._block_erasure_probabilities, kind="stable")
        worker_indices[worst_blocks_first] = np.argsort(-self.erasure, kind="stable")
        return worker_indices

    @property
    def _block_erasure_probabilities(self) -> Floats:
        """The probability for each coded block that its result is missing, shape (n,).

        The array is sorted in ascending order, and data blocks come first: they are assigned to the workers
        that fail least often.
        """
        return np.sort(np.broadcast_to(self.erasure, self.n))

    @property
    def seed(self) -> int:
        """The seed of the pseudo-random choices of the code, such as the rotation angles."""
        return self._seed or 0

    @property
    def encoding_matrix(self) -> Array:
        """The parity matrix P, shape (n - k, k): parity blocks = P @ data blocks.

        Its dtype is int64 for the arikan kernel, and otherwise float64.
        """
        raise NotImplementedError

    @property
    def parity_check_matrix(self) -> Array:
        """The parity-check matrix C = [P, -I], shape (n - k, n): C x = 0 for every codeword x."""
        identity = np.eye(self.n - self.k, dtype=self.encoding_matrix.dtype)
        return np.concatenate([self.encoding_matrix, -identity], axis=1)

    @cached_property
    def norm_inf(self) -> int:
        """The infinity norm of the parity matrix P (its largest absolute row sum), rounded up."""
        return int(np.ceil(np.abs(self.encoding_matrix).sum(axis=1).max()))

    def encode(self, blocks: npt.ArrayLike) -> Array:
        """Encode k data blocks into n coded blocks.

        Parameters
        ----------
        blocks : array (k, ...)
            Data blocks stacked on the first axis.

        Returns
        -------
        array (n, ...)
            The data blocks, followed by the parity blocks. Integers are returned in a dtype that is wide
            enough for the parity blocks.

        Raises
        ------
        CodeError
            If the shape or dtype of `blocks` is not supported.
        """
        data_blocks = _to_numeric_array(blocks)
        if data_blocks.ndim == 0 or len(data_blocks) != self.k:
            raise CodeError(
                f"{self!r} encodes arrays of shape ({self.k}, ...), not of shape {data_blocks.shape}"
            )
        dtype = check_supported_dtype(data_blocks.dtype, "the data")
        flat_blocks = data_blocks.reshape(self.k, -1).astype(dtype, copy=False)
        coded = np.empty((self.n, flat_blocks.shape[1]), self.parity_dtype(flat_blocks.dtype))
        tiling.parallel_copy(flat_blocks, coded[: self.k])
        self.encode_parity(flat_blocks, out=coded[self.k :])
        return coded.reshape((self.n, *data_blocks.shape[1:]))

    def is_decodable(self, arrived_mask: npt.ArrayLike, modular: bool | None = None) -> bool:
        """Return whether all k data blocks can be decoded from a set of arrived blocks.

        Parameters
        ----------
        arrived_mask : boolean array (n,)
            True for each coded block that has arrived.
        modular : bool, optional
            Whether the blocks are integers, decoded modulo 2^64, instead of real numbers. The default is
            True for the arikan kernel and False for the other kernels.

        Returns
        -------
        bool
        """
        checked_mask = _to_numeric_array(arrived_mask)
        if checked_mask.shape != (self.n,) or checked_mask.dtype != bool:
            raise CodeError(
                f"arrived_mask must be a boolean mask of length {self.n}, "
                f"not {checked_mask.dtype} of shape {checked_mask.shape}"
            )
        tracker = ArrivalTracker(self, modular=self.supports_integers if modular is None else modular)
        for block_index in np.flatnonzero(checked_mask):
            tracker.add(int(block_index))
        return tracker.is_ready

    def decode(self, blocks: Mapping[int, npt.ArrayLike]) -> Array:
        """Decode the k data blocks from some of the n coded blocks.

        Parameters
        ----------
        blocks : mapping from int to array
            Coded blocks by index, 0..n-1. All blocks must have the same shape and dtype, except that integer
            parity blocks may have a wider dtype than integer data blocks.

        Returns
        -------
        array (k, ...)
            The data blocks, in the dtype of the given data blocks, or of the parity blocks if `blocks`
            contains no data block.

        Raises
        ------
        NotDecodableError
            If too few blocks are given to decode all data blocks.
        CodeError
            If an index, shape or dtype is invalid.

        Examples
        --------
        >>> code = PolarCode(4, 2, kernel="arikan")
        >>> coded = code.encode(np.array([[2, 3], [5, 7]]))
        >>> code.decode({0: coded[0], 3: coded[3]}).tolist()
        [[2, 3], [5, 7]]
        """
        with trimmed_tracebacks:
            block_arrays = _check_received_blocks(self, blocks)
            first_block = next(iter(block_arrays.values()))
            dtype = check_supported_dtype(first_block.dtype, "a block")
            tracker = ArrivalTracker(self, modular=is_integer_dtype(dtype) and self.supports_integers)
            for block_index in block_arrays:
                tracker.add(block_index)
            if not tracker.is_ready:
                raise NotDecodableError(
                    f"{len(block_arrays)} of {self.n} blocks do not determine the {self.k} data blocks: "
                    f"pass at least {max(1, self.k - len(block_arrays))} more"
                )
            received = {index: block.reshape(-1) for index, block in block_arrays.items()}
            result = np.empty((self.k, first_block.size), dtype)
            for block_index, block in received.items():
                if block_index < self.k:
                    result[block_index] = block
            result[tracker.missing_indices] = tracker.decoder.decode(received, dtype)
            return result.reshape((self.k, *first_block.shape))


def _check_code_size(n: int, k: int, max_n: int) -> None:
    for name, value in (("n", n), ("k", k)):
        if not is_integer(value):
            raise CodeError(f"{name} must be an integer, not {value!r}")
    if not 1 <= k < n <= max_n:
        advice = ". Use kernel='rotation'." if max_n < n <= MAX_N else ""
        raise CodeError(f"this kernel requires 1 <= k < n <= {max_n}, not n = {n}, k = {k}{advice}")


def _check_erasure_probabilities(erasure: object, n: int) -> float | Floats:
    """Return `erasure` as a float or as a read-only array (n,). Raise CodeError if it is invalid."""
    if is_real_number(erasure):
        if not 0 < erasure < 1:
            raise CodeError(f"erasure must be strictly between 0 and 1, not {erasure!r}")
        return float(erasure)
    try:
        raw_values = np.asarray(erasure)
    except ValueError:  # NumPy rejects nested lists of different lengths.
        raw_values = np.empty((), object)
    if raw_values.ndim != 1 or raw_values.dtype.kind not in "iuf":
        raise CodeError(
            "erasure must be a number strictly between 0 and 1, or a list with one number for each of the "
            f"n = {n} workers, not {erasure!r:.100}"
        )
    if len(raw_values) != n:
        raise CodeError(
            f"erasure must have one probability for each of the n = {n} workers, not {len(raw_values)} "
            "probabilities"
        )
    values = raw_values.astype(np.float64)
    invalid_indices = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(invalid_indices):
        raise CodeError(
            f"erasure[{invalid_indices[0]}] must be between 0 and 1, not {values[invalid_indices[0]]:g}"
        )
    values.flags.writeable = False
    return values


def _check_received_blocks(code: PolarCode, blocks: Mapping[int, npt.ArrayLike]) -> dict[int, Array]:
    """Convert the blocks to arrays and check them. Return a dict that is ordered by block index.

    Raise CodeError if an index, a shape or a dtype does not fit the code.
    """
    if not isinstance(blocks, Mapping):
        raise CodeError(f"blocks must be a mapping from block index to block, not {type(blocks).__name__}")
    for block_index in blocks:
        if not is_integer(block_index) or not 0 <= block_index < code.n:
            raise CodeError(f"a block index must be an integer from 0 to {code.n - 1}, not {block_index!r}")
    block_arrays = {block_index: _to_numeric_array(block) for block_index, block in sorted(blocks.items())}
    if not block_arrays:
        raise NotDecodableError(f"blocks is empty, but decoding needs at least {code.k} blocks")
    first_index, first_block = next(iter(block_arrays.items()))
    for block_index, block_array in block_arrays.items():
        # All blocks must have one dtype, except that integer parity blocks may be wider than integer data
        # blocks.
        is_wider = (
            first_index < code.k <= block_index
            and block_array.dtype.kind == "i"
            and first_block.dtype.kind in "iu"
        )
        if block_array.shape != first_block.shape or (
            block_array.dtype != first_block.dtype and not is_wider
        ):
            raise CodeError(
                f"block {block_index} is {block_array.dtype} of shape {block_array.shape}, but "
                f"block {first_index} is {first_block.dtype} of shape {first_block.shape}"
            )
    return block_arrays


def _to_numeric_array(block: npt.ArrayLike) -> Array:
    """Convert an argument to a C-contiguous array. Raise CodeError if NumPy cannot convert it."""
    try:
        return np.asarray(block, order="C")
    except (TypeError, ValueError) as error:
        raise CodeError(f"a block must be an array of numbers: {error}") from error
