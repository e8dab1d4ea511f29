"""Choose how the factors of a matrix product are partitioned and encoded."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from polarmap.blocks.code_choice import get_default_polar_n_tasks
from polarmap.blocks.equal import compute_max_nonempty_blocks
from polarmap.codes.polar import MAX_N
from polarmap.errors import CodeError
from polarmap.validation import check_positive_int, is_choice

DEFAULT_TASKS = 32
BYTES_PER_SECOND = 5e7  # Assumed bandwidth between a cloud function with one core and its storage.
MULTIPLY_ADDS_PER_SECOND = 1e10  # Assumed speed of a matrix product on one core.
BlockCountOption = int | tuple[int, int] | None
ProductShape = tuple[int, int, int]  # (M, L, N) for A of shape (M, L) and B of shape (L, N).


class BlockCounts(NamedTuple):
    """The numbers of data blocks (k) and coded blocks (n) of a factor."""

    k: int
    n: int


# By default, 7 blocks of columns are encoded as 8 for A' A. Pairs of them give 28 data tasks and 8 parity
# tasks.
GRAM_COUNTS = BlockCounts(7, 8)


class ProductLayout(NamedTuple):
    """The partition of the factors of a product A B: A by rows, and B by columns.

    A factor whose counts are None is not partitioned: every worker gets the whole factor.
    """

    row_counts: BlockCounts | None
    column_counts: BlockCounts | None


def choose_product_layout(
    method: str, shape: ProductShape, blocks: BlockCountOption, tasks: BlockCountOption, itemsize: int
) -> ProductLayout:
    """Choose how to partition the factors of a matrix product.

    For the method "auto", choose the method whose tasks are estimated to be the fastest.

    Raise CodeError if `blocks` or `tasks` do not fit the method or the shape of the product.
    """
    if not is_choice(method, ("auto", "rows", "columns", "grid")):
        raise CodeError(f"method must be 'auto', 'rows', 'columns' or 'grid', not {method!r}")
    if method == "grid" or (method == "auto" and (_is_pair(blocks) or _is_pair(tasks))):
        return _make_grid_layout(shape, blocks, tasks, itemsize)
    if method != "auto":
        return _make_one_factor_layout(method, shape, blocks, tasks)
    divisible_axes = [axis for axis, length in (("rows", shape[0]), ("columns", shape[2])) if length > 1]
    candidates = [_make_one_factor_layout(axis, shape, blocks, tasks) for axis in divisible_axes or ["rows"]]
    has_few_tasks = isinstance(tasks, int) and tasks < 4
    if blocks is None and len(divisible_axes) == 2 and not has_few_tasks:
        candidates.append(_make_grid_layout(shape, None, tasks, itemsize))
    return min(candidates, key=lambda layout: estimate_task_seconds(layout, shape, itemsize))


def estimate_task_seconds(layout: ProductLayout, shape: ProductShape, itemsize: int) -> float:
    """Estimate the seconds that a task takes to read its blocks, multiply them and write the result."""
    block_rows = shape[0] / (layout.row_counts.k if layout.row_counts else 1)
    block_columns = shape[2] / (layout.column_counts.k if layout.column_counts else 1)
    n_values = block_rows * shape[1] + shape[1] * block_columns + block_rows * block_columns
    n_multiply_adds = block_rows * shape[1] * block_columns
    return n_values * itemsize / BYTES_PER_SECOND + n_multiply_adds / MULTIPLY_ADDS_PER_SECOND


def resolve_block_counts(
    blocks: Any, tasks: Any, default_blocks: int, max_blocks: float = math.inf
) -> BlockCounts:
    """Return the numbers of data blocks (k) and coded blocks (n), with defaults for None.

    If `tasks` is given, k is three quarters of it by default, otherwise `default_blocks`. Both defaults are
    limited by `max_blocks`. The default for n is a third more than k. It includes an additional task if codes
    for integers need one, because the dtype is not known here.

    >>> [resolve_block_counts(*counts) for counts in ((None, None, 24), (None, 8, 24), (5, None, 24))]
    [BlockCounts(k=24, n=32), BlockCounts(k=6, n=8), BlockCounts(k=5, n=8)]
    """
    n = None if tasks is None else check_positive_int("tasks", tasks)
    default_blocks = default_blocks if n is None else max(1, 3 * n // 4)
    k = int(min(default_blocks, max_blocks)) if blocks is None else check_positive_int("blocks", blocks)
    return BlockCounts(k, get_default_polar_n_tasks(k, "arikan") if n is None else n)


def get_default_gram_tasks(n_blocks: int) -> int:
    """Return the default number of coded blocks for a Gram matrix: one parity block for 7 data blocks."""
    return n_blocks + math.ceil(n_blocks / 7)


def check_axis_block_counts(block_counts: BlockCounts, axis: str, axis_length: int) -> BlockCounts:
    """Return block counts for which no block of rows or columns is empty.

    If necessary, the number of data blocks k is reduced, while the number of all blocks n stays the same.
    Raise CodeError if there are more blocks than rows or columns, or no parity blocks.

    >>> check_axis_block_counts(BlockCounts(24, 32), "rows", 25)
    BlockCounts(k=13, n=32)
    >>> check_axis_block_counts(BlockCounts(5, 7), "rows", 10)
    BlockCounts(k=5, n=7)
    """
    if block_counts.k > axis_length:
        raise CodeError(
            f"blocks={block_counts.k} is more than the {axis_length} {axis}; use blocks <= {axis_length}"
        )
    if block_counts.n <= block_counts.k:
        raise CodeError(
            f"tasks={block_counts.n} leaves no parity blocks for {block_counts.k} blocks of {axis}: use "
            f"tasks > {block_counts.k}"
        )
    return block_counts._replace(k=compute_max_nonempty_blocks(axis_length, block_counts.k))


def _make_one_factor_layout(
    axis: str, shape: ProductShape, blocks: BlockCountOption, tasks: BlockCountOption
) -> ProductLayout:
    """Return a layout that encodes one factor and sends the other one unchanged to every worker."""
    for option, option_value in (("blocks", blocks), ("tasks", tasks)):
        if _is_pair(option_value):
            raise CodeError(
                f"method={axis!r} encodes one factor, so {option} must be an integer, not {option_value!r}"
            )
    length = shape[0] if axis == "rows" else shape[2]
    axis_counts = check_axis_block_counts(
        resolve_block_counts(blocks, tasks, 3 * DEFAULT_TASKS // 4, length), axis, length
    )
    return ProductLayout(axis_counts, None) if axis == "rows" else ProductLayout(None, axis_counts)


def _make_grid_layout(
    shape: ProductShape, blocks: BlockCountOption, tasks: BlockCountOption, itemsize: int
) -> ProductLayout:
    """Return a layout that encodes both factors, so that the tasks form a grid.

    By default, the grid with the fastest tasks is chosen.
    """
    if blocks is not None or _is_pair(tasks):
        row_counts = _resolve_grid_axis_block_counts(blocks, tasks, 0, shape[0])
        row_counts = check_axis_block_counts(row_counts, "rows", shape[0])
        column_counts = _resolve_grid_axis_block_counts(blocks, tasks, 1, shape[2])
        return ProductLayout(row_counts, check_axis_block_counts(column_counts, "columns", shape[2]))
    n_tasks = DEFAULT_TASKS if tasks is None else check_positive_int("tasks", tasks)
    if n_tasks > MAX_N:
        raise CodeError(f"tasks of a grid must be at most {MAX_N}, not {n_tasks}")
    if n_tasks < 4:
        raise CodeError(f"tasks of a grid must be at least 4 (2 x 2), not {n_tasks}")
    layouts = [
        ProductLayout(
            _choose_grid_axis_block_counts(n_row_tasks, shape[0]),
            _choose_grid_axis_block_counts(n_tasks // n_row_tasks, shape[2]),
        )
        for n_row_tasks in range(2, n_tasks // 2 + 1)
    ]
    return min(layouts, key=lambda layout: estimate_task_seconds(layout, shape, itemsize))


def _choose_grid_axis_block_counts(n_coded_blocks: int, axis_length: int) -> BlockCounts:
    """Return the numbers of data blocks and coded blocks for one side of a grid of tasks.

    An eighth of the coded blocks are parity blocks.
    """
    n_parity = max(1, round(n_coded_blocks / 8))
    k = compute_max_nonempty_blocks(axis_length, max(1, min(n_coded_blocks - n_parity, axis_length)))
    return BlockCounts(k, min(n_coded_blocks, k + n_parity))


def _resolve_grid_axis_block_counts(
    blocks: BlockCountOption, tasks: BlockCountOption, factor_index: int, axis_length: int
) -> BlockCounts:
    """Return the block counts of one factor of a product A B, given `blocks` or `tasks` for both factors.

    `factor_index` is 0 for A and 1 for B. `blocks`, `tasks` or both are pairs (for A, for B).
    """
    for option, option_value in (("blocks", blocks), ("tasks", tasks)):
        if option_value is not None and not (_is_pair(option_value) and len(option_value) == 2):  # type: ignore[arg-type]
            raise CodeError(f"{option} of a grid must be a pair (for A, for B), not {option_value!r}")
    n = check_positive_int("tasks", tasks[factor_index]) if tasks else None  # type: ignore[index]
    if blocks is None:
        return _choose_grid_axis_block_counts(n or 0, axis_length)
    k = check_positive_int("blocks", blocks[factor_index])  # type: ignore[index]
    return BlockCounts(k, n or get_default_gram_tasks(k))


def _is_pair(option_value: BlockCountOption) -> bool:
    return isinstance(option_value, (tuple, list))
