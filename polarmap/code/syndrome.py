"""Recovery for thousands of blocks on the rotation butterfly, of whose P only the missing columns are formed.

    syndrome = parity - P known = P[:, missing] missing

The butterfly gives P times anything, and its transpose anything times P, in n log n operations a column.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from polarmap.code import tiled
from polarmap.code.algebra import Results
from polarmap.code.design import Rotations
from polarmap.code.dtypes import Array, Floats, Mask, is_exact, working_dtype
from polarmap.code.recovery import Parity, SystematicRecovery
from polarmap.code.rotations import rotation_coefficients, transposed_coefficients

SYNDROME_BYTES = 64 << 20  # of parity computed at a time


class SyndromeRecovery(SystematicRecovery):
    """Missing blocks from the syndrome of what arrived, by least squares.

    Parameters
    ----------
    code : Parity
        [I; P] with P of `plan`.
    plan : Rotations
    arrived : boolean array (n,)
    """

    def __init__(self, code: Parity, plan: Rotations, arrived: Mask) -> None:
        super().__init__(code, arrived)
        self._plan = plan

    @cached_property
    def system(self) -> Array:
        """P restricted to arrived parity (rows) and missing data (columns)."""
        return rotation_coefficients(self._plan, self.code.k, self.missing)[self.parity]

    def through_known(self, combinations: Floats) -> Floats:
        """Combinations (rows) of the arrived parity blocks, as they are made of known data."""
        scattered = np.zeros((len(combinations), len(self._plan.rows)))
        scattered[:, self.parity] = combinations
        return transposed_coefficients(self._plan, self.code.k, scattered)[:, self.known]

    def fill(self, rows: Results, out: Array) -> None:
        """Put the missing results into `out`: the parity of the known ones, what it lacks, the solution."""
        working = np.dtype(np.float64) if is_exact(out.dtype) else working_dtype(out.dtype)
        solver = self._solver.astype(working, copy=False)
        step = max(64, SYNDROME_BYTES // (len(self._plan.rows) * working.itemsize))
        for start in range(0, out.shape[1], step):
            columns = slice(start, min(out.shape[1], start + step))
            found = tiled.matmul(solver, self._syndrome(rows, columns, working))
            out[:, columns] = np.rint(found) if is_exact(out.dtype) else found

    def _syndrome(self, rows: Results, columns: slice, working: np.dtype[np.floating]) -> Array:
        """What the parity that arrived has beyond that of the known data, missing blocks taken as zero."""
        zero = np.zeros(columns.stop - columns.start, working)
        data = [zero] * self.code.k
        for index in self.known.tolist():
            data[index] = rows[index][columns].astype(working, copy=False)
        parity = np.empty((len(self._plan.rows), len(zero)), working)
        tiled.rotation_parity(self._plan, data, parity, tiled.compiled_loops(data, working))
        received = [rows[int(index) + self.code.k] for index in self.parity]
        syndrome = tiled.gather(received, columns, working)
        with tiled.ignoring_inf():
            syndrome -= parity[self.parity]
        return syndrome
