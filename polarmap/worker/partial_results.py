"""A task cut into subtasks, whose results are handed in one by one.

Runs on workers too: imports numpy at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from polarmap.worker.pytree import Packed, flatten, unflatten

# Results of subtasks, packed in a list, and which subtasks these are; none: that of a whole task.
PartialResult = tuple[Packed, tuple[int, ...]]


def subtask_order(task: int, count: int) -> tuple[int, ...]:
    """The order in which a task takes its subtasks: each task starts one further on.

    So half-finished tasks have finished different subtasks, and all of these get on together.

    >>> subtask_order(0, 4), subtask_order(5, 4), subtask_order(3, 1)
    ((0, 1, 2, 3), (1, 2, 3, 0), ())
    """
    return tuple((task + step) % count for step in range(count)) if count > 1 else ()


def rows(total: int, count: int, subtask: int) -> slice:
    """The rows of a block of `total` rows that a subtask takes.

    >>> [rows(7, 3, subtask) for subtask in range(3)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    return slice(total * subtask // count, total * (subtask + 1) // count)


def evaluate(
    call: Callable[[Any], Packed], block: Any, order: Sequence[int]
) -> Iterator[Callable[[], PartialResult]]:
    """What calls it for each piece of a block, in this order; for the whole block without one."""
    # Not the results themselves: StopIteration, which f may raise, does not pass a generator.
    if not order:
        yield lambda: (call(block), ())
        return
    leaves, structure = flatten(block)

    def of_piece(subtask: int) -> PartialResult:
        piece = [leaf[rows(len(leaf), len(order), subtask)] for leaf in leaves]
        packed = call(unflatten(structure, piece))
        return packed._replace(structure=(list, (), (packed.structure,))), (subtask,)

    for subtask in order:
        yield partial(of_piece, subtask)


def joined(parts: Sequence[PartialResult]) -> PartialResult:
    """Several as one."""
    if len(parts) == 1:
        return parts[0]
    children = tuple(child for packed, _ in parts for child in packed.structure[2])
    layout = tuple(leaf for packed, _ in parts for leaf in packed.layout)
    data = b"".join(packed.data for packed, _ in parts)
    return Packed((list, (), children), layout, data), tuple(one for _, ones in parts for one in ones)
