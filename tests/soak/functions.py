"""Functions of a block whose properties are known, for a block of any shape and dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from soak.draws import Draw


@dataclass(frozen=True)
class Function:
    """A function of a block and what is true of it.

    kind : "linear" (or affine), "quadratic", "other", or "rounded": linear up to one in the last digit.
    rows : "each": acts on each row by itself; "as many": gives a row for each, but not from it alone;
        "some": a container of which one part acts on each row; "other".
    gain : the largest number it passes through on the way, in largest numbers of the block.
    """

    name: str
    call: Callable[[Any], Any]
    kind: str = "linear"
    rows: str = "other"
    gain: float = 1.0


class Pair(NamedTuple):
    first: Any
    second: Any


def draw_function(draw: Draw, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Function:
    """A function of blocks of this shape: linear ones mostly."""
    kind = draw.pick({"linear": 80, "quadratic": 3, "other": 14, "rounded": 3})
    if kind == "linear":
        return _linear(draw, shape, dtype)
    if kind == "rounded" and dtype.kind == "f" and dtype.itemsize == 8:
        return Function("rint(1e9 x) as int64", rounded, "rounded", "each", 1e9)
    return _quadratic(draw) if kind == "quadratic" else _other(draw, dtype)


def draw_linear(draw: Draw, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Function:
    return _linear(draw, shape, dtype)


def draw_quadratic(draw: Draw) -> Function:
    return _quadratic(draw)


def _linear(draw: Draw, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Function:
    rows, size = shape[0], int(np.prod(shape))
    flat = len(shape) == 1
    options: list[Callable[[], Function]] = [
        lambda: Function("3 x", partial(scaled, 3), "linear", "each", 3),
        lambda: Function("x itself", itself, "linear", "each"),
        lambda: Function("5 - 2 x", affine, "linear", "each", 7),
        lambda: Function("sum", total, gain=size),
        lambda: Function("sum over rows", over_rows, gain=rows),
        lambda: Function("mean over rows", mean_over_rows, gain=1),
        lambda: Function("sum of each row", of_rows, rows="other" if flat else "each", gain=size / rows),
        lambda: Function("cumulative over rows", cumulative, rows="as many", gain=rows),
        lambda: Function("rows upside down", flipped, rows="as many"),
        lambda: Function("every other row", every_other),
        lambda: Function("transpose", transposed, rows="each" if flat else "other"),
        lambda: Function("one row", first_row),
        lambda: Function("flat", np.ravel, rows="each" if size == rows else "other"),
        lambda: Function("constant", constant, gain=3),
        lambda: Function("nested", nested, rows="some", gain=size),
        lambda: Function("pair of arrays", pair, rows="some", gain=2),
    ]
    if dtype.kind == "f" and dtype.itemsize > 2:
        options.append(
            lambda: Function("fft of rows", np.fft.fft, rows="other" if flat else "each", gain=size)
        )
    if not flat:
        options += [partial(_product, draw, shape, dtype)] * 5
    return draw.pick(options)()


def _product(draw: Draw, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Function:
    """The product of each row with a vector or a matrix."""
    columns = () if draw.chance(0.5) else (draw.number(1, 3),)
    other = np.dtype(draw.pick(["f8", "i8"] if dtype.kind in "iu" else ["f8", dtype.str]))
    if other.kind in "iu":
        factor = draw.stream.integers(-9, 10, (shape[-1], *columns)).astype(
            dtype if draw.chance(0.5) and dtype.kind == "i" else "u8" if dtype == np.dtype("u8") else other
        )
    else:
        factor = draw.stream.standard_normal((shape[-1], *columns)).astype(other)
    gain = float(np.abs(factor.astype(np.complex128)).sum(axis=0).max(initial=0))
    return Function(f"x @ {factor.dtype}{list(factor.shape)}", partial(times, factor), "linear", "each", gain)


def _quadratic(draw: Draw) -> Function:
    return draw.pick(
        [
            Function("x * x", square, "quadratic", "each"),
            Function("x' x", gram, "quadratic"),
            Function("energy", energy, "quadratic"),
        ]
    )


def _other(draw: Draw, dtype: np.dtype[Any]) -> Function:
    options = [
        Function("abs", np.abs, "other", "each"),
        Function("x // 2 or sign", halves, "other", "each"),
        Function("largest of each column", largest, "other"),
        Function("sorted", ordered, "other", "as many"),
        Function("clipped", clipped, "other", "each"),
        Function("norm", norm, "other"),
    ]
    return draw.pick(options)


def scaled(factor: int, block: Any) -> Any:
    return factor * block


def itself(block: Any) -> Any:
    return block


def affine(block: Any) -> Any:
    return 5 - 2 * block


def total(block: Any) -> Any:
    return block.sum()


def over_rows(block: Any) -> Any:
    return block.sum(axis=0)


def mean_over_rows(block: Any) -> Any:
    return block.mean(axis=0)


def of_rows(block: Any) -> Any:
    return block.sum(axis=-1)


def cumulative(block: Any) -> Any:
    return block.cumsum(axis=0)


def flipped(block: Any) -> Any:
    return block[::-1]


def every_other(block: Any) -> Any:
    return block[::2]


def transposed(block: Any) -> Any:
    return block.T


def first_row(block: Any) -> Any:
    return block[0]


def constant(block: Any) -> Any:
    return np.full(3, 2.5)


def nested(block: Any) -> Any:
    return {"rows": block * 2, "both": (block[0], [block.sum()])}


def pair(block: Any) -> Any:
    return Pair(block * 2, block[:1])


def times(factor: Any, block: Any) -> Any:
    return block @ factor


def square(block: Any) -> Any:
    return block * block


def gram(block: Any) -> Any:
    return block.T @ block


def energy(block: Any) -> Any:
    return (block * block).sum()


def rounded(block: Any) -> Any:
    return np.rint(block * 1e9).astype(np.int64)


def halves(block: Any) -> Any:
    return block // 2 if block.dtype.kind in "iu" else np.sign(block.real)


def largest(block: Any) -> Any:
    return block.max(axis=0)


def ordered(block: Any) -> Any:
    return np.sort(block, axis=0)


def clipped(block: Any) -> Any:
    return np.clip(block.real, -1, 1)


def norm(block: Any) -> Any:
    return np.sqrt((np.abs(block) ** 2.0).sum())


# --- of nested blocks --------------------------------------------------------------------------


def mix(block: Any) -> Any:
    x, (y, number) = block["x"], block["pair"]
    return x.sum(axis=0) * 2, {"sum": y.sum() + number, "x": x}


def doubled(block: Any) -> Any:
    return {"x": 2 * block["x"], "rest": list(block["pair"])}


def mixed_squares(block: Any) -> Any:
    return block["x"] * block["x"], block["pair"][1]


NESTED = [
    Function("mix of parts", mix, gain=100),
    Function("parts twice", doubled, gain=2),
    Function("square of a part", mixed_squares, "quadratic"),
]
