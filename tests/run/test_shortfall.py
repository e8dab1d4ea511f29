"""What is said where tasks do not give what is needed of them."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from run.test_policies import Wanted, lost, returned

from polarmap.executors.base import Failure
from polarmap.run.shortfall import late, not_finite, too_few
from polarmap.run.tasks import TaskTable


def needing(count: int, n: int) -> Wanted:
    tasks = TaskTable(n)
    tasks.start(range(n), 0.0)
    return Wanted(tasks, count)


def test_what_came_and_what_runs_is_counted_and_the_failures_are_named() -> None:
    tasks = needing(4, 4).tasks
    tasks.note(returned(0), 1.0)
    tasks.note(lost(1), 1.0)
    failed = "; failed 1 task: WorkerLost"
    assert late(tasks, 4, 2.5) == f"1 of 4 needed results arrived within 2.5 s, 2 tasks still run{failed}"
    assert too_few(tasks, 4) == (f"only 3 of 4 needed results can arrive: 1 did, 2 tasks still run{failed}")
    tasks.note(lost(2), 1.0)
    assert too_few(tasks, 4).startswith("only 2 of 4 needed results can arrive: 1 did, 1 task still")
    tasks.note(lost(3), 1.0)
    failed = "; failed 3 tasks: WorkerLost"
    assert too_few(tasks, 4) == f"1 of 4 needed results arrived, and no more can come{failed}"
    assert not_finite(tasks, 4, 1).endswith(f"not all data tasks reported: 1 of 4{failed}")


@pytest.mark.parametrize(
    ("spare", "returns", "raises"), [(2, False, True), (3, False, False), (2, True, False)]
)
def test_what_f_raises_everywhere_is_raised_before_all_have_said_so(
    spare: int, returns: bool, raises: bool
) -> None:
    need, error = needing(8 - spare, 8), KeyError("x")
    if returns:
        need.tasks.note(returned(7), 1.0)
    for index in range(3):
        need.check_failures()
        need.tasks.note(lost(index)._replace(failure=Failure("raised", "KeyError", "x", error)), 1.0)
    with pytest.raises(KeyError) if raises else nullcontext() as raised:
        need.check_failures()
    assert raises == (raised is not None and raised.value is error)
