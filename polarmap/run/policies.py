"""Which tasks of a map start later: parity on demand, late ones once more."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from math import inf

from polarmap.codes.uncoded import DEFAULT_BACKUPS
from polarmap.executors.interface import AttemptId
from polarmap.run.lateness import LateAttempts, LatenessRule, ParityRule, backup_lateness
from polarmap.run.loop import Need, Policy
from polarmap.run.tasks import TaskTable


class OnDemand(Policy):
    """As many tasks as are needed start at once; others in the place of late and failed ones.

    Parameters
    ----------
    n : tasks.
    rule : when a task is late, and how many start in the place of late ones.
    upfront : parity tasks that start with the data.
    counts_decide : whether any `recovery_threshold` results determine the others, as of the rotation kernel.
    """

    def __init__(
        self,
        n: int,
        rule: ParityRule,
        upfront: int = 0,
        counts_decide: bool = True,
    ) -> None:
        started = min(n, rule.recovery_threshold + upfront)
        super().__init__(started)
        self._left: Sequence[int] = range(started, n)
        self._rule, self._counts_decide = rule, counts_decide
        self.late: LateAttempts[AttemptId] = LateAttempts(rule.lateness, at_once=started)

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """As many parity tasks as late and failed ones make necessary."""
        if not self._left or need.is_met or not need.is_protected:
            return ()
        late = self.late.late_at(now)
        if not late and tasks.running and self._counts_decide and not tasks.failed:
            return ()
        on_time = tasks.running.keys() - {index for index, _ in late}
        ended = len(tasks) - len(tasks.running) - len(tasks.failed) - len(tasks.held_back)
        returned = ended - (len(tasks.arrived) - len(need.counted))
        count = self._rule.parity_to_start(returned, len(on_time), len(self._left))
        if not (self._counts_decide and on_time):  # sparse codes, poor conditioning
            counted = on_time.union(need.counted)
            is_possible = len(counted) + count >= self._rule.recovery_threshold
            while is_possible and count < len(self._left):
                if need.would_be_met(counted.union(self._left[:count])):
                    break
                count += 1
        due, self._left = self._left[:count], self._left[count:]
        return due

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Until the next running task becomes late; one that waits for a slot begins now."""
        return self.late.next_seconds(bool(tasks.unbegun), now) if self._left else inf


class WithBackupsOf(Policy):
    """Another policy, and backups of one task for as long as the map waits for nothing but its result.

    Parameters
    ----------
    policy : Policy
        What starts all other tasks.
    n : int
        The number of tasks.
    task : int
        It evaluates f on its block and on some rows of it, so it is late after twice the time of the others.
    """

    def __init__(self, policy: Policy, n: int, task: int) -> None:
        super().__init__(0)
        self.first, self._policy, self._task = policy.first, policy, task
        self.late = policy.late or LateAttempts(backup_lateness(n))

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """Return what the other policy starts; the awaited task if its latest attempt is late."""
        if need.awaited_task != self._task:
            return self._policy.due(tasks, need, now)
        task, running = tasks[self._task], tasks.running.get(self._task)
        began = task.began.get(max(running)) if running else None
        late = self.late
        assert late is not None
        if began is None or task.backups >= DEFAULT_BACKUPS or now < began + 2 * late.late_after():
            return ()
        task.backups += 1
        return (self._task,)

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Return the seconds of the other policy: a map that awaits a task looks often."""
        return self._policy.wait_seconds(tasks, now)


def with_backups(n: int, most: int) -> Policy:
    """All tasks start at once, late ones so often once more; where that is never, nobody asks who is late."""
    return Backups(n, backup_lateness(n), most) if most else Policy(n)


class Backups(Policy):
    """All tasks start at once, and a late one once more: whichever attempt returns first counts.

    Parameters
    ----------
    n : tasks.
    rule : when a task is late; one that waits for a slot is not.
    most : backups that one task may get; a backup may become late itself.
    """

    def __init__(self, n: int, rule: LatenessRule, most: int) -> None:
        super().__init__(n)
        self._most = most
        self.late: LateAttempts[AttemptId] = LateAttempts(rule)
        self._kinds = weakref.WeakSet([self.late])

    def add(self, attempts: LateAttempts[AttemptId]) -> None:
        """There are tasks of one more kind, of which these attempts are, as long as somebody has them."""
        self._kinds.add(attempts)

    def due(self, tasks: TaskTable, need: Need, now: float) -> Sequence[int]:
        """The tasks whose latest attempt is late."""
        late = set().union(*(kind.late_at(now) for kind in self._kinds))
        due = sorted(task for task, attempt in late if attempt == max(tasks.running[task]))
        due = [task for task in due if tasks[task].backups < self._most]
        for task in due:
            tasks[task].backups += 1
        return due

    def wait_seconds(self, tasks: TaskTable, now: float) -> float:
        """Until the next attempt becomes late; one that is not known to run may begin now."""
        unbegun = any(tasks[task].backups < self._most for task in tasks.unbegun)
        return min(kind.next_seconds(unbegun, now) for kind in self._kinds)
