"""Sessions on pools of futures that the test controls. tests/maps runs complete maps on real pools."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain import ends

from polarmap.blocks.uneven import UncodedBlocks
from polarmap.executors import temp_folders
from polarmap.executors.futures import FuturesExecutor
from polarmap.executors.interface import AttemptStarted, JobSpec, Outcome
from polarmap.worker.processes import ProcessIdentity

DATA = [np.arange(3.0) + task for task in range(3)]
BLOCKS = UncodedBlocks([[block] for block in DATA], ("array",))


class ManualPool:
    """A pool that runs each call when the test calls `run`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Future[Any], Any, tuple[Any, ...]]] = []

    def submit(self, call: Any, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.calls.append((future, call, arguments))
        return future

    def run(self, number: int) -> None:
        future, call, arguments = self.calls[number]
        future.set_result(call(*arguments))


def test_outcomes_come_in_the_order_of_their_ends() -> None:
    pool = ManualPool()
    with closing(FuturesExecutor(pool).open(JobSpec(np.negative, BLOCKS))) as run:
        run.submit([(0, 0), (1, 0), (2, 0)])
        pool.run(2)
        pool.run(0)
        events = run.wait(1.0)
        began = [event for event in events if isinstance(event, AttemptStarted)]
        assert [(event.task, event.is_confirmed) for event in began] == [(0, True), (1, False), (2, True)]
        assert [outcome.task for outcome in ends(events)] == [2, 0]
        for outcome in ends(events):
            np.testing.assert_array_equal(outcome.leaves[0], -DATA[outcome.task])


def test_folder_of_a_session_names_its_owner() -> None:
    # The name lets a later process remove the folder if this process is killed.
    with closing(FuturesExecutor(ManualPool()).open(JobSpec(np.negative, BLOCKS))) as run:
        assert run._folder_token is not None
        folder = Path(run._folder_token.folder)
        assert folder.name.startswith(ProcessIdentity.current().folder_prefix)
    assert not folder.exists()


def test_tasks_dropped_by_the_pool_are_lost() -> None:
    pool = ManualPool()
    with closing(FuturesExecutor(pool).open(JobSpec(np.negative, BLOCKS))) as run:
        run.submit([(0, 0), (1, 0), (2, 0)])
        pool.calls[0][0].cancel()
        pool.calls[1][0].set_exception(OSError("node down"))
        assert run._folder_token is not None
        shutil.rmtree(run._folder_token.folder)
        pool.run(2)
        texts = [str(outcome.failure) for outcome in ends(run.wait(1.0))]
    assert texts == [
        "WorkerLost: ManualPool was shut down, or cancelled the task before it started",
        "WorkerLost: OSError: node down",
        f"WorkerLost: its folder {run._folder_token.folder} was removed",
    ]


def test_task_waiting_for_a_thread_has_not_started() -> None:
    gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate.wait, 60)
        with closing(FuturesExecutor(pool).open(JobSpec(np.negative, BLOCKS))) as run:
            run.submit([(0, 0)])
            assert run.wait(0.0) == []
            gate.set()
            assert [type(event) for event in run.wait(60.0)] == [AttemptStarted, Outcome]


def test_tasks_sent_to_remote_workers_count_as_started() -> None:
    # Workers on this machine mark started tasks in a folder. Remote workers cannot see the folder, so their
    # tasks count as started.
    for marks, expected in ((False, {0, 1}), (True, {0})):
        pool = ManualPool()
        with closing(FuturesExecutor(pool).open(JobSpec(np.negative, BLOCKS))) as run:
            run.submit([(0, 0), (1, 0)])
            assert [event.is_confirmed for event in run.wait(0.0)] == [False, False]
            if marks:
                run._get_cancel_token(0, 0).mark_started()
            assert {event.task for event in run.cancel_queued()} == expected


def test_task_cancelled_in_the_queue_does_not_start() -> None:
    gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gate.wait, 60)
        with closing(FuturesExecutor(pool).open(JobSpec(np.negative, BLOCKS))) as run:
            run.submit([(0, 0), (1, 0)])
            assert run.cancel_queued() == []
            gate.set()
    assert run._thread_tokens[0, 0].started_at is None


def test_cancelled_task_does_not_run_if_its_pool_starts_it() -> None:
    pool = ManualPool()
    with closing(FuturesExecutor(pool).open(JobSpec(np.negative, BLOCKS))) as run:
        run.submit([(0, 0), (1, 0)])
        pool.run(0)  # the task marks its start, which shows that workers can see the folder
        run.wait(1.0)
        assert run.cancel_queued() == []
        _, call, arguments = pool.calls[1]
        assert call(*arguments) is None


def test_cancelled_task_does_not_start_while_its_folder_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    are_cancelled = []

    def check_before_removal(folder: str) -> None:
        # The file that cancels the task may be deleted before the folder.
        for file in Path(folder).iterdir():
            file.unlink()
        are_cancelled.append(token.is_cancelled())
        shutil.rmtree(folder)

    run = FuturesExecutor(ManualPool()).open(JobSpec(np.negative, BLOCKS))
    run.submit([(0, 0)])
    token = run._get_cancel_token(0, 0)
    token.cancel()
    monkeypatch.setattr(temp_folders, "remove_tree", check_before_removal)
    run.close()
    assert are_cancelled == [True] and not os.path.exists(token.folder)
