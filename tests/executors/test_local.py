"""Jobs on this machine: how many there are, who gives way, and what is left of them."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polarmap import Fault
from polarmap.blocks.uneven import PartBlocks
from polarmap.code.uncoded import Uncoded
from polarmap.executors import local
from polarmap.executors.base import Outcome, Payload
from polarmap.executors.local import PARITY_NICE, LocalhostExecutor, LocalhostRun
from polarmap.executors.private_folder import private_folder
from polarmap.executors.slots import first_slots
from polarmap.worker.cores import available_cores

PATIENCE = 60.0


def opened(f: Any, n: int = 4, **more: Any) -> LocalhostRun:
    blocks = PartBlocks([[np.full(2, float(task))] for task in range(n)], ("array",), Uncoded(n))
    return LocalhostExecutor().open(Payload(f, blocks, **more))


def outcomes_of(run: LocalhostRun, count: int) -> list[Outcome]:
    found: list[Outcome] = []
    deadline = time.monotonic() + PATIENCE
    while len(found) < count:
        assert time.monotonic() < deadline
        found += run.wait(0.5)
    return found


def files() -> list[Path]:
    """Of maps, in the private folder."""
    own = {"python", "paths", "this-python", "localhost-runner.log"}
    return [path for path in private_folder().rglob("*") if path.is_file() and path.name not in own]


def test_what_has_low_priority_gives_way_in_its_first_attempt() -> None:
    with closing(opened(lambda block: np.array([os.nice(0)]), low_priority=range(2, 4))) as run:
        run.submit([0, 1, 2])
        first = {one.task: int(one.leaves[0][0]) for one in outcomes_of(run, 3) if one.leaves}
        run.submit([2, 3])
        later = {one.task: int(one.leaves[0][0]) for one in outcomes_of(run, 2) if one.leaves}
    usual = first[0]
    assert first == {0: usual, 1: usual, 2: min(19, usual + PARITY_NICE)}
    assert later == {2: usual, 3: usual}


def test_tasks_that_sleep_do_not_keep_others_from_starting() -> None:
    n = 2 * available_cores() + 6
    faults = {task: Fault("sleep", 600.0) for task in range(n - 1)}
    with closing(opened(np.copy, n, faults=faults)) as run:
        run.submit(range(n))
        [outcome] = outcomes_of(run, 1)
    assert outcome.task == n - 1


def test_nothing_is_left_even_if_nothing_was_started() -> None:
    before = files()
    opened(np.copy).close()
    with closing(opened(np.copy)) as run:
        run.submit(range(4))
        outcomes_of(run, 1)
    assert files() == before


def test_looking_before_anything_was_submitted_finds_nothing() -> None:
    with closing(opened(np.copy)) as run:
        assert run.wait(0.0) == []


def test_slots_that_start_processes_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(opened(np.copy, 12)) as run:
        run.submit(range(12))
        waiting = list(run._running)
        assert run._slots_of(waiting) == first_slots(available_cores())
        assert run._slots_of([]) == 0
        monkeypatch.setattr(local, "BOOT_SECONDS", -1.0)  # nothing has begun for long
        assert run._slots_of(waiting) == 0
        assert len(outcomes_of(run, 12)) == 12
