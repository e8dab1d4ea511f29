"""Group the tasks of a map into the cells of a view, and count the tasks in each state for its legend.

A view has space for a limited number of cells. If a map has more tasks, each cell shows several of them. The
terminal and the SVG use the same groups and colours: snapshots -> task groups -> views.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from polarmap.live.snapshots import STATE_BY_LETTER, MapSnapshot
from polarmap.plot import figure_style

# In addition to the tasks in each state, legends count late tasks, and tasks whose result was decoded from
# other results.
LATE, DECODED = "late", "decoded"

# The colour of each task state. Legends list the states in this order.
STATE_COLORS = {
    "arrived": figure_style.BLUE,
    "running": figure_style.ORANGE,
    "queued": figure_style.LIGHT_GREY,
    "held back": figure_style.GREY,
    "surplus": figure_style.SKY_BLUE,
    "failed": figure_style.VERMILLION,
    "abandoned": figure_style.GREY,
    "cancelled": figure_style.GREY,
}


class TaskGroup(NamedTuple):
    """One task, or several consecutive tasks, that a view shows as one square or symbol.

    Attributes
    ----------
    first_task : int
        The number of the first task.
    n_tasks : int
        The number of tasks.
    state : str
        "failed" if any task in the group has failed, and otherwise the most common state.
    is_late : bool
        Whether any task in the group is late.
    is_decoded : bool
        Whether the result of any task in the group was decoded from other results.
    """

    first_task: int
    n_tasks: int
    state: str
    is_late: bool
    is_decoded: bool


def group_tasks(snapshot: MapSnapshot, max_groups: int) -> list[TaskGroup]:
    """Divide the tasks of a map into at most `max_groups` groups of consecutive tasks.

    If the map has at most `max_groups` tasks, each task is a group by itself.
    """
    n_tasks = len(snapshot.states)
    group_size = max(1, -(-n_tasks // max(1, max_groups)))
    groups_with_decoded_blocks = {block // group_size for block in snapshot.decoded_blocks}
    groups = []
    for first_task in range(0, n_tasks, group_size):
        letters = snapshot.states[first_task : first_task + group_size]
        state = STATE_BY_LETTER[letters.lower()] if group_size == 1 else _choose_group_state(letters)
        is_decoded = first_task // group_size in groups_with_decoded_blocks
        groups.append(TaskGroup(first_task, len(letters), state, not letters.islower(), is_decoded))
    return groups


def _choose_group_state(letters: str) -> str:
    """Return the state that a view shows for a group of tasks, given the letter of each task's state.

    The state is "failed" if any task has failed, and otherwise the most common state.
    """
    if "f" in letters or "F" in letters:
        return "failed"
    return STATE_BY_LETTER[Counter(letters.lower()).most_common(1)[0][0]]


def count_tasks_by_state(snapshot: MapSnapshot) -> dict[str, int]:
    """Return the number of tasks in each state, as well as the numbers of late and decoded tasks.

    Numbers that are 0 are left out.

    >>> count_tasks_by_state(MapSnapshot(1, "f", "code", "pool", 4, 3, 3, 2, 1.0, True, "aaRq"))
    {'arrived': 2, 'running': 1, 'queued': 1, 'late': 1}
    """
    counts = Counter(snapshot.states.lower())
    n_late = sum(map(str.isupper, snapshot.states))
    counts_by_state = {state: counts[letter] for letter, state in _LETTERS_IN_LEGEND_ORDER}
    counts_by_state |= {LATE: n_late, DECODED: len(snapshot.decoded_blocks)}
    return {state: count for state, count in counts_by_state.items() if count}


_LETTERS_IN_LEGEND_ORDER = sorted(STATE_BY_LETTER.items(), key=lambda item: list(STATE_COLORS).index(item[1]))
