"""What a map tells of itself before, while and after it runs; stripes that are counted."""

from __future__ import annotations

from run.test_execute import Diary

import polarmap
from polarmap import ReplayExecutor
from polarmap.blocks.uneven import PartBlocks
from polarmap.executors.base import Payload
from polarmap.run.first_results import FirstResults
from polarmap.run.need import Stopwatch
from polarmap.run.running_map import RunningMap, counting
from polarmap.run.tasks import TaskTable


def test_a_map_may_be_asked_and_woken_whenever_anybody_wants() -> None:
    running = RunningMap(ReplayExecutor())
    running.expect(polarmap.PolarCode(4, 3), padding=2)
    blank = running.report()
    assert (blank.n, blank.k, blank.padding, blank.is_final) == (4, 3, 2, False)
    running.wake()
    run = running.executor.open(Payload(abs, PartBlocks([], ())))
    need = FirstResults(print, False, str, TaskTable(4), Stopwatch(run.now))
    running.run, running.need = run, need
    need.tasks.start([0, 1], 0.0)
    assert [task.state for task in running.report().tasks] == ["running"] * 2 + ["not started"] * 2
    running.run = running.need = None
    running.wake()
    assert running.report() is blank


def test_stripes_are_counted_from_none_to_the_end() -> None:
    diary = Diary()
    with counting((diary,), 3) as show:
        show(2)
    assert diary.told == [("counted", 0, 3), ("counted", 2, 3), ("finished", type(None))]
