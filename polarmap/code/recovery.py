"""Decoder: which arrivals determine the data, and how; bits first, blocks last."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import inf, isinf
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from polarmap.code import modular, sequential, tiled
from polarmap.code.arguments import is_number
from polarmap.code.base import Code
from polarmap.code.design import Floats, Indices, power_of_two_above
from polarmap.code.dtypes import DType, is_exact, is_integer, real_dtype, working_dtype
from polarmap.errors import CodeError

if TYPE_CHECKING:
    from polarmap.code.polar import PolarCode

Array = npt.NDArray[Any]
Rows = Mapping[int, Array]

# A parity system with a relative singular value below this is taken as singular: its solution
# would have no correct digit left in float32, three in float64.
SINGULAR = 1e-12
# A look at thousands of real equations takes long: no more looks than this as n blocks arrive,
# so that the decision comes at most n / LOOKS arrivals late.
LOOKS = 1000
MOST_CHECKS = 8  # left-over equations evaluated; more would cost time and tell nothing new


class Decoder:
    """Collects arrivals of one codeword and says when its data blocks are determined.

    Parameters
    ----------
    code : PolarCode, or any code that has its `plan`
    exact : bool
        Decode integers modulo 2^64 rather than real numbers.
    max_amplification : float
        Wait for more arrivals while a recovered block would multiply the relative error of the
        received ones by more than this. All n arrivals are accepted at any amplification.

    Examples
    --------
    >>> from polarmap.code.polar import PolarCode
    >>> decoder = Decoder(PolarCode(4, 2))
    >>> [decoder.add(i) for i in (3, 3, 0)]
    [False, False, True]
    >>> decoder.missing.tolist()
    [1]
    """

    def __init__(self, code: Code, *, exact: bool = False, max_amplification: float = inf) -> None:
        if not hasattr(code, "plan") or not is_number(max_amplification):
            raise CodeError(f"a Decoder takes a code and a number, not {code!r} and {max_amplification!r}")
        self.code, self.exact, self.max_amplification = code, exact, max_amplification
        self.arrived = np.zeros(code.n, dtype=bool)
        self.count = 0
        self.ready = False
        self._plan: DecodingPlan | None = None
        self._data_missing = code.k
        self._look_again_at = code.recovery_threshold
        if code.decoder == "sequential":
            self._polar = cast("PolarCode", code)
            self._progress = sequential.Progress(_frozen_mask(self._polar))
            self._determined = False

    def add(self, index: int) -> bool:
        """Note the arrival of block `index` (once); True when the data blocks are determined."""
        if not is_integer(index) or not 0 <= index < self.code.n:
            raise CodeError(f"positions run from 0 to {self.code.n - 1}, not {index!r}")
        if self.arrived[index]:
            return self.ready
        self.arrived[index] = True
        self.count += 1
        self._plan = None
        self._data_missing -= index < len(self.code.systematic)
        if self.code.decoder == "sequential":
            self._determined |= self._progress.arrive(int(self._polar.order[index]))
        self.ready = self.ready or (self._is_determined() and self._is_accurate())
        return self.ready

    def accept(self) -> bool:
        """Take what has arrived at any accuracy, since nothing more can; whether it determines the data."""
        self.max_amplification = inf
        self.ready = self._is_determined()
        return self.ready

    @property
    def is_inaccurate(self) -> bool:
        """Whether the data blocks are determined, but not as accurately as is asked for."""
        return not self.ready and self._is_determined()

    @property
    def missing(self) -> Indices:
        """The data blocks that have not arrived, ascending."""
        if not len(self.code.systematic):
            return np.arange(self.code.k)
        return np.flatnonzero(~self.arrived[: self.code.k])

    @property
    def surplus(self) -> int:
        """Equations left over for verification."""
        return max(0, self.plan.surplus)

    @property
    def plan(self) -> DecodingPlan:
        """How to recover the missing data blocks from the arrived ones."""
        if self._plan is None:
            self._plan = self.code.plan(self.arrived.copy(), self.exact)
        return self._plan

    @property
    def amplification(self) -> float:
        """The largest of a recovered block; 0 if none or exact, inf while undetermined."""
        return self.plan.amplification if self._is_determined() else np.inf

    def _is_determined(self) -> bool:
        if self.ready or self._data_missing == 0:
            return True
        if self.code.decoder == "sequential":
            return self._determined
        if self.count < self._look_again_at:
            return False
        deficit = self.plan.deficit
        if deficit and not self.exact:
            deficit = max(deficit, self.code.n // LOOKS)
        # One arrival lowers the deficit by at most one: no need to look before that many.
        self._look_again_at = self.count + deficit
        return deficit == 0

    def _is_accurate(self) -> bool:
        if isinf(self.max_amplification) or self.count == self.code.n:
            return True
        return self.plan.amplification <= self.max_amplification


class DecodingPlan:
    """How to recover the missing data blocks of one arrival pattern. Depends on bits only.

    Attributes
    ----------
    missing : Indices
        The data blocks to recover, ascending.
    parity : Indices
        The parity blocks that arrived, as rows of P.
    known, arrived : Indices
        The data blocks, and all blocks, that arrived.
    """

    def __init__(self, code: PolarCode, arrived: npt.NDArray[np.bool_], exact: bool) -> None:
        self.code, self.exact = code, exact
        self._is_sequential = code.decoder == "sequential"
        self.arrived = np.flatnonzero(arrived)
        self.missing = np.flatnonzero(~arrived[: code.k])
        self.known = np.flatnonzero(arrived[: code.k])
        self.parity = np.flatnonzero(arrived[code.k :])

    @cached_property
    def system(self) -> Array:
        """P restricted to arrived parity (rows) and missing data (columns)."""
        return self.code.coefficients[np.ix_(self.parity, self.missing)]

    @cached_property
    def pivots(self) -> Indices:
        """Rows of `system` that determine the missing integers; fewer than those if too few do."""
        return np.array(modular.independent_rows(self.system), dtype=np.intp)

    @cached_property
    def deficit(self) -> int:
        """How many arrivals are still needed at the least; 0 when the data are determined."""
        unknowns = len(self.missing)
        if not unknowns:
            return 0
        if self.exact:
            return unknowns - len(self.pivots)
        if len(self.parity) < unknowns:
            return unknowns - len(self.parity)
        return 0 if np.isfinite(self._solver).all() else 1

    @property
    def surplus(self) -> int:
        """Equations left over once the missing blocks are determined; negative before."""
        return len(self.parity) - len(self.missing)

    @cached_property
    def weights(self) -> Floats:
        """Recovered = weights @ received, (missing, arrived): the least-squares decoder."""
        if self._is_sequential:
            return self._sequential_weights()
        known = self.code.coefficients[np.ix_(self.parity, self.known)]
        return np.concatenate([-(self._solver @ known), self._solver], axis=1)

    @cached_property
    def amplification(self) -> float:
        """The largest 2-norm of a row of `weights`; 0 for an exact plan."""
        if self.exact or not len(self.missing):
            return 0.0
        if len(self.parity) < len(self.missing):
            return np.inf
        norms = np.linalg.norm(self.weights, axis=1)
        return float(norms.max()) if np.isfinite(norms).all() else np.inf

    def equations(self, most: int) -> Floats:
        """Up to `most` equations on the arrived blocks, (s, arrived): orthonormal on the parity blocks."""
        if len(self.parity) <= len(self.missing):
            return np.empty((0, len(self.arrived)))
        null = left_null(self.system.astype(np.float64), most)
        known = self.code.coefficients[np.ix_(self.parity, self.known)]
        return np.concatenate([-(null.T @ known), null.T], axis=1)

    @property
    def rounds(self) -> bool:
        """Whether integers are decoded as real numbers and rounded."""
        return not self.exact

    @cached_property
    def checks(self) -> Floats:
        """The left-over equations that are evaluated."""
        return self.equations(MOST_CHECKS)

    @cached_property
    def _solver(self) -> Floats:
        return left_inverse(self.system.astype(np.float64, copy=False))

    def checkable(self, rows: Rows) -> Rows:
        """What satisfies the left-over equations: the blocks that arrived."""
        return rows

    def recover(self, rows: Rows, dtype: DType) -> Array:
        """The missing data blocks (len(missing), b) from the flat blocks that arrived.

        `rows` maps positions to arrays (b,) and must hold every arrived position. Integers of an
        exact plan come back exactly, modulo 2^bits; integers of another are rounded.
        """
        width = next(iter(rows.values())).size
        if dtype.kind == "c":
            real = real_dtype(dtype)
            halves = {
                index: np.ascontiguousarray(rows[index], dtype).view(real) for index in self.arrived.tolist()
            }
            return self.recover(halves, real).view(dtype)
        out = np.empty((len(self.missing), width), dtype)
        if not len(self.missing) or not width:
            return out
        if self._is_sequential:
            self._recover_sequentially(rows, out)
        elif is_exact(dtype) and self.exact:
            self._recover_integers(rows, out)
        else:
            self._recover_floats(rows, out)
        return out

    def _recover_floats(self, rows: Rows, out: Array) -> None:
        received = [rows[int(index)] for index in self.arrived]
        if is_exact(out.dtype):
            rounded = np.empty(out.shape)
            tiled.product(self.weights, received, rounded)
            out[:] = np.rint(rounded)
        else:
            tiled.product(self.weights, received, out, tiled.compiled_loops(received, out.dtype))

    def _recover_integers(self, rows: Rows, out: Array) -> None:
        """Syndrome, then the inverse of the pivot rows, both modulo 2^64."""
        parity = self.parity[self.pivots]
        solver = modular.inverse(self.system[self.pivots])
        coefficients = self.code.coefficients[np.ix_(parity, self.known)]
        known = [rows[int(index)] for index in self.known]
        received = [rows[int(index) + self.code.k] for index in parity]
        for columns in tiled.tiles(out.shape[1], len(self.arrived), 8):
            syndrome = tiled.gather(received, columns, np.int64).view(np.uint64)
            if known:
                syndrome -= modular.matmul(coefficients, tiled.gather(known, columns, np.int64))
            out[:, columns] = modular.matmul(solver, syndrome).astype(out.dtype)

    def _recover_sequentially(self, rows: Rows, out: Array) -> None:
        exact = is_exact(out.dtype)
        working = np.dtype(np.int64) if exact else working_dtype(out.dtype)
        received = [rows[int(index)] for index in self.arrived]
        steps, leaves = self._schedule
        length = power_of_two_above(self.code.n)
        for columns in tiled.tiles(out.shape[1], 2 * length, working.itemsize):
            table = np.zeros((2 * length, columns.stop - columns.start), working)
            table[leaves] = tiled.gather(received, columns, working)
            sequential.replay(steps, table)
            out[:, columns] = table[self.code.order[self.missing]].astype(out.dtype)

    @cached_property
    def _schedule(self) -> tuple[list[sequential.Step], Indices]:
        leaves = self.code.order[self.arrived]
        known = np.zeros(power_of_two_above(self.code.n), bool)
        known[leaves] = True
        return sequential.schedule(_frozen_mask(self.code), known), leaves

    def _sequential_weights(self) -> Floats:
        """The schedule replayed on the identity."""
        out = np.empty((len(self.missing), len(self.arrived)))
        unit = np.eye(len(self.arrived))
        self._recover_sequentially(dict(zip(self.arrived.tolist(), unit, strict=True)), out)
        return out


def left_inverse(matrix: Floats) -> Floats:
    """The pseudo-inverse of a matrix with full column rank; all inf when it has not.

    >>> left_inverse(np.array([[2.0], [0.0]])).round(3) + 0.0
    array([[0.5, 0. ]])
    """
    rows, columns = matrix.shape
    singular = np.full((columns, rows), np.inf)
    if rows < columns:
        return singular
    q, r = np.linalg.qr(matrix)
    diagonal = np.abs(np.diag(r))
    if diagonal.min() <= SINGULAR * diagonal.max():
        return singular
    return np.asarray(np.linalg.solve(r, q.T))


def left_null(matrix: Floats, most: int) -> Floats:
    """Orthonormal columns z with z' matrix = 0; if there are more than `most`, that many mixtures.

    >>> abs(left_null(np.array([[1.0], [1.0]]), 8)).round(3).tolist()
    [[0.707], [0.707]]
    """
    full, _ = np.linalg.qr(matrix, mode="complete")
    null = full[:, matrix.shape[1] :]
    if null.shape[1] > most:
        waves = np.cos(np.outer(np.arange(1, null.shape[1] + 1), np.arange(1, most + 1)) * 0.7)
        null, _ = np.linalg.qr(null @ waves)
    return np.asarray(null)


def worst_amplification(coefficients: Floats, arrived: Indices) -> float:
    """The largest amplification when exactly the blocks `arrived` have, for a code [P, -I]."""
    k = coefficients.shape[1]
    known = arrived[arrived < k]
    missing = np.setdiff1d(np.arange(k), known)
    if not len(missing):
        return 0.0
    rows = arrived[arrived >= k] - k
    solver = left_inverse(coefficients[np.ix_(rows, missing)])
    if not np.isfinite(solver).all():
        return np.inf
    weights = np.concatenate([solver, solver @ coefficients[np.ix_(rows, known)]], axis=1)
    return float(np.linalg.norm(weights, axis=1).max())


def _frozen_mask(code: PolarCode) -> npt.NDArray[np.bool_]:
    """Frozen and punctured inputs of the arikan butterfly."""
    length = power_of_two_above(code.n)
    mask = np.zeros(length, bool)
    mask[code.frozen] = True
    mask[: length - code.n] = True
    return mask
