"""How to cut and code the factors of a product: which of them, into how many blocks, by what it costs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from polarmap.blocks.code_choice import default_tasks
from polarmap.blocks.equal import most_filled_blocks
from polarmap.codes.polar import MAX_N
from polarmap.errors import CodeError
from polarmap.validation import check_positive_int, is_choice

TASKS = 32
BYTES_PER_SECOND = 5e7  # between a cloud function of one core and its storage
PRODUCTS_PER_SECOND = 1e10  # multiplications, each with an addition, on such a core
Counts = int | tuple[int, int] | None
Shape = tuple[int, int, int]  # M, L, N: A is (M, L), B is (L, N)


class BlockCounts(NamedTuple):
    """Into how many data blocks (k) a factor is cut, and how many coded blocks (n) are made of them."""

    k: int
    n: int


PAIRED = BlockCounts(7, 8)  # of A' A: 28 products of data blocks and 8 more, as a pair of blocks is a task


class ProductLayout(NamedTuple):
    """How A is cut by rows and B by columns; None for a factor that every worker gets whole."""

    rows: BlockCounts | None
    columns: BlockCounts | None


def choose_layout(method: str, shape: Shape, blocks: Counts, tasks: Counts, itemsize: int) -> ProductLayout:
    """The layout that `method` means, or the cheapest; CodeError where there is none."""
    if not is_choice(method, ("auto", "rows", "columns", "grid")):
        raise CodeError(f"method must be 'auto', 'rows', 'columns' or 'grid', not {method!r}")
    if method == "grid" or (method == "auto" and (_is_pair(blocks) or _is_pair(tasks))):
        return _both_factors_coded(shape, blocks, tasks, itemsize)
    if method != "auto":
        return _one_factor_coded(method, shape, blocks, tasks)
    long = [side for side, length in (("rows", shape[0]), ("columns", shape[2])) if length > 1]
    candidates = [_one_factor_coded(side, shape, blocks, tasks) for side in long or ["rows"]]
    few = isinstance(tasks, int) and tasks < 4
    if blocks is None and len(long) == 2 and not few:
        candidates.append(_both_factors_coded(shape, None, tasks, itemsize))
    return min(candidates, key=lambda layout: task_seconds(layout, shape, itemsize))


def task_seconds(layout: ProductLayout, shape: Shape, itemsize: int) -> float:
    """What one task takes to read its blocks, multiply and write, roughly."""
    m = shape[0] / (layout.rows.k if layout.rows else 1)
    n = shape[2] / (layout.columns.k if layout.columns else 1)
    values = m * shape[1] + shape[1] * n + m * n
    return values * itemsize / BYTES_PER_SECOND + m * shape[1] * n / PRODUCTS_PER_SECOND


def counts_of(blocks: Any, tasks: Any, usual: int, most: float = math.inf) -> BlockCounts:
    """As asked for: three blocks for four workers or the usual number, at most so many; n a third more.

    Counts with one task more where integers need it, as the dtype is not known here.

    >>> counts_of(None, None, 24), counts_of(None, 8, 24), counts_of(5, None, 24)
    (BlockCounts(k=24, n=32), BlockCounts(k=6, n=8), BlockCounts(k=5, n=8))
    """
    n = None if tasks is None else check_positive_int("tasks", tasks)
    usual = usual if n is None else max(1, 3 * n // 4)
    k = int(min(usual, most)) if blocks is None else check_positive_int("blocks", blocks)
    return BlockCounts(k, default_tasks(k, "arikan") if n is None else n)


def paired_tasks(k: int) -> int:
    """Coded blocks of a side whose blocks are multiplied in pairs: one of parity for each 7 of data."""
    return k + math.ceil(k / 7)


def check_counts(cut: BlockCounts, side: str, length: int) -> BlockCounts:
    """Return counts of which no block is empty: fewer blocks, with more of parity for them, if need be.

    CodeError for more blocks than a side has rows or columns, and for no parity.

    >>> check_counts(BlockCounts(24, 32), "rows", 25), check_counts(BlockCounts(5, 7), "rows", 10)
    (BlockCounts(k=13, n=32), BlockCounts(k=5, n=7))
    """
    if cut.k > length:
        raise CodeError(f"blocks={cut.k} is more than the {length} {side}; use blocks <= {length}")
    if cut.n <= cut.k:
        raise CodeError(f"tasks={cut.n} leaves no parity for {cut.k} blocks of {side}: use tasks > {cut.k}")
    return cut._replace(k=most_filled_blocks(length, cut.k))


def _one_factor_coded(side: str, shape: Shape, blocks: Counts, tasks: Counts) -> ProductLayout:
    """A layout in which one factor is coded, and every worker gets the other one whole."""
    for name, counts in (("blocks", blocks), ("tasks", tasks)):
        if _is_pair(counts):
            raise CodeError(f"method={side!r} codes one factor: {name} must be an integer, not {counts!r}")
    length = shape[0] if side == "rows" else shape[2]
    cut = check_counts(counts_of(blocks, tasks, 3 * TASKS // 4, length), side, length)
    return ProductLayout(cut, None) if side == "rows" else ProductLayout(None, cut)


def _both_factors_coded(shape: Shape, blocks: Counts, tasks: Counts, itemsize: int) -> ProductLayout:
    """A layout in which both factors are coded, as asked for or the cheapest with so many tasks."""
    if blocks is not None or _is_pair(tasks):
        rows = check_counts(_asked_for(blocks, tasks, 0, shape[0]), "rows", shape[0])
        return ProductLayout(rows, check_counts(_asked_for(blocks, tasks, 1, shape[2]), "columns", shape[2]))
    total = TASKS if tasks is None else check_positive_int("tasks", tasks)
    if total > MAX_N:
        raise CodeError(f"a grid has at most {MAX_N} tasks, not tasks={total}")
    if total < 4:
        raise CodeError(f"a grid has at least 2 x 2 tasks, not tasks={total}")
    layouts = [
        ProductLayout(_of_tasks(n, shape[0]), _of_tasks(total // n, shape[2]))
        for n in range(2, total // 2 + 1)
    ]
    return min(layouts, key=lambda layout: task_seconds(layout, shape, itemsize))


def _of_tasks(n: int, length: int) -> BlockCounts:
    """A side of a grid: an eighth of it for parity, and no more blocks than rows."""
    parity = max(1, round(n / 8))
    k = most_filled_blocks(length, max(1, min(n - parity, length)))
    return BlockCounts(k, min(n, k + parity))


def _asked_for(blocks: Counts, tasks: Counts, side: int, length: int) -> BlockCounts:
    """A side of a grid of which blocks, tasks or both were said."""
    for name, counts in (("blocks", blocks), ("tasks", tasks)):
        if counts is not None and not (_is_pair(counts) and len(counts) == 2):  # type: ignore[arg-type]
            raise CodeError(f"{name} of a grid must be a pair (for A, for B), not {counts!r}")
    n = check_positive_int("tasks", tasks[side]) if tasks else None  # type: ignore[index]
    if blocks is None:
        return _of_tasks(n or 0, length)
    k = check_positive_int("blocks", blocks[side])  # type: ignore[index]
    return BlockCounts(k, n or paired_tasks(k))


def _is_pair(counts: Counts) -> bool:
    return isinstance(counts, (tuple, list))
