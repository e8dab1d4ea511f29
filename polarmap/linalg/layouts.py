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
    """The number of data blocks (k) of a matrix, and the number of coded blocks (n) computed from them."""

    k: int
    n: int


# The default for a Gram matrix A' A: 7 blocks of columns are encoded as 8 coded blocks. There is a task for
# each pair of coded blocks (i, j) with i <= j, which gives 28 data tasks and 8 parity tasks.
GRAM_COUNTS = BlockCounts(7, 8)


class ProductLayout(NamedTuple):
    """The numbers of blocks into which the factors of a product A B are partitioned.

    `row_counts` is for A, which is partitioned by rows, and `column_counts` is for B, which is partitioned by
    columns. If the counts of a factor are None, it is not partitioned: every worker gets the whole factor.
    """

    row_counts: BlockCounts | None
    column_counts: BlockCounts | None


def choose_product_layout(
    method: str, shape: ProductShape, blocks: BlockCountOption, tasks: BlockCountOption, itemsize: int
) -> ProductLayout:
    """Choose how to partition the factors of a matrix product.

    If `method` is "auto", the layout with the shortest estimated duration of a task is chosen.

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
    """Return the numbers of data blocks (k) and coded blocks (n). Either argument may be None.

    k is `blocks`. Its default is three quarters of `tasks`, or `default_blocks` if `tasks` is None as well,
    but at most `max_blocks`. n is `tasks`. Its default is a third more than k. If a code for integers would
    need another task, the default includes it, because the dtype is not known here.

    >>> [resolve_block_counts(*counts) for counts in ((None, None, 24), (None, 8, 24), (5, None, 24))]
    [BlockCounts(k=24, n=32), BlockCounts(k=6, n=8), BlockCounts(k=5, n=8)]
    """
    n = None if tasks is None else check_positive_int("tasks", tasks)
    default_blocks = default_blocks if n is None else max(1, 3 * n // 4)
    k = int(min(default_blocks, max_blocks)) if blocks is None else check_positive_int("blocks", blocks)
    return BlockCounts(k, get_default_polar_n_tasks(k, "arikan") if n is None else n)


def get_default_gram_tasks(n_blocks: int) -> int:
    """Return the default number of coded blocks for a Gram matrix with `n_blocks` data blocks.

    There is one parity block for every 7 data blocks, rounded up.
    """
    return n_blocks + math.ceil(n_blocks / 7)


def check_axis_block_counts(block_counts: BlockCounts, axis: str, axis_length: int) -> BlockCounts:
    """Return block counts for which no block of rows or columns is empty.

    If necessary, the number of data blocks k is reduced, while the number of all blocks n stays the same. For
    example, blocks of 2 rows are needed to partition 25 rows into at most 24 blocks, so 13 blocks are enough.
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
    """Return a layout in which one factor is encoded, and every worker gets the whole other factor.

    The first factor is encoded if `axis` is "rows", and the second one if it is "columns".
    """
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
    """Return a layout that encodes both factors. Each task multiplies a block of A by a block of B.

    If the number of blocks of each factor is not given, the layout with the shortest estimated duration of a
    task is chosen.
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
    """Return the numbers of data blocks and coded blocks of one factor, if both factors are encoded.

    About one eighth of the `n_coded_blocks` coded blocks are parity blocks. There are fewer blocks if some
    would be empty. `axis_length` is the number of rows or columns that are partitioned.
    """
    n_parity = max(1, round(n_coded_blocks / 8))
    k = compute_max_nonempty_blocks(axis_length, max(1, min(n_coded_blocks - n_parity, axis_length)))
    return BlockCounts(k, min(n_coded_blocks, k + n_parity))


def _resolve_grid_axis_block_counts(
    blocks: BlockCountOption, tasks: BlockCountOption, factor_index: int, axis_length: int
) -> BlockCounts:
    """Return the numbers of data blocks and coded blocks of A or B, for a product A B of encoded factors.

    `factor_index` is 0 for A and 1 for B. `blocks` and `tasks` are pairs with one number for each factor. One
    of them may be None.
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
