"""A task cut into subtasks, whose results are handed in one by one.

Runs on workers too: imports numpy at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from polarmap.worker.pytree import Packed, flatten, pack, unflatten


class Handed(NamedTuple):
    """Results of subtasks, as they travel: packed in a list, and which they are."""

    packed: Packed
    subtasks: tuple[int, ...]


def turns(task: int, count: int) -> tuple[int, ...]:
    """The order in which a task takes its subtasks: each task starts one further on.

    So half-finished tasks have finished different subtasks, and all of these get on together.

    >>> turns(0, 4), turns(5, 4)
    ((0, 1, 2, 3), (1, 2, 3, 0))
    """
    return tuple((task + step) % count for step in range(count)) if count > 1 else ()


def rows(total: int, count: int, subtask: int) -> slice:
    """The rows of a block of `total` rows that a subtask takes.

    >>> [rows(7, 3, subtask) for subtask in range(3)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    return slice(total * subtask // count, total * (subtask + 1) // count)


def run(
    f: Callable[[Any], Any],
    block: Any,
    order: Sequence[int],
    before: Callable[[int], None],
    finish: Callable[[Packed], Packed],
    publish: Callable[[Handed], bool],
) -> Handed:
    """f of each piece of the block, in this order; what could not be published is returned.

    `before` is called with the number of the step, `finish` with each result; the last result is
    not published: it travels with the end of the task.
    """
    leaves, structure = flatten(block)
    rest: list[Handed] = []
    for step, subtask in enumerate(order):
        before(step)
        piece = [leaf[rows(len(leaf), len(order), subtask)] for leaf in leaves]
        handed = Handed(finish(pack([f(unflatten(structure, piece))])), (subtask,))
        if step + 1 == len(order) or not publish(handed):
            rest.append(handed)
    return joined(rest)


def joined(parts: Sequence[Handed]) -> Handed:
    """Several as one."""
    children = tuple(child for part in parts for child in part.packed.structure[2])
    layout = tuple(leaf for part in parts for leaf in part.packed.layout)
    data = b"".join(part.packed.data for part in parts)
    subtasks = tuple(subtask for part in parts for subtask in part.subtasks)
    return Handed(Packed((list, (), children), layout, data), subtasks)
