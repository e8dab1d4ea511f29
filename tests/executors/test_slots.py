"""How many tasks run at once on one machine."""

from __future__ import annotations

import pytest

from polarmap.executors.slots import extra_slots, first_slots


@pytest.mark.parametrize("queued", [0, 1, 50])
def test_no_more_slots_than_tasks_that_wait_and_none_while_the_cores_are_busy(queued: int) -> None:
    assert extra_slots(cores=4, busy=4, idle=20, queued=queued) == 0
    assert extra_slots(cores=4, busy=0, idle=20, queued=queued) == min(queued, 10)
    assert extra_slots(cores=4, busy=1, idle=0, queued=queued) == min(queued, 3)


def test_a_few_more_tasks_than_cores_run_at_first() -> None:
    assert first_slots(2) > 2
