"""How long tasks take, kept in order."""

from __future__ import annotations

from bisect import bisect_left, insort


class TaskSeconds:
    """What workers spent on the results of one codeword, by task; its statistics cost O(1).

    >>> seconds = TaskSeconds()
    >>> for task, spent in enumerate((3.0, 1.0, 2.0)): seconds[task] = spent
    >>> seconds[0], seconds.median, seconds.largest
    (3.0, 2.0, 3.0)
    """

    def __init__(self) -> None:
        self._by_task: dict[int, float] = {}
        self._numbers: list[float] = []

    def __setitem__(self, task: int, seconds: float) -> None:
        if task in self._by_task:
            del self._numbers[bisect_left(self._numbers, self._by_task[task])]
        self._by_task[task] = seconds
        insort(self._numbers, seconds)

    def __getitem__(self, task: int) -> float:
        return self._by_task[task]

    def __contains__(self, task: int) -> bool:
        return task in self._by_task

    @property
    def median(self) -> float:
        """The middle one, or the mean of the middle two."""
        half, odd = divmod(len(self._numbers), 2)
        return self._numbers[half] if odd else (self._numbers[half - 1] + self._numbers[half]) / 2

    @property
    def largest(self) -> float:
        """0 if there is none."""
        return self._numbers[-1] if self._numbers else 0.0
