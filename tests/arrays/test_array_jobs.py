"""Tests of tasks that read and store parts, in this process and on workers."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from polarmap.arrays.array_jobs import ArrayJobRunner, SegmentTaskBlocks
from polarmap.arrays.stores import SegmentStore
from polarmap.driver.events import PLAIN_CONTEXT, EventStream, JobContext, Observer, StripesEncoded
from polarmap.errors import NotDecodableError
from polarmap.storage.folder import FolderStore
from polarmap.testing import ReplayExecutor
from polarmap.worker.segments import Segment
from polarmap.worker.task_records import OutputSpec

TASKS = 5
FLOATS = [np.dtype("f8")]


class Counts(Observer):
    """An observer that records the progress of tasks in this process."""

    def __init__(self):
        self.shown = []

    def on_event(self, event):
        if isinstance(event, StripesEncoded):
            self.shown.append((event.n_done, event.n_stripes))


@pytest.fixture
def folder(tmp_path):
    """Return a store whose objects 0, 1, 2, ... each contain their number 1,000 times."""
    store = FolderStore(tmp_path)
    for task in range(TASKS):
        store.put(f"in/{task}", np.full(1_000, float(task)).tobytes())
    return store


def parts():
    return [[Segment(f"in/{task}", 8_000)] for task in range(TASKS)]


def output(folder):
    return OutputSpec(SegmentStore(folder).location, "out", 1_000)


def double_with_note(blocks):
    return [2 * blocks[0], np.arange(300) + blocks[0][0]]


@pytest.mark.parametrize("executor", [None, ReplayExecutor()], ids=["here", "workers"])
def test_arrays_are_stored_and_notes_are_returned_completely(folder, executor):
    # A worker sends only a sample of such a long note, so the driver reads the whole note from storage.
    notes, where, observer = {}, {}, Counts()

    def put(task, number, array):
        folder.put(f"out/{task}", array.tobytes())
        return Segment(f"out/{task}", array.nbytes)

    def take(task, stored, note):
        where[task], notes[task] = stored, note.tolist()

    runner = ArrayJobRunner(SegmentStore(folder), executor, JobContext(EventStream([observer])))
    runner.run_tasks(
        double_with_note,
        SegmentTaskBlocks(SegmentStore(folder), parts(), FLOATS),
        take,
        output(folder),
        put,
    )
    assert notes == {task: list(range(task, task + 300)) for task in range(TASKS)}
    for task, [part] in where.items():
        np.testing.assert_array_equal(np.frombuffer(folder.get(part.key)), np.full(1_000, 2.0 * task))
    assert observer.shown == ([] if executor else [(done, TASKS) for done in range(TASKS + 1)])


def test_the_next_task_is_computed_while_a_result_is_stored(folder):
    computed = threading.Event()

    def f(blocks):
        if blocks[0][0] == 1:
            computed.set()
        return [blocks[0], np.zeros(1)]

    def put(task, number, array):
        assert computed.wait(60)
        return Segment("out", array.nbytes)

    tasks = SegmentTaskBlocks(SegmentStore(folder), parts(), FLOATS)
    ArrayJobRunner(SegmentStore(folder), None, PLAIN_CONTEXT).run_tasks(
        f, tasks, lambda *_: None, output(folder), put
    )


def test_a_failing_storage_ends_the_tasks_without_reporting_the_failed_task(folder):
    reported_tasks, computed, before = [], [], set(threading.enumerate())

    def f(blocks):
        computed.append(int(blocks[0][0]))
        return [blocks[0], np.zeros(1)]

    def put(task, number, array):
        if task == 1:
            raise OSError("full")
        return Segment(f"out/{task}", array.nbytes)

    tasks = SegmentTaskBlocks(SegmentStore(folder), parts(), FLOATS)
    with pytest.raises(OSError, match="full"):
        ArrayJobRunner(SegmentStore(folder), None, PLAIN_CONTEXT).run_tasks(
            f, tasks, lambda task, *_: reported_tasks.append(task), output(folder), put
        )
    assert (computed, reported_tasks) == ([0, 1, 2], [0])
    assert set(threading.enumerate()) <= before


def test_the_error_for_a_missing_part_names_it(folder):
    folder.delete(["in/3"])
    tasks = SegmentTaskBlocks(SegmentStore(folder), parts(), FLOATS)
    with pytest.raises(NotDecodableError, match=r"in/3 is missing\. It was intact when"):
        ArrayJobRunner(SegmentStore(folder), None, PLAIN_CONTEXT).run_tasks(
            lambda blocks: [np.zeros(1)], tasks, lambda *_: None
        )
