"""ProductCode: blocks on a grid, every column a codeword of one code, every row of another.

    x = G_A X G_B',   so G = kron(G_A, G_B) with its unit rows first,   T = I

for the data blocks X on a k_A x k_B grid and G_A = [I; P_A], G_B = [I; P_B]: what A_i B_j gives for
coded A_i and B_j. C_A x = 0 for every column of x and C_B x' = 0 for every row.
"""

from __future__ import annotations

from polarmap.code.algebra import Recovery
from polarmap.code.dtypes import Mask
from polarmap.code.polar import PolarCode
from polarmap.code.product_recovery import ProductRecovery
from polarmap.code.row_column import Grid
from polarmap.errors import CodeError

MAX_TASKS = 4096  # the joint equations of more take too long to solve


class ProductCode(Grid):
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
        super().__init__(left, right)
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

    @property
    def norm_inf(self) -> int:
        """The largest sum of absolute coefficients of a block."""
        return self.left.norm_inf * self.right.norm_inf

    def recovery(self, arrived: Mask, exact: bool) -> Recovery:
        """How to recover the missing data blocks when the blocks of the mask `arrived` are there."""
        return ProductRecovery(self, arrived, exact)
