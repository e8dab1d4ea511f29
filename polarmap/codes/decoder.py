"""Decoder: when the arrivals of one codeword determine what is wanted."""

from __future__ import annotations

from math import inf, isinf

import numpy as np

from polarmap.codes.algebra import Recovery
from polarmap.codes.checks import is_number
from polarmap.codes.dtypes import Indices, is_integer
from polarmap.codes.linear import LinearCode
from polarmap.errors import CodeError

# A look at thousands of real equations takes long: no more looks than this as n blocks arrive,
# so that the decision comes at most n / LOOKS arrivals late.
LOOKS = 1000


class Decoder:
    """Collects arrivals of one codeword and says when its data blocks are determined.

    Parameters
    ----------
    code : PolarCode, or any code that has its `recovery`
    exact : bool
        Decode integers modulo 2^64 rather than real numbers.
    max_amplification : float
        Wait for more arrivals while a recovered block would multiply the relative error of the
        received ones by more than this. All n arrivals are accepted at any amplification.

    Examples
    --------
    >>> from polarmap.codes.polar import PolarCode
    >>> decoder = Decoder(PolarCode(4, 2))
    >>> [decoder.add(i) for i in (3, 3, 0)]
    [False, False, True]
    >>> decoder.missing.tolist()
    [1]
    """

    def __init__(self, code: LinearCode, *, exact: bool = False, max_amplification: float = inf) -> None:
        if not is_number(max_amplification) or not isinstance(code, LinearCode):
            raise CodeError(f"a Decoder takes a code and a number, not {code!r} and {max_amplification!r}")
        self.code, self.exact, self.max_amplification = code, exact, max_amplification
        self.arrived = np.zeros(code.n, dtype=bool)
        self.count = 0
        self.is_determined = self.ready = False
        self._recovery: Recovery | None = None
        self._former: Recovery | None = None
        self._missing: Indices | None = None
        self._wanted_missing, self._systematic = code.wanted, len(code.systematic)
        self._look_again_at = code.recovery_threshold
        self._progress, self._is_through = code.progress(exact), False
        self._untold: list[int] = []

    def add(self, index: int) -> bool:
        """Note the arrival of block `index` (once); True when the data blocks are determined."""
        if not is_integer(index) or not 0 <= index < self.code.n:
            raise CodeError(f"positions run from 0 to {self.code.n - 1}, not {index!r}")
        if self.arrived[index]:
            return self.ready
        self.arrived[index] = True
        self.count += 1
        self._former, self._recovery, self._missing = self._recovery or self._former, None, None
        self._wanted_missing -= index < self._systematic
        self._untold.append(int(index))
        self.is_determined = self._has_enough()
        self.ready = self.ready or (self.is_determined and self._is_accurate())
        return self.ready

    def accept(self) -> bool:
        """Take what has arrived at any accuracy, since nothing more can; whether it determines the data."""
        self.max_amplification = inf
        self.ready = self.is_determined
        return self.ready

    @property
    def is_inaccurate(self) -> bool:
        """Whether the data blocks are determined, but not as accurately as is asked for."""
        return self.is_determined and not self.ready

    @property
    def missing(self) -> Indices:
        """The wanted results that have not arrived, ascending."""
        if self._missing is None:
            missing = np.ones(self.code.wanted, bool)
            missing[: self._systematic] = ~self.arrived[: self._systematic]
            self._missing = np.flatnonzero(missing)
            self._missing.flags.writeable = False
        return self._missing

    @property
    def surplus(self) -> int:
        """Equations left over for verification."""
        return max(0, self.recovery.surplus)

    @property
    def recovery(self) -> Recovery:
        """How to recover the missing results from the arrived ones."""
        if self._recovery is None:
            self._recovery = self.code.recovery(self.arrived.copy(), self.exact)
            if self._former is not None:
                self._recovery.follow(self._former)
                self._former = None
        return self._recovery

    @property
    def amplification(self) -> float:
        """The largest of a recovered block; 0 if none or exact, inf while undetermined."""
        return self.recovery.amplification if self.is_determined else np.inf

    def _has_enough(self) -> bool:
        """Whether what has arrived determines the data blocks, at whatever accuracy."""
        if self.ready or self._wanted_missing == 0:
            return True
        if self.count < self._look_again_at:
            return False
        if self._progress is not None:
            while self._untold:
                self._is_through = self._progress(self._untold.pop())
            return self._is_through
        deficit = self.recovery.deficit
        if deficit and not self.exact:
            deficit = max(deficit, self.code.n // LOOKS)
        # One arrival lowers the deficit by at most one: no need to look before that many.
        self._look_again_at = self.count + deficit
        return deficit == 0

    def _is_accurate(self) -> bool:
        if isinf(self.max_amplification) or self._wanted_missing == 0 or self.count == self.code.n:
            return True
        return self.recovery.amplification <= self.max_amplification
