"""How many tasks one machine should run at once: decisions only, clocks and counts passed in.

A task that computes needs a core; one that sleeps or waits for the network does not, and must not
keep the tasks behind it from starting.
"""

from __future__ import annotations

SPARE_SLOTS = 2  # beyond the cores, so that fetching a block overlaps with computing on another


def first_slots(cores: int) -> int:
    """Slots at first: the cores and a little more.

    >>> first_slots(2)
    4
    """
    return cores + SPARE_SLOTS


def extra_slots(cores: int, busy: int, idle: int, queued: int) -> int:
    """Slots to open now: `busy` tasks compute, `idle` ones have started and do not, the rest waits.

    Where many tasks idle, more of those waiting will: their number grows by half each time.

    >>> extra_slots(cores=2, busy=2, idle=5, queued=9), extra_slots(2, 0, 4, 9), extra_slots(2, 1, 8, 9)
    (0, 2, 4)
    """
    return min(max(cores - busy, idle // 2), queued) if busy < cores else 0
