"""PolarCode: n coded blocks x = G u of which k are the data u, bound by C x = 0.

    G = [I; P],   T = I,   C = [P, -I]

A polar code is an invertible butterfly x = B v whose inputs v are zero on a frozen set F of n - k.
Read backwards, the rows F of the inverse of B vanish on every codeword: these n - k equations are
C x = 0, solved for the parity blocks they are x = [I; P] u. A linear f commutes with them, and since
the rows of P sum to one so does an affine f: the results satisfy C f(x) = 0 too.

B is of the kernel's 2 x 2 matrices: `rotation_code`, `arikan_code`, `hadamard_code`. Each kernel is a class
of its own, which says P and which inputs are frozen.
"""

from __future__ import annotations

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

MAX_N = 1 << 16
# An optimal decoder gains from rows of larger weight than polarization at the capacity picks: the
# design point (n - k) / 4 n needs 2 to 25 times fewer arrivals beyond k from n = 128 on, none more
# below (planning.arrivals_needed with both).
OPTIMAL_DESIGN_FRACTION = 0.25


def get_design_erasure_fraction(decoder_name: str) -> float:
    """The share of the n - k losses that can be made up for at which a decoder's code is designed."""
    return 1.0 if decoder_name == "sequential" else OPTIMAL_DESIGN_FRACTION


class PolarCode(SystematicCode):
    """A systematic polar code over the reals, or over the integers.

    The coded blocks x satisfy C x = 0 with C = [P, -I]: blocks 0..k-1 are the data untouched,
    blocks k..n-1 are parity. A linear f commutes with this, and since the rows of P sum to one
    so does an affine f: f(x_j) obey the same equations, and lost results follow from the others.

    Parameters
    ----------
    n : int
        Coded blocks (workers), k < n <= 65,536.
    k : int
        Data blocks, at least 1.
    kernel : {"rotation", "arikan", "hadamard"}, optional
        "rotation", the default: an orthogonal butterfly with pseudo-random angles and a pseudo-random frozen
        set; almost any k blocks decode, like an MDS code. "arikan": [[1, 1], [0, 1]] and the
        frozen set of channel polarization (arXiv 1901.06811); small integer coefficients, so
        integers decode exactly. "hadamard": [[1, 1], [1, -1]] and a pseudo-random frozen set, for floats;
        it needs a few more than k results, and at most 1,024 blocks.
    decoder : {"optimal", "sequential"}
        "optimal" decodes whenever any decoder could. "sequential" (arikan only) is successive
        cancellation: additions and subtractions, n log n, when the bit pattern permits.
    erasure : float or array-like (n,), optional
        Erasure probability for which the arikan frozen set is chosen. By default (n - k) / n, which
        suits the sequential decoder, and a quarter of it for the optimal one. An array has one for each
        worker, where they are not alike: `worker_indices` then says who gets which block.
    seed : int, optional
        Of the rotation angles, or of the hadamard frozen set. By default, up to 64 blocks, the best of
        eight, by the error amplification or the arrivals that decode; 0 above.
    levels : int, optional
        Of the arikan butterfly: fewer than all, log2 of the next power of two above n, cost fewer additions
        and need more results. Butterflies of 2^levels blocks then lie side by side, each with data blocks and
        parity blocks of its own.

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

    kernel: ClassVar[str] = "rotation"
    _max_n: ClassVar[int] = MAX_N
    _supported_decoders: ClassVar[tuple[str, ...]] = ("optimal",)
    _classes_by_kernel: ClassVar[dict[str, type[PolarCode]]] = {}

    def __init_subclass__(cls) -> None:
        cls._classes_by_kernel.setdefault(cls.kernel, cls)

    def __new__(cls, n: int, k: int, kernel: str | None = None, *args: Any, **kwargs: Any) -> PolarCode:
        """One of the class of its kernel."""
        kernel = cls.kernel if kernel is None else kernel
        if not is_choice(kernel, tuple(cls._classes_by_kernel)):
            kernels_text = ", ".join(map(repr, cls._classes_by_kernel))
            raise CodeError(f"kernel must be one of {kernels_text}, not {kernel!r}")
        if cls is PolarCode:
            return super().__new__(cls._classes_by_kernel[kernel])
        if kernel != cls.kernel:
            raise CodeError(f"{cls.__name__} has kernel={cls.kernel!r}, not {kernel!r}: use PolarCode")
        return super().__new__(cls)

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
    ) -> None:
        _check_code_size(n, k, self._max_n)
        if not is_choice(decoder, ("optimal", "sequential")):
            raise CodeError(f"decoder must be 'optimal' or 'sequential', not {decoder!r}")
        if decoder not in self._supported_decoders:
            raise CodeError(f"decoder={decoder!r} needs kernel='arikan'")
        if seed is not None and not (is_integer(seed) and 0 <= seed < 1 << 64):
            raise CodeError(f"seed must be an integer of at least 0 and below 2^64, not {seed!r}")
        self.n, self.k, self.decoder = int(n), int(k), decoder
        self.erasure = (
            get_design_erasure_fraction(decoder) * (n - k) / n
            if erasure is None
            else _check_erasure_probabilities(erasure, self.n)
        )
        self.levels = self._check_levels(levels)
        self._seed, self._erasure_option = seed, erasure
        self.name = f"{self.kernel} code" + ", sequential decoder" * (decoder == "sequential")

    def __repr__(self) -> str:
        levels_text = f", levels={self.levels}" if self.levels < (self.n - 1).bit_length() else ""
        return f"PolarCode({self.n}, {self.k}, kernel={self.kernel!r}, decoder={self.decoder!r}{levels_text})"

    def _check_levels(self, levels: object) -> int:
        """How many levels the butterflies have: all, log2 of the next power of two."""
        if levels is not None:
            raise CodeError(f"levels needs kernel='arikan': the {self.kernel} kernel has all of them")
        return (self.n - 1).bit_length()

    def with_sizes(self, n: int, k: int) -> PolarCode:
        """Return a code with other numbers of blocks and the same options.

        Parameters
        ----------
        n, k : int
            The numbers of coded blocks and of data blocks, as for `PolarCode`.

        Returns
        -------
        PolarCode
            Options that were left out get their defaults for the new numbers.

        Raises
        ------
        CodeError
            If `erasure` has one probability for each worker, or `levels` does not fit the new numbers.

        Examples
        --------
        >>> PolarCode(32, 24, kernel="arikan", decoder="sequential").with_sizes(14, 10)
        PolarCode(14, 10, kernel='arikan', decoder='sequential')
        """
        if (n, k) == (self.n, self.k):
            return self
        if not isinstance(self.erasure, float):
            raise CodeError(
                f"erasure has one probability for each of {self.n} workers, so that {self!r} cannot be used "
                f"for {n} coded blocks. Pass a PolarCode({n}, {k}, ...), or a single number as erasure."
            )
        levels = self.levels if self.levels < min(self.n - 1, n - 1).bit_length() else None
        return type(self)(
            n, k, self.kernel, self.decoder, self._erasure_option, seed=self._seed, levels=levels
        )

    @property
    def rate(self) -> float:
        """k / n."""
        return self.k / self.n

    @property
    def frozen_set(self) -> Indices:
        """Inputs of the transform that are frozen to zero, ascending; n - k of them.

        arikan: positions on the butterflies, which are rows of `length` inputs. rotation: the transform is
        x = [[I, 0], [P, -I]] u, whose last n - k inputs are frozen. hadamard: inputs of the butterfly, whose
        inputs from n on are zero, too.
        """
        raise NotImplementedError

    @property
    def codeword_positions(self) -> Indices:
        """arikan, hadamard: the leaf of the butterflies on which each coded block sits, data blocks first."""
        return np.arange(self.n)

    @cached_property
    def worker_indices(self) -> Indices:
        """The worker of each coded block, (n,): worker i is the one with the i-th `erasure`.

        Block i is for worker i where all are alike. With the other kernels than arikan the data blocks go to
        the most reliable workers, since what arrives of them need not be decoded. On the leaves of the arikan
        butterfly workers are sorted for the sequential decoder, so that its first pairs are of a reliable
        worker and one that is not, and shuffled for the optimal one (both measured best).

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
        """The erasure probability of each coded block: data blocks go to the most reliable workers."""
        return np.sort(np.broadcast_to(self.erasure, self.n))

    @property
    def seed(self) -> int:
        """The seed of the rotation angles, or of the hadamard frozen set, in use."""
        return self._seed or 0

    @property
    def encoding_matrix(self) -> Array:
        """P, shape (n - k, k): int64 (small numbers) for arikan, else float64."""
        raise NotImplementedError

    @property
    def parity_check_matrix(self) -> Array:
        """C = [P, -I], shape (n - k, n): C x = 0 for every codeword x."""
        identity = np.eye(self.n - self.k, dtype=self.encoding_matrix.dtype)
        return np.concatenate([self.encoding_matrix, -identity], axis=1)

    @cached_property
    def norm_inf(self) -> int:
        """The largest sum of absolute coefficients of a parity block, rounded up."""
        return int(np.ceil(np.abs(self.encoding_matrix).sum(axis=1).max()))

    def encode(self, blocks: npt.ArrayLike) -> Array:
        """All n coded blocks of k data blocks.

        Parameters
        ----------
        blocks : array (k, ...)
            Data blocks stacked on the first axis.

        Returns
        -------
        array (n, ...)
            The data blocks, then the parity blocks. Integers come back in a dtype wide enough
            for the parity blocks.
        """
        data_blocks = _to_numeric_array(blocks)
        if data_blocks.ndim == 0 or len(data_blocks) != self.k:
            raise CodeError(f"{self!r} encodes arrays of shape ({self.k}, ...), not {data_blocks.shape}")
        dtype = check_supported_dtype(data_blocks.dtype, "the data")
        flat_blocks = data_blocks.reshape(self.k, -1).astype(dtype, copy=False)
        coded = np.empty((self.n, flat_blocks.shape[1]), self.parity_dtype(flat_blocks.dtype))
        tiling.parallel_copy(flat_blocks, coded[: self.k])
        self.encode_parity(flat_blocks, out=coded[self.k :])
        return coded.reshape((self.n, *data_blocks.shape[1:]))

    def is_decodable(self, arrived_mask: npt.ArrayLike, modular: bool | None = None) -> bool:
        """Whether a set of arrivals determines all k data blocks.

        Parameters
        ----------
        arrived_mask : boolean array (n,)
        modular : bool, optional
            Over integers modulo 2^64 (rank over GF(2)) instead of the reals; by default for the
            arikan kernel.
        """
        checked_mask = _to_numeric_array(arrived_mask)
        if checked_mask.shape != (self.n,) or checked_mask.dtype != bool:
            raise CodeError(f"arrived_mask must be a boolean mask of length {self.n}")
        tracker = ArrivalTracker(self, modular=self.supports_integers if modular is None else modular)
        for block_index in np.flatnonzero(checked_mask):
            tracker.add(int(block_index))
        return tracker.is_ready

    def decode(self, blocks: Mapping[int, npt.ArrayLike]) -> Array:
        """The k data blocks from any decodable set of coded blocks.

        Parameters
        ----------
        blocks : mapping from position (0..n-1) to block, all of one shape and dtype
            Integer data blocks may be narrower than integer parity blocks.

        Returns
        -------
        array (k, ...), in the dtype of the data blocks given (of the parity blocks if none is).

        Raises
        ------
        NotDecodableError
            If the set determines nothing more.
        CodeError
            If positions, shapes or dtypes do not fit.

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
                    f"{len(block_arrays)} of {self.n} blocks do not determine the {self.k} data blocks; "
                    f"at least {max(1, self.k - len(block_arrays))} more needed"
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
        advice = ": use kernel='rotation'" if max_n < n <= MAX_N else ""
        raise CodeError(f"a code of this kernel needs 1 <= k < n <= {max_n}, not n = {n}, k = {k}{advice}")


def _check_erasure_probabilities(erasure: object, n: int) -> float | Floats:
    """One probability for all workers, or one for each, (n,)."""
    if is_real_number(erasure):
        if not 0 < erasure < 1:
            raise CodeError(f"erasure must lie strictly between 0 and 1, not {erasure!r}")
        return float(erasure)
    try:
        raw_values = np.asarray(erasure)
    except ValueError:  # lists of different lengths
        raw_values = np.empty((), object)
    if raw_values.ndim != 1 or raw_values.dtype.kind not in "iuf":
        raise CodeError(
            "erasure must be a number strictly between 0 and 1, or a list with one for each of the "
            f"n = {n} workers, not {erasure!r:.100}"
        )
    if len(raw_values) != n:
        raise CodeError(
            f"erasure has {len(raw_values)} probabilities, and there are n = {n} workers: give one for each"
        )
    values = raw_values.astype(np.float64)
    invalid_indices = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(invalid_indices):
        raise CodeError(
            f"erasure[{invalid_indices[0]}] must lie between 0 and 1, not at {values[invalid_indices[0]]:g}"
        )
    values.flags.writeable = False
    return values


def _check_received_blocks(code: PolarCode, blocks: Mapping[int, npt.ArrayLike]) -> dict[int, Array]:
    """The blocks as arrays by position, ascending; CodeError if they do not fit each other."""
    if not isinstance(blocks, Mapping):
        raise CodeError(f"blocks must be a mapping from position to block, not {type(blocks).__name__}")
    for block_index in blocks:
        if not is_integer(block_index) or not 0 <= block_index < code.n:
            raise CodeError(f"positions run from 0 to {code.n - 1}, not {block_index!r}")
    block_arrays = {block_index: _to_numeric_array(block) for block_index, block in sorted(blocks.items())}
    if not block_arrays:
        raise NotDecodableError(f"no blocks given; at least {code.k} are needed")
    first_index, first_block = next(iter(block_arrays.items()))
    for block_index, block_array in block_arrays.items():
        # Integer parity blocks are wider than integer data blocks; all else is alike.
        is_wider = (
            first_index < code.k <= block_index
            and block_array.dtype.kind == "i"
            and first_block.dtype.kind in "iu"
        )
        if block_array.shape != first_block.shape or (
            block_array.dtype != first_block.dtype and not is_wider
        ):
            raise CodeError(
                f"block {block_index} is {block_array.dtype} of shape {block_array.shape}, "
                f"block {first_index} {first_block.dtype} of shape {first_block.shape}"
            )
    return block_arrays


def _to_numeric_array(block: npt.ArrayLike) -> Array:
    """An argument of a caller's as a contiguous array of numbers."""
    try:
        return np.asarray(block, order="C")
    except (TypeError, ValueError) as error:
        raise CodeError(f"a block must be an array of numbers: {error}") from error
