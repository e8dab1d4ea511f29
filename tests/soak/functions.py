"""Functions with known properties, for blocks of any shape and dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from soak.draws import Draw


@dataclass(frozen=True)
class Function:
    """A function of a block and its properties.

    Attributes
    ----------
    kind : str
        "linear", "affine", "quadratic", "other", or "rounded" (linear up to one in the last digit).
    rows : str
        "each" if it acts on each row separately, "as many" if it returns a row per row but not separately,
        "some" if one part of its container acts on each row, or "other".
    gain : float
        The largest intermediate number, in units of the largest number of the block.
    """

    name: str
    call: Callable[[Any], Any]
    kind: str = "linear"
    rows: str = "other"
    gain: float = 1.0

    @property
    def adds_by_blas(self) -> bool:
        """Whether the order of its additions depends on the position of a block in memory."""
        return "@" in self.name or self.name == "x' x"


class Pair(NamedTuple):
    first: Any
    addend_rows: Any


TOTAL = Function("sum", lambda block: block.sum())
OVER_ROWS = Function("sum over rows", lambda block: block.sum(axis=0))
ENERGY = Function("energy", lambda block: (block * block).sum(), "quadratic")
LARGEST = Function("largest of each column", lambda block: block.max(axis=0), "other")
OF_ANY_ROWS = [TOTAL, OVER_ROWS, ENERGY, LARGEST]

QUADRATIC = [
    Function("x * x", lambda block: block * block, "quadratic", "each"),
    Function("x' x", lambda block: block.T @ block, "quadratic"),
    ENERGY,
]
OTHER = [
    Function("abs", np.abs, "other", "each"),
    Function(
        "x // 2 or sign",
        lambda block: block // 2 if block.dtype.kind in "iu" else np.sign(block.real),
        "other",
        "each",
    ),
    LARGEST,
    Function("sorted", lambda block: np.sort(block, axis=0), "other", "as many"),
    Function("clipped", lambda block: np.clip(block.real, -1, 1), "other", "each"),
    Function("norm", lambda block: np.sqrt((np.abs(block) ** 2.0).sum()), "other"),
]
ROUNDED = Function(
    "rint(1e9 x) as int64", lambda block: np.rint(block * 1e9).astype(np.int64), "rounded", "each", 1e9
)


def draw_function(draw: Draw, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Function:
    """Draw a function of blocks of this shape, linear in most cases."""
    kind = draw.pick({"linear": 80, "quadratic": 3, "other": 14, "rounded": 3})
    if kind == "linear":
        return draw_linear(draw, shape, dtype)
    if kind == "rounded" and dtype.kind == "f" and dtype.itemsize == 8:
        return ROUNDED
    return draw.pick(QUADRATIC if kind == "quadratic" else OTHER)


def draw_linear(draw: Draw, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Function:
    rows, size = shape[0], int(np.prod(shape))
    flat = len(shape) == 1
    if not flat and draw.chance(0.25):
        return _product(draw, shape, dtype)
    of_each = "other" if flat else "each"
    options = [
        Function("3 x", partial(np.multiply, 3), "linear", "each", 3),
        Function("x itself", lambda block: block, "linear", "each"),
        Function("5 - 2 x", lambda block: 5 - 2 * block, "affine", "each", 7),
        Function("sum", TOTAL.call, gain=size),
        Function("sum over rows", OVER_ROWS.call, gain=rows),
        Function("mean over rows", lambda block: block.mean(axis=0)),
        Function("sum of each row", lambda block: block.sum(axis=-1), rows=of_each, gain=size / rows),
        Function("cumulative over rows", lambda block: block.cumsum(axis=0), rows="as many", gain=rows),
        Function("rows upside down", lambda block: block[::-1], rows="as many"),
        Function("every other row", lambda block: block[::2]),
        Function("transpose", lambda block: block.T, rows="each" if flat else "other"),
        Function("one row", lambda block: block[0]),
        Function("flat", np.ravel, rows="each" if size == rows else "other"),
        Function("constant", lambda block: np.full(3, 2.5), "affine", gain=3),
        Function(
            "nested",
            lambda block: {"rows": block * 2, "both": (block[0], [block.sum()])},
            rows="some",
            gain=size,
        ),
        Function("pair of arrays", lambda block: Pair(block * 2, block[:1]), rows="some", gain=2),
    ]
    if dtype.kind == "f" and dtype.itemsize > 2:
        options.append(Function("fft of rows", np.fft.fft, rows=of_each, gain=size))
    return draw.pick(options)


def _product(draw: Draw, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Function:
    """Draw the product of each row with a vector or a matrix."""
    columns = () if draw.chance(0.5) else (draw.number(1, 3),)
    factor_dtype = np.dtype(draw.pick(["f8", "i8"] if dtype.kind in "iu" else ["f8", dtype.str]))
    if factor_dtype.kind in "iu":
        kind = (
            dtype
            if draw.chance(0.5) and dtype.kind == "i"
            else "u8"
            if dtype == np.dtype("u8")
            else factor_dtype
        )
        factor = draw.stream.integers(-9, 10, (shape[-1], *columns)).astype(kind)
    else:
        factor = draw.stream.standard_normal((shape[-1], *columns)).astype(factor_dtype)
    gain = float(np.abs(factor.astype(np.complex128)).sum(axis=0).max(initial=0))
    name = f"x @ {factor.dtype}{list(factor.shape)}"
    return Function(name, partial(_times, factor), "linear", "each", gain)


def _times(factor: Any, block: Any) -> Any:
    return block @ factor


# Functions of nested blocks.
NESTED = [
    Function(
        "mix of parts",
        lambda block: (
            block["x"].sum(axis=0) * 2,
            {"sum": block["pair"][0].sum() + block["pair"][1], "x": block["x"]},
        ),
        gain=100,
    ),
    Function("parts twice", lambda block: {"x": 2 * block["x"], "rest": list(block["pair"])}, gain=2),
    Function("square of a part", lambda block: (block["x"] * block["x"], block["pair"][1]), "quadratic"),
]
