"""Recovery for thousands of blocks on the rotation butterfly, of whose P only the missing columns are formed.

    syndrome = parity - P known = P[:, missing] missing

The butterfly gives P times anything, and its transpose anything times P, in n log n operations a column.
"""

from __future__ import annotations

import numpy as np

from polarmap.code import tiled
from polarmap.code.algebra import Results
from polarmap.code.dtypes import Array, is_exact, working_dtype
from polarmap.code.linear import SystematicCode
from polarmap.code.recovery import ButterflyRecovery

SYNDROME_BYTES = 64 << 20  # of parity computed at a time


class SyndromeRecovery(ButterflyRecovery):
    """Missing blocks from the syndrome of what arrived, by least squares."""

    code: SystematicCode

    def fill(self, rows: Results, out: Array) -> None:
        """Put the missing results into `out`: the parity of the known ones, what it lacks, the solution."""
        working = np.dtype(np.float64) if is_exact(out.dtype) else working_dtype(out.dtype)
        solver = self._solver.astype(working, copy=False)
        step = max(64, SYNDROME_BYTES // ((self.code.n - self.code.k) * working.itemsize))
        for start in range(0, out.shape[1], step):
            columns = slice(start, min(out.shape[1], start + step))
            with tiled.ignoring_inf():
                found = tiled.matmul(solver, self._syndrome(rows, columns, working))
            out[:, columns] = np.rint(found) if is_exact(out.dtype) else found

    def _syndrome(self, rows: Results, columns: slice, working: np.dtype[np.floating]) -> Array:
        """What the parity that arrived has beyond that of the known data, missing blocks taken as zero."""
        zero = np.zeros(columns.stop - columns.start, working)
        data = [zero] * self.code.k
        for index in self.known.tolist():
            data[index] = rows[index][columns].astype(working, copy=False)
        received = [rows[int(index) + self.code.k] for index in self.parity]
        syndrome = tiled.gather(received, columns, working)
        syndrome -= self.code.parity(data)[self.parity]
        return syndrome
