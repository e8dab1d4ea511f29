"""Track which results of a code have arrived, and tell when the missing ones can be decoded.

    tracker.add(3) -> False      too few results: UNDECODABLE
    tracker.add(0) -> False      enough, but inaccurate: ILL_CONDITIONED
    tracker.add(2) -> True       DECODABLE: tracker.decoder recovers the missing results

A map calls `ArrivalTracker.add` for each result that arrives, and decodes as soon as it returns True.
"""

from __future__ import annotations

from enum import Enum
from math import inf, isinf

import numpy as np

from polarmap.codes.base import ErasureDecoder
from polarmap.codes.linear_code import LinearCode
from polarmap.dtypes import Indices, is_integer
from polarmap.errors import CodeError
from polarmap.validation import is_real_number

# The rank of a matrix tells whether the arrived results can be decoded. Compute it at most this many times
# while the n results arrive, because it is slow for thousands of blocks. As a consequence, the map may wait
# for up to n / MAX_RANK_CHECKS more results than necessary.
MAX_RANK_CHECKS = 1000


class DecodingState(Enum):
    """The possible answers to whether the results that have arrived suffice to decode the missing ones."""

    UNDECODABLE = "undecodable"  # Too few results have arrived.
    ILL_CONDITIONED = "ill-conditioned"  # Decoding is possible, but would multiply errors too much.
    DECODABLE = "decodable"


class ArrivalTracker:
    """Tracks the results that have arrived and determines when the missing ones can be decoded.

    Parameters
    ----------
    code : LinearCode
        Code that the blocks were encoded with, for example a `PolarCode`.
    modular : bool
        Decode integers modulo 2^64 instead of real numbers.
    max_amplification : float
        Wait for more arrivals while decoding would multiply relative errors by more than this factor. Once
        all n blocks have arrived, any amplification is accepted.

    Attributes
    ----------
    state : DecodingState
        Whether the missing results can be decoded accurately enough.
    n_arrived : int
        Number of distinct blocks that have arrived.

    Examples
    --------
    >>> from polarmap.codes.polar import PolarCode
    >>> tracker = ArrivalTracker(PolarCode(4, 2))
    >>> [tracker.add(i) for i in (3, 3, 0)]
    [False, False, True]
    >>> tracker.state, tracker.missing_indices.tolist()
    (<DecodingState.DECODABLE: 'decodable'>, [1])
    """

    def __init__(self, code: LinearCode, *, modular: bool = False, max_amplification: float = inf) -> None:
        if not is_real_number(max_amplification) or not isinstance(code, LinearCode):
            raise CodeError(
                "code must be a LinearCode and max_amplification a number, "
                f"not {code!r} and {max_amplification!r}"
            )
        self.code, self.modular, self.max_amplification = code, modular, max_amplification
        self.arrived_mask = np.zeros(code.n, dtype=bool)
        self.n_arrived = 0
        self.state = DecodingState.UNDECODABLE
        self._decoder: ErasureDecoder | None = None
        self._previous_decoder: ErasureDecoder | None = None
        self._missing_indices: Indices | None = None
        self._n_missing_targets, self._n_systematic = code.n_targets, len(code.systematic_indices)
        self._next_rank_check = code.recovery_threshold
        self._decodability_tracker = code.make_decodability_tracker(modular)
        self._is_tracked_decodable = False
        self._untracked_arrivals: list[int] = []

    def add(self, block_index: int) -> bool:
        """Record the arrival of a result and return whether all missing results can now be decoded.

        Parameters
        ----------
        block_index : int
            Index of the coded block, between 0 and n - 1. Repeated arrivals are ignored.

        Raises
        ------
        CodeError
            If `block_index` is not an integer or is out of range.
        """
        if not is_integer(block_index) or not 0 <= block_index < self.code.n:
            raise CodeError(
                f"a block index must be an integer from 0 to {self.code.n - 1}, not {block_index!r}"
            )
        if self.arrived_mask[block_index]:
            return self.state is DecodingState.DECODABLE
        self.arrived_mask[block_index] = True
        self.n_arrived += 1
        self._previous_decoder = self._decoder or self._previous_decoder
        self._decoder = self._missing_indices = None
        self._n_missing_targets -= block_index < self._n_systematic
        self._untracked_arrivals.append(int(block_index))
        if self.state is not DecodingState.DECODABLE and self._check_decodability():
            is_accurate = self._is_well_conditioned()
            self.state = DecodingState.DECODABLE if is_accurate else DecodingState.ILL_CONDITIONED
        return self.state is DecodingState.DECODABLE

    def accept_ill_conditioned(self) -> bool:
        """Accept decoding that amplifies errors, however much, and return whether decoding is possible.

        Call this method when no further result can arrive, so that waiting cannot improve the accuracy.
        """
        self.max_amplification = inf
        if self.state is DecodingState.ILL_CONDITIONED:
            self.state = DecodingState.DECODABLE
        return self.state is DecodingState.DECODABLE

    @property
    def is_ready(self) -> bool:
        """True if all missing results can be decoded accurately enough."""
        return self.state is DecodingState.DECODABLE

    @property
    def missing_indices(self) -> Indices:
        """The indices of the targets (wanted results) that have not arrived yet, in ascending order."""
        if self._missing_indices is None:
            missing_mask = np.ones(self.code.n_targets, bool)
            missing_mask[: self._n_systematic] = ~self.arrived_mask[: self._n_systematic]
            self._missing_indices = np.flatnonzero(missing_mask)
            self._missing_indices.flags.writeable = False
        return self._missing_indices

    @property
    def n_redundant_checks(self) -> int:
        """The number of parity checks available to verify the arrived results."""
        return max(0, self.decoder.n_redundant_checks)

    @property
    def decoder(self) -> ErasureDecoder:
        """The decoder for the results that have arrived so far."""
        if self._decoder is None:
            self._decoder = self.code.make_decoder(self.arrived_mask.copy(), self.modular)
            if self._previous_decoder is not None:
                self._decoder.reuse_computations_of(self._previous_decoder)
                self._previous_decoder = None
        return self._decoder

    @property
    def amplification(self) -> float:
        """The largest factor by which decoding multiplies errors in the results.

        The factor is 0 if decoding is exact, and inf while the missing results cannot be decoded.
        """
        return np.inf if self.state is DecodingState.UNDECODABLE else self.decoder.amplification

    def _check_decodability(self) -> bool:
        """Return whether the arrived results determine the missing ones, regardless of the accuracy."""
        if self._n_missing_targets == 0:
            return True
        if self.n_arrived < self._next_rank_check:
            return False
        if self._decodability_tracker is not None:
            while self._untracked_arrivals:
                self._is_tracked_decodable = self._decodability_tracker(self._untracked_arrivals.pop())
            return self._is_tracked_decodable
        rank_deficit = self.decoder.rank_deficit
        if rank_deficit and not self.modular:
            rank_deficit = max(rank_deficit, self.code.n // MAX_RANK_CHECKS)
        # Each arrival lowers the rank deficit by at most one. Before this many results have arrived, another
        # check cannot succeed.
        self._next_rank_check = self.n_arrived + rank_deficit
        return rank_deficit == 0

    def _is_well_conditioned(self) -> bool:
        if isinf(self.max_amplification) or self._n_missing_targets == 0 or self.n_arrived == self.code.n:
            return True
        return self.decoder.amplification <= self.max_amplification
