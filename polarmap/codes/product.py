"""ProductCode: blocks on a grid, every column a codeword of one code, every row of another.

    x = G_A X G_B',   so G = kron(G_A, G_B) with its unit rows first,   T = I

for the data blocks X on a k_A x k_B grid and G_A = [I; P_A], G_B = [I; P_B]: what A_i B_j gives for
coded A_i and B_j. C_A x = 0 for every column of x and C_B x' = 0 for every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from polarmap.codes import tiled
from polarmap.codes.algebra import Recovery, Results
from polarmap.codes.dtypes import Array, DType, Floats, Indices, Mask, Words, is_exact, working_dtype
from polarmap.codes.linear import SystematicCode
from polarmap.codes.modular import ModularRecovery, matmul
from polarmap.codes.polar import PolarCode
from polarmap.codes.recovery import RealRecovery, SystematicRecovery
from polarmap.errors import CodeError

Places = set[int]

MAX_TASKS = 4096  # the joint equations of more take too long to solve
# Equations times unknowns squared up to which the joint equations are solved: about 0.2 s.
JOINT_FLOPS = 3e8
# Recovered times received blocks up to which they are combined at once: more accurate than line by
# line, and slower from about here on.
JOINT_WEIGHTS = 1 << 18


class ProductCode(SystematicCode):
    """The product of two polar codes: n = n_A n_B blocks x_ij of which k = k_A k_B are data.

    Data comes first, row by row, then the other blocks, row by row.

    Parameters
    ----------
    left : PolarCode
        Of the columns of the grid (of A, cut by rows).
    right : PolarCode
        Of its rows (of B, cut by columns).

    Raises
    ------
    CodeError
        More than 4096 blocks; a sequential decoder; kernels that differ.

    Examples
    --------
    >>> code = ProductCode(PolarCode(3, 2), PolarCode(4, 3))
    >>> code.n, code.k
    (12, 6)
    >>> code.cells[:7].tolist()
    [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [0, 3]]
    """

    assumption = "a product of two blocks"
    is_mds = False

    def __init__(self, left: PolarCode, right: PolarCode) -> None:
        self.left, self.right = left, right
        self.n, self.k = left.n * right.n, left.k * right.k
        if self.n > MAX_TASKS:
            raise CodeError(
                f"a grid of {left.n} x {right.n} is more than {MAX_TASKS} tasks: use fewer workers"
            )
        if "sequential" in (left.decoder, right.decoder):
            raise CodeError("a grid is decoded by decoder='optimal' only")
        if left.kernel != right.kernel:
            raise CodeError(f"both codes of a grid need one kernel, not {left.kernel!r} and {right.kernel!r}")
        self.kernel = left.kernel
        self.name = f"{self.kernel} grid {self.left.n} x {self.right.n}"
        self.carries_integers = self.left.carries_integers

    def __repr__(self) -> str:
        return f"ProductCode({self.left!r}, {self.right!r})"

    @cached_property
    def cells(self) -> Indices:
        """Row and column of every block on the grid, (n, 2)."""
        rows, columns = np.divmod(np.arange(self.n), self.right.n)
        is_parity = (rows >= self.left.k) | (columns >= self.right.k)
        order = np.argsort(is_parity, kind="stable")
        return np.stack([rows[order], columns[order]], axis=1)

    @cached_property
    def places(self) -> Indices:
        """The number of the block in every cell, (n_A, n_B); the inverse of `cells`."""
        numbers = np.empty((self.left.n, self.right.n), np.intp)
        numbers[self.cells[:, 0], self.cells[:, 1]] = np.arange(self.n)
        return numbers

    @cached_property
    def coefficients(self) -> Array:
        """P, shape (n - k, k): parity blocks from data blocks."""
        rows, columns = self.cells[self.k :].T
        product = np.einsum("pa,pb->pab", self.left.generator[rows], self.right.generator[columns])
        return np.asarray(product.reshape(len(rows), -1))

    @property
    def norm_inf(self) -> int:
        """The largest sum of absolute coefficients of a block."""
        return self.left.norm_inf * self.right.norm_inf

    def recovery(self, arrived: Mask, exact: bool) -> Recovery:
        """How to recover the missing data blocks when the blocks of the mask `arrived` are there."""
        return ProductRecovery(self, arrived, exact)


class ProductRecovery(RealRecovery):
    """How to recover the missing data blocks of one arrival pattern on a grid.

    A row with k_B independent blocks known is known as a whole, a column with k_A too, and so on in
    turns. Where that stalls, the equations of all rows and columns together may still have one
    solution; they are looked at if there are enough of them and the system is not too large.

    Recovery is by least squares, all at once, where that is cheap, else line by line; of integers
    line by line wherever that gets through.
    """

    code: ProductCode

    def __init__(self, code: ProductCode, arrived: Mask, exact: bool) -> None:
        super().__init__(code, arrived)
        self.exact = exact
        self.joint = ModularRecovery(code, arrived) if exact else SystematicRecovery(code, arrived)

    @cached_property
    def deficit(self) -> int:
        """0 when the data are determined, else how many arrivals are still needed at the least."""
        few = self.code.k - len(self.arrived)
        if few > 0:
            return few
        if self._could_be_by_lines and self.by_lines.is_complete:
            return 0
        return self.joint.deficit if self._is_worth_solving else 1

    @cached_property
    def by_lines(self) -> RowColumnDecoder:
        """The decoder that recovers rows and columns of the grid in turns, told of what arrived."""
        made = RowColumnDecoder(self.code, self.exact)
        made.add(self.arrived)
        return made

    @cached_property
    def _counted(self) -> Mask:
        """Cells that follow line by line if any k known blocks of a line determine it."""
        left, right = self.code.left, self.code.right
        known = np.zeros((left.n, right.n), bool)
        known[tuple(self.code.cells[self.arrived].T)] = True
        before = -1
        while (count := int(known.sum())) > before:
            before = count
            known[:, known.sum(axis=0) >= left.k] = True
            known[known.sum(axis=1) >= right.k] = True
        return known

    @property
    def _could_be_by_lines(self) -> bool:
        return bool(self._counted[: self.code.left.k, : self.code.right.k].all())

    @cached_property
    def _is_worth_solving(self) -> bool:
        """Whether the joint equations could have one solution, and are few enough.

        The codewords that vanish outside a rows and b columns have (a - r_A)(b - r_B) dimensions;
        every known cell among these takes away one at most.
        """
        unknown, grid = ~self._counted, self.code
        rows, columns = int(unknown.any(axis=1).sum()), int(unknown.any(axis=0).sum())
        free = max(0, rows - grid.left.n + grid.left.k) * max(0, columns - grid.right.n + grid.right.k)
        if free > rows * columns - int(unknown.sum()):
            return False
        return len(self.joint.parity) * len(self.missing) ** 2 <= JOINT_FLOPS

    @cached_property
    def steps(self) -> Sequence[tuple[LineStep, Places]] | None:
        """The lines to decode one after another; None to solve all equations at once."""
        if not self.exact and len(self.missing) * len(self.arrived) <= JOINT_WEIGHTS:
            return None
        if not (self._could_be_by_lines and self.by_lines.is_complete):
            return None
        return steps_towards(self.by_lines.steps, set(self.missing.tolist()))

    @cached_property
    def weights(self) -> Floats:
        """Recovered = weights @ received, (missing, arrived)."""
        if self.steps is None or self.exact:
            return self.joint.weights
        out = np.empty((len(self.missing), len(self.arrived)))
        self._recover_by_lines(self.steps, dict(zip(self.arrived.tolist(), np.eye(len(self.arrived)))), out)
        return out

    @property
    def surplus(self) -> int:
        """Equations left over."""
        return self.joint.surplus

    def equations(self, most: int) -> Floats:
        """Up to `most` equations on the arrived blocks, (s, arrived)."""
        return self.joint.equations(most)

    def integer_weights(self) -> Words | None:
        """The weights of integers modulo 2^64, all equations taken at once."""
        return self.joint.integer_weights()

    def integer_checks(self) -> Words | None:
        """The equations of integers modulo 2^64."""
        return self.joint.integer_checks()

    def fill(self, rows: Results, out: Array) -> None:
        """Put the missing blocks into `out`, line by line or by all equations at once."""
        is_rounded = is_exact(out.dtype) and not self.exact
        if self.steps is not None and not is_rounded:
            self._recover_by_lines(self.steps, rows, out)
        elif self.exact:
            self.joint.fill(rows, out)
        else:
            super().fill(rows, out)

    def _recover_by_lines(self, steps: Sequence[tuple[LineStep, Places]], rows: Results, out: Array) -> None:
        received = {int(index): rows[int(index)] for index in self.arrived}
        values = replay(steps, received, out.dtype)
        for target, index in zip(out, self.missing.tolist()):
            target[:] = values[index]


# --- rows and columns, in turns, until nothing more is gained -------------------------------------


class LineStep(NamedTuple):
    """One line of the grid decoded: from the cells of it that `recovery` has as arrived, all of them.

    places : the numbers of the blocks along the line.
    code : of which the line is a codeword.
    """

    places: Indices
    code: PolarCode
    recovery: Recovery

    @property
    def fresh(self) -> Indices:
        """The cells of the line that this makes known."""
        return np.setdiff1d(np.arange(len(self.places)), self.recovery.arrived)


class RowColumnDecoder:
    """Which cells of a grid are determined by lines that decode, one after another.

    Attributes
    ----------
    known : boolean array (n_A, n_B)
        Cells that arrived or follow.
    steps : list of LineStep
        In an order in which each finds its cells known.
    """

    def __init__(self, code: ProductCode, exact: bool) -> None:
        self._code, self._exact = code, exact
        self.known = np.zeros((code.left.n, code.right.n), bool)
        self.steps: list[LineStep] = []

    @property
    def is_complete(self) -> bool:
        """Whether all data cells are known."""
        return bool(self.known[: self._code.left.k, : self._code.right.k].all())

    def add(self, blocks: Sequence[int] | Indices) -> None:
        """Note the arrival of blocks, and what follows from it: columns first, then rows, in turns."""
        rows, columns = self._code.cells[blocks].T
        self.known[rows, columns] = True
        changed = [set(columns.tolist()), set(rows.tolist())]  # columns and rows to look at
        axis = 0
        while changed[0] or changed[1]:
            for line in sorted(changed[axis]):
                changed[1 - axis].update(self._decode(axis, line))
            changed[axis] = set()
            axis = 1 - axis

    def _decode(self, axis: int, line: int) -> list[int]:
        """Decode column (axis 0) or row `line` if it can be; the cells of it that were not known."""
        known = self.known[:, line] if axis == 0 else self.known[line]
        code = self._code.right if axis else self._code.left
        if known.all() or known.sum() < code.k:
            return []
        recovery = code.recovery(known.copy(), self._exact)
        if recovery.deficit:
            return []
        places = self._code.places[:, line] if axis == 0 else self._code.places[line]
        step = LineStep(places, code, recovery)
        self.steps.append(step)
        known[:] = True
        return [int(cell) for cell in step.fresh]


def steps_towards(steps: Sequence[LineStep], missing: Places) -> list[tuple[LineStep, Places]]:
    """The steps on the way to the `missing` blocks, each with the blocks that are wanted of it."""
    wanted, chosen = set(missing), []
    for step in reversed(steps):
        found = wanted & set(step.places[step.fresh].tolist())
        if found:
            chosen.append((step, found))
            wanted |= set(step.places[step.recovery.arrived].tolist())
    return chosen[::-1]


def replay(steps: Sequence[tuple[LineStep, Places]], rows: Results, dtype: DType) -> dict[int, Array]:
    """All flat blocks, the ones given and those that `steps` recover; sums as `dtype` demands."""
    working = working_dtype(dtype)
    values = dict(rows)
    for step, wanted in steps:
        line = {int(cell): values[int(step.places[cell])] for cell in step.recovery.arrived}
        line |= dict(zip(step.recovery.missing.tolist(), step.recovery.recover(line, working)))
        parity = [cell for cell in step.fresh.tolist() if cell >= step.code.k]
        parity = [cell for cell in parity if int(step.places[cell]) in wanted]
        line |= dict(zip(parity, _parity(step.code, parity, line, working)))
        values |= {int(step.places[cell]): line[cell] for cell in step.fresh.tolist() if cell in line}
    return values


def _parity(code: PolarCode, cells: Sequence[int], line: Results, dtype: DType) -> Array:
    """The parity blocks `cells` of a line whose data is known."""
    coefficients = code.coefficients[[cell - code.k for cell in cells]]
    data = [line[cell] for cell in range(code.k)]
    out = np.empty((len(cells), data[0].size), dtype)
    if not cells:
        return out
    if not is_exact(dtype):
        tiled.product(coefficients.astype(np.float64), data, out)
        return out
    for columns in tiled.tiles(out.shape[1], len(data) + len(out), 8):
        tile = tiled.gather(data, columns, np.int64)
        out[:, columns] = matmul(coefficients, tile).astype(dtype)
    return out
