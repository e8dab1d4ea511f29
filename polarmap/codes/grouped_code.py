"""Polar codes whose blocks are divided into independent groups, for maps of thousands of tasks.

    coded blocks 0, 1, ..., n - 1      ->   group 0: blocks 0, 3, 4, ...    C_0 x_0 = 0
                                            group 1: blocks 1, 2, 5, ...    C_1 x_1 = 0

Each group is a codeword of a smaller `PolarCode`, so the parity-check matrix C of all blocks is
block-diagonal after a permutation. The time and memory to encode, to track decodability and to decode are
proportional to n. The price is a weaker guarantee: *every* group needs enough results, whereas almost any k
results suffice without groups. `compute_failure_probability` returns the probability that some group loses
too many results.

`choose_n_groups` selects the number of groups for large maps. A code that the user passes is never divided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.base import ErasureDecoder, MatrixBlock, ReceivedBlocks, WeightMasks
from polarmap.codes.binomial import compute_binomial_tail
from polarmap.codes.compute import tiling
from polarmap.codes.linear_code import GroupGuarantee
from polarmap.codes.polar import GROUPED, MAX_GROUPED_N, PolarCode
from polarmap.codes.splitmix import SplitMix64
from polarmap.dtypes import (
    Array,
    DType,
    Floats,
    Indices,
    Mask,
    UInt64Array,
    is_integer,
    is_integer_dtype,
)
from polarmap.errors import CodeError


class GroupedPolarCode(PolarCode, variant=GROUPED):
    """A polar code whose blocks are divided into groups, each with its own codeword.

    Each group can be encoded and decoded separately, which is faster for thousands of blocks. The parameters
    are the same as for `PolarCode`, with `groups` >= 2. Blocks are assigned to groups pseudo-randomly, so the
    tasks of a worker belong to many groups, and its loss costs each group only a few results.

    Attributes
    ----------
    n_groups : int
        The number of groups.
    group_codes : list of PolarCode
        The code of each group. Groups of equal size share one object.
    group_blocks : list of index arrays
        The coded blocks of each group: first its data blocks, then its parity blocks, both in ascending
        order.

    Examples
    --------
    >>> code = PolarCode(16, 12, groups=2)
    >>> [len(block_indices) for block_indices in code.group_blocks]
    [8, 8]
    >>> coded = code.encode(np.arange(24.0).reshape(12, 2))
    >>> np.allclose(code.parity_check_matrix @ coded, 0)
    True
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> GroupedPolarCode:
        """Create an instance of this class.

        This bypasses `PolarCode.__new__`, which chooses a subclass from the arguments.
        """
        return object.__new__(cls)

    def __init__(
        self,
        n: int,
        k: int,
        kernel: str | None = None,
        decoder: str = "optimal",
        erasure: float | None = None,
        seed: int | None = None,
        levels: int | None = None,
        *,
        groups: int | None = None,
    ) -> None:
        self.kernel = PolarCode.kernel if kernel is None else kernel
        self.n_groups = self._check_group_count(n, k, groups)
        if erasure is not None and np.ndim(erasure):
            raise CodeError(
                f"erasure has one probability per worker, which groups={groups} does not support. Pass a "
                "single number as erasure, or leave groups out."
            )
        data_groups = _assign_blocks_to_groups(int(k), self.n_groups, 0)
        parity_groups = _assign_blocks_to_groups(int(n - k), self.n_groups, 1)
        group_pairs = list(zip(data_groups, parity_groups))
        self.group_blocks = [
            np.concatenate([data_indices, k + parity_indices]) for data_indices, parity_indices in group_pairs
        ]
        group_sizes = [(len(data) + len(parity), len(data)) for data, parity in group_pairs]
        codes_by_size = {
            (n_blocks, n_data): PolarCode(n_blocks, n_data, kernel, decoder, erasure, seed, levels)
            for n_blocks, n_data in set(group_sizes)
        }
        self.group_codes = [codes_by_size[sizes] for sizes in group_sizes]
        largest_code = codes_by_size[max(codes_by_size)]
        self.n, self.k, self.decoder, self.erasure = int(n), int(k), decoder, largest_code.erasure
        self.levels, self.levels_option = largest_code.levels, largest_code.levels_option
        self._seed, self.erasure_option = seed, erasure
        self.name = f"{largest_code.name}, {self.n_groups} groups"
        self.option_name, self.is_mds = largest_code.option_name, False
        self.supports_integers = largest_code.supports_integers
        self.integer_error_template = largest_code.integer_error_template
        self.has_uneven_parity = largest_code.has_uneven_parity

    @staticmethod
    def _check_group_count(n: Any, k: Any, groups: Any) -> int:
        """Return `groups` as an int. Raise CodeError unless it is a valid number of groups for n and k."""
        if not (is_integer(n) and is_integer(k) and 1 <= k < n <= MAX_GROUPED_N):
            raise CodeError(f"groups require 1 <= k < n <= {MAX_GROUPED_N}, not n = {n!r}, k = {k!r}")
        max_groups = min(k, n - k)
        if not is_integer(groups) or not 2 <= groups <= max_groups:
            raise CodeError(
                f"groups must be an integer from 1 to {max_groups}, not {groups!r}: each group needs a data "
                "block and a parity block"
            )
        return int(groups)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), {}

    def __repr__(self) -> str:
        return (
            f"PolarCode({self.n}, {self.k}, kernel={self.kernel!r}, decoder={self.decoder!r}, "
            f"groups={self.n_groups})"
        )

    def with_sizes(self, n: int, k: int) -> PolarCode:
        """Return a code with n coded blocks, k data blocks, and otherwise the same options.

        The number of groups is reduced if there are fewer data blocks or parity blocks than groups.
        """
        if (n, k) == (self.n, self.k):
            return self
        options = self.kernel, self.decoder, self.erasure_option, self._seed, self.levels_option
        return PolarCode(n, k, *options, groups=min(self.n_groups, k, n - k))

    # -- losses -----------------------------------------------------------------------------

    def split_into_groups(self) -> list[tuple[PolarCode, Indices]]:
        """Return the code of each group and the indices of its coded blocks."""
        return list(zip(self.group_codes, self.group_blocks))

    def get_group_guarantee(self, loss_rate: float) -> GroupGuarantee:
        """Return how many lost results every group tolerates, and how likely any group loses too many.

        `loss_rate` is the probability that a result is lost.
        """
        max_losses = min(code.n - code.k for code in self._distinct_codes)
        return GroupGuarantee(self.n_groups, max_losses, self.compute_failure_probability(loss_rate))

    def compute_failure_probability(self, loss_rate: float) -> float:
        """Compute the probability that some group loses more results than it has parity blocks.

            1 - product over groups of P(Binomial(n, loss_rate) <= n - k)

        Parameters
        ----------
        loss_rate : float
            Probability that a result is lost, independently of the others; between 0 and 1.

        Examples
        --------
        >>> f"{PolarCode(8, 4, groups=2).compute_failure_probability(0.1):.4f}"
        '0.0074'
        """
        with np.errstate(divide="ignore"):  # log(0) = -inf is correct if a group is certain to fail.
            log_success_probability = sum(
                n_groups * np.log1p(-compute_binomial_tail(code.n, code.n - code.k, loss_rate))
                for code, n_groups in Counter(self.group_codes).items()
            )
        return float(-np.expm1(log_success_probability))

    # -- matrices ---------------------------------------------------------------------------

    @property
    def seed(self) -> int:
        """The seed of the pseudo-random choices of the group codes, as for `PolarCode`."""
        return self.group_codes[0].seed

    @property
    def frozen_set(self) -> Indices:
        """The indices of the encoder inputs that are always zero (frozen), over all groups.

        The inputs of the first group come first, then those of the second group, and so on.
        """
        return self._concatenate_with_offsets([code.frozen_set for code in self.group_codes])

    @property
    def codeword_positions(self) -> Indices:
        """The position of each coded block in the codeword, shape (n,).

        The positions of the first group come first, then those of the second group, and so on.
        """
        positions = np.empty(self.n, np.intp)
        offset_positions = self._concatenate_with_offsets(
            [code.codeword_positions for code in self.group_codes]
        )
        positions[np.concatenate(self.group_blocks)] = offset_positions
        return positions

    def _concatenate_with_offsets(self, index_arrays: Sequence[Indices]) -> Indices:
        """Concatenate one index array per group into indices that are unique over all groups.

        Each array is shifted by the number of codeword positions of all previous groups.
        """
        lengths = [int(code.codeword_positions.max()) + 1 for code in self.group_codes]
        offsets = np.cumsum([0, *lengths[:-1]])
        return np.concatenate([indices + offset for indices, offset in zip(index_arrays, offsets)])

    @cached_property
    def encoding_matrix(self) -> Array:
        """The parity matrix P, shape (n - k, k): parity blocks = P @ data blocks.

        An entry is zero if its parity block and its data block are in different groups.
        """
        matrix = np.zeros((self.n - self.k, self.k), self.group_codes[0].encoding_matrix.dtype)
        for code, block_indices in self.split_into_groups():
            data_indices, parity_indices = np.split(block_indices, [code.k])
            matrix[np.ix_(parity_indices - self.k, data_indices)] = code.encoding_matrix
        return matrix

    def compute_encoding_matrix_columns(self, block_indices: Indices) -> Array:
        """Return the columns of the parity matrix that belong to the data blocks `block_indices`."""
        columns = np.zeros((self.n - self.k, len(block_indices)), self.group_codes[0].encoding_matrix.dtype)
        for code, group_blocks in self.split_into_groups():
            data_indices, parity_indices = np.split(group_blocks, [code.k])
            _, positions, positions_in_group = np.intersect1d(
                block_indices, data_indices, assume_unique=True, return_indices=True
            )
            group_columns = code.encoding_matrix[:, positions_in_group]
            columns[np.ix_(parity_indices - self.k, positions)] = group_columns
        return columns

    def compute_encoding_matrix_rows(self, parity_indices: Indices) -> Array:
        """Return the rows `parity_indices` of the parity matrix, shape (rows, k).

        Row i belongs to the coded block k + i.
        """
        rows = np.zeros((len(parity_indices), self.k), self.group_codes[0].encoding_matrix.dtype)
        for code, group_blocks in self.split_into_groups():
            data_indices, group_parity = np.split(group_blocks, [code.k])
            _, positions, positions_in_group = np.intersect1d(
                parity_indices, group_parity - self.k, assume_unique=True, return_indices=True
            )
            rows[np.ix_(positions, data_indices)] = code.encoding_matrix[positions_in_group]
        return rows

    def left_multiply_encoding_matrix(self, weights: Floats) -> Floats:
        """Compute weights @ P, where P is the parity matrix.

        The product is computed separately for each group, without building P.
        """
        products = np.empty((len(weights), self.k))
        for code, group_blocks in self.split_into_groups():
            data_indices, parity_indices = np.split(group_blocks, [code.k])
            group_weights = np.ascontiguousarray(weights[:, parity_indices - self.k])
            products[:, data_indices] = code.left_multiply_encoding_matrix(group_weights)
        return products

    def count_blocks_per_parity_block(self) -> Indices:
        """Return the number of data blocks that each parity block combines, shape (n - k,)."""
        counts = np.empty(self.n - self.k, np.intp)
        for code, group_blocks in self.split_into_groups():
            counts[group_blocks[code.k :] - self.k] = code.count_blocks_per_parity_block()
        return counts

    @cached_property
    def norm_inf(self) -> int:
        """The infinity norm (largest absolute row sum) of the parity matrix, over all groups."""
        return max(code.norm_inf for code in self._distinct_codes)

    @property
    def _distinct_codes(self) -> set[PolarCode]:
        """The set of different codes that the groups use. Groups of equal size share a code."""
        return set(self.group_codes)

    # -- encoding ---------------------------------------------------------------------------

    def parity_dtype(self, dtype: npt.DTypeLike) -> DType:
        """Return the dtype of the parity blocks: the widest dtype that any group needs."""
        return max((code.parity_dtype(dtype) for code in self._distinct_codes), key=attrgetter("itemsize"))

    def precompute_encoding(self) -> None:
        """Compute and cache the matrices that each group needs to encode its blocks."""
        for code in self._distinct_codes:
            code.precompute_encoding()

    def _encode_parity_into(self, blocks: tiling.FlatBlocks, out: Array) -> None:
        for code, group_blocks in self.split_into_groups():
            data_indices, parity_indices = np.split(group_blocks, [code.k])
            if isinstance(blocks, np.ndarray):
                # Copy the group's rows into one array, because it is faster to encode than a list of views.
                rows: tiling.FlatBlocks = blocks[data_indices]
            else:
                rows = [blocks[block_index] for block_index in data_indices.tolist()]
            out[parity_indices - self.k] = code.encode_parity(rows)

    # -- decoding ---------------------------------------------------------------------------

    def make_decoder(self, arrived_mask: Mask, modular: bool) -> GroupedDecoder:
        """Build a decoder for the results that have arrived.

        It consists of one decoder per group. `modular` selects integers modulo 2^64 instead of real numbers.
        """
        group_decoders = [
            code.make_decoder(arrived_mask[group_blocks], modular)
            for code, group_blocks in self.split_into_groups()
        ]
        return GroupedDecoder(self, arrived_mask, group_decoders)

    def make_decodability_tracker(self, modular: bool) -> Callable[[int], bool]:
        """Return a function to call with the index of each block that arrives.

        It returns whether all groups can be decoded now.
        """
        return GroupedDecodabilityTracker(self, modular).add


def _assign_blocks_to_groups(n_blocks: int, n_groups: int, stream: int) -> list[Indices]:
    """Divide the block indices 0..n_blocks-1 into groups whose sizes differ by at most one.

    Each run of `n_groups` consecutive blocks is assigned to the groups in cyclic order, from a pseudo-random
    group on. If all runs began with the same group, a worker that gets every n_groups-th task would get tasks
    of a single group.

    Parameters
    ----------
    n_blocks, n_groups : int
        Number of blocks, at least `n_groups`, and of groups.
    stream : int
        Seed of the pseudo-random numbers.

    Returns
    -------
    list of index arrays, each ascending

    Examples
    --------
    >>> [group.tolist() for group in _assign_blocks_to_groups(7, 2, 0)]
    [[0, 2, 5, 6], [1, 3, 4]]
    """
    block_indices = np.arange(n_blocks)
    first_groups = SplitMix64(n_blocks, n_groups, stream).integers(-(-n_blocks // n_groups)) % n_groups
    groups = (block_indices + first_groups[block_indices // n_groups]) % n_groups
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.cumsum(np.bincount(groups, minlength=n_groups))[:-1])


class GroupedDecodabilityTracker:
    """Tracks whether all groups of a `GroupedPolarCode` can be decoded from the results that have arrived.

    Parameters
    ----------
    code : GroupedPolarCode
        Code of the blocks.
    modular : bool
        Track decodability modulo 2^64 instead of over the reals.
    """

    def __init__(self, code: GroupedPolarCode, modular: bool) -> None:
        group_of_block, position_in_group = np.empty(code.n, np.intp), np.empty(code.n, np.intp)
        for group, block_indices in enumerate(code.group_blocks):
            group_of_block[block_indices] = group
            position_in_group[block_indices] = np.arange(len(block_indices))
        self._group_of_block: list[int] = group_of_block.tolist()
        self._position_in_group: list[int] = position_in_group.tolist()
        # Maps the index of each group that cannot be decoded yet to a tracker of its arrived blocks.
        self._trackers = {
            group: ArrivalTracker(group_code, modular=modular)
            for group, group_code in enumerate(code.group_codes)
        }

    def add(self, block_index: int) -> bool:
        """Record the arrival of a block and return whether all blocks can now be decoded."""
        group = self._group_of_block[block_index]
        if group in self._trackers and self._trackers[group].add(self._position_in_group[block_index]):
            del self._trackers[group]
        return not self._trackers


class GroupPositions(NamedTuple):
    """Index arrays that convert indices within one group to indices within the whole grouped code.

    Attributes
    ----------
    blocks : index array
        Index of each coded block of the group among all coded blocks.
    arrived, missing : index array
        Position of each arrived (or missing) result of the group among the arrived (or missing) results of
        the whole code, i.e. in `arrived_indices` (or `missing_indices`) of the `GroupedDecoder`.
    """

    blocks: Indices
    arrived: Indices
    missing: Indices


class GroupedDecoder(ErasureDecoder):
    """Decodes each group of a `GroupedPolarCode` with a separate decoder.

    Parameters
    ----------
    code : GroupedPolarCode
        Code of the blocks.
    arrived_mask : boolean array (n,)
        True for each result that has arrived.
    group_decoders : list of ErasureDecoder
        One decoder for each group, for the results of the group that have arrived.
    """

    code: GroupedPolarCode

    def __init__(
        self, code: GroupedPolarCode, arrived_mask: Mask, group_decoders: list[ErasureDecoder]
    ) -> None:
        super().__init__(code, arrived_mask)
        self.group_decoders = group_decoders
        self.modular = group_decoders[0].modular

    @property
    def decodes_integers_by_rounding(self) -> bool:
        """True if integers are decoded as real numbers and then rounded."""
        return self.group_decoders[0].decodes_integers_by_rounding

    @cached_property
    def group_positions(self) -> list[GroupPositions]:
        """For each group, the index arrays that convert its indices to indices of the whole code."""
        position_of_block = np.empty(self.code.n, np.intp)
        position_of_block[self.arrived_indices] = np.arange(len(self.arrived_indices))
        position_of_block[self.missing_indices] = np.arange(len(self.missing_indices))
        return [
            GroupPositions(
                group_blocks,
                position_of_block[group_blocks[decoder.arrived_indices]],
                position_of_block[group_blocks[decoder.missing_indices]],
            )
            for group_blocks, decoder in zip(self.code.group_blocks, self.group_decoders)
        ]

    @property
    def _group_pairs(self) -> zip[tuple[ErasureDecoder, GroupPositions]]:
        """Pairs of the decoder and the `GroupPositions` of each group."""
        return zip(self.group_decoders, self.group_positions)

    def over(self, dtype: DType) -> ErasureDecoder:
        """Return a decoder of the same arrived results for results of `dtype`.

        A decoder of integers modulo 2^64 cannot decode floats and returns a decoder of real numbers then.
        """
        return self if not self.modular or is_integer_dtype(dtype) else self._real_decoder

    @cached_property
    def _real_decoder(self) -> GroupedDecoder:
        real_decoders = [decoder.over(np.dtype(np.float64)) for decoder in self.group_decoders]
        return GroupedDecoder(self.code, self.arrived_mask, real_decoders)

    def reuse_computations_of(self, previous: ErasureDecoder) -> None:
        """Take over computations from the decoder of an earlier subset of the arrived results.

        A group without new results uses its previous decoder again. The decoders of other groups take over
        what they can from their predecessors.
        """
        if not isinstance(previous, GroupedDecoder):
            return
        for group, previous_decoder in enumerate(previous.group_decoders):
            decoder = self.group_decoders[group]
            if len(decoder.arrived_indices) == len(previous_decoder.arrived_indices):
                self.group_decoders[group] = previous_decoder
            else:
                decoder.reuse_computations_of(previous_decoder)

    @property
    def rank_deficit(self) -> int:
        """A lower bound on the number of additional results needed to decode, or 0 if none is needed."""
        return sum(decoder.rank_deficit for decoder in self.group_decoders)

    @property
    def n_redundant_checks(self) -> int:
        """The number of redundant parity checks, which can be used to detect wrong results.

        The number is negative if a group has too few results to be decoded.
        """
        counts = [decoder.n_redundant_checks for decoder in self.group_decoders]
        return sum(min(0, n_checks) for n_checks in counts) or sum(counts)

    @property
    def weights(self) -> Floats | UInt64Array:
        """The decoding weights, shape (missing, arrived): missing results = weights @ arrived results.

        An entry is zero if its two results belong to different groups.
        """
        return self._assemble_blocks([decoder.weights for decoder in self.group_decoders])

    @property
    def weight_magnitudes(self) -> Floats:
        """The factors by which errors of arrived results affect decoded results, shape (missing, arrived).

        Entry (i, j) is the absolute change of missing result i if arrived result j has an error of 1.
        """
        return self._assemble_blocks([decoder.weight_magnitudes for decoder in self.group_decoders])

    def _assemble_blocks(self, group_matrices: list[Array]) -> Array:
        """Assemble one matrix per group into one matrix of shape (missing, arrived).

        Entries whose row and column belong to different groups are zero.
        """
        shape = len(self.missing_indices), len(self.arrived_indices)
        matrix = np.zeros(shape, group_matrices[0].dtype)
        for group_matrix, positions in zip(group_matrices, self.group_positions):
            matrix[np.ix_(positions.missing, positions.arrived)] = group_matrix
        return matrix

    def get_weight_magnitudes_of_target(self, missing_position: int) -> Floats:
        """Return row `missing_position` of `weight_magnitudes`, shape (arrived,).

        It contains the absolute change of one missing result per unit error in each arrived result.
        """
        row = np.zeros(len(self.arrived_indices))
        for decoder, positions in self._group_pairs:
            position_in_group = int(np.searchsorted(positions.missing, missing_position))
            if missing_position in positions.missing[position_in_group : position_in_group + 1]:
                row[positions.arrived] = decoder.get_weight_magnitudes_of_target(position_in_group)
        return row

    @property
    def max_weight_magnitudes(self) -> Floats:
        """The maximum of each column of `weight_magnitudes`, shape (arrived,).

        Entry j is the largest change of any missing result if arrived result j has an error of 1.
        """
        maxima = np.empty(len(self.arrived_indices))
        for decoder, positions in self._group_pairs:
            maxima[positions.arrived] = decoder.max_weight_magnitudes
        return maxima

    @property
    def max_weight_sum(self) -> float:
        """The maximum row sum of `weight_magnitudes`.

        No missing result changes by more than this if every arrived result has an error of at most 1.
        """
        return max(decoder.max_weight_sum for decoder in self.group_decoders)

    @property
    def check_matrix(self) -> Floats | UInt64Array:
        """A matrix of parity checks that verify the results, shape (checks, arrived).

        It contains the checks of all groups, each of which involves only results of one group.
        """
        matrix = np.zeros(
            (sum(len(block.entries) for block in self.check_blocks), len(self.arrived_indices)),
            self.check_blocks[0].entries.dtype,
        )
        for rows, columns, entries in self.check_blocks:
            matrix[rows, columns] = entries
        return matrix

    @cached_property
    def check_blocks(self) -> tuple[MatrixBlock, ...]:
        """The nonzero blocks of `check_matrix`, one for each group.

        Each block contains the parity checks of one group, with their rows and columns in `check_matrix`.
        """
        check_blocks, n_checks = [], 0
        for decoder, positions in self._group_pairs:
            checks = decoder.check_matrix
            rows = slice(n_checks, n_checks + len(checks))
            check_blocks.append(MatrixBlock(rows, positions.arrived, checks))
            n_checks = rows.stop
        return tuple(check_blocks)

    def _compute_weight_masks(self) -> WeightMasks:
        used_mask = np.zeros(len(self.arrived_indices), bool)
        recombined_mask, blocks = np.zeros(len(self.missing_indices), bool), []
        for decoder, positions in self._group_pairs:
            used_in_group, recombined_in_group, [(_, _, invertible)] = decoder.weight_masks
            used_mask[positions.arrived] = used_in_group
            recombined_mask[positions.missing] = recombined_in_group
            blocks.append(MatrixBlock(positions.missing, positions.arrived, invertible))
        return WeightMasks(used_mask, recombined_mask, tuple(blocks))

    @cached_property
    def amplification(self) -> float:
        """The largest factor by which decoding multiplies errors, over all groups."""
        return max(decoder.amplification for decoder in self.group_decoders)

    def decode(self, received: ReceivedBlocks, dtype: DType) -> Array:
        """Decode the missing results and return them as an array (missing, b).

        Here b is the number of entries of a result. Each group is decoded separately.
        """
        out = np.empty((len(self.missing_indices), next(iter(received.values())).size), dtype)
        for decoder, positions in self._group_pairs:
            blocks_in_group = decoder.arrived_indices.tolist()
            arrived_blocks = positions.blocks[decoder.arrived_indices].tolist()
            group_received = {
                index: received[block_index] for index, block_index in zip(blocks_in_group, arrived_blocks)
            }
            out[positions.missing] = decoder.decode(group_received, dtype)
        return out
