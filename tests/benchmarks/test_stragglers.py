"""Check the jobs with real stragglers: sleep times, billed seconds, cubed's function, and the page."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock

import numpy as np
import pytest

import polarmap
from benchmarks import ROOT, stragglers
from benchmarks.cubed_backups import map_with_backups
from benchmarks.pages import replace_parts
from benchmarks.sleeping_jobs import SleepingJob, SlowWorkers, count_worker_seconds
from benchmarks.stragglers import PLAIN
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor


def test_every_attempt_of_a_task_has_a_separate_run_time(tmp_path: Path) -> None:
    job = SleepingJob(tmp_path, np.array([[0.0, 0.0], [0.02, 0.0]]))
    assert [job(0), job(1), job(0)] == [0, 1, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-0", "0-1", "1-0"]
    began, ended = map(float, (tmp_path / "0-1").read_text().split())
    assert ended - began >= 0.02
    with pytest.raises(RuntimeError, match="task 0 was started more than 2 times"):
        job(0)


def test_worker_seconds_end_with_the_job(tmp_path: Path) -> None:
    job = SleepingJob(tmp_path, np.zeros((2, 2)))
    for name, times in {"0-0": "1.0\n2.0\n", "1-0": "1.0\n", "1-1": "3.0\n9.0\n", "0-1": "7.0\n"}.items():
        (tmp_path / name).write_text(times)
    assert job.worker_seconds(end_at=4.0) == 1.0 + 3.0 + 1.0 + 0.0


def test_coded_maps_are_billed_until_their_results_are_determined() -> None:
    # Three tasks take 1 to 3 s and one sleeps: two results determine the rest.
    times = {task: Fault("sleep", seconds) for task, seconds in enumerate([1.0, 60.0, 2.0, 3.0])}
    slow = FaultyExecutor(ReplayExecutor(), times)
    report = polarmap.coded_map(abs, [np.ones(2), np.ones(2)], tasks=4, executor=slow, verify=False).report
    latest = report.seconds
    paid = [min(latest, task.seconds or latest) for task in report.tasks]
    assert latest < 60 and count_worker_seconds(report) == pytest.approx(sum(paid))


def test_a_straggler_gets_a_backup_by_cubed(capsys: pytest.CaptureFixture[str]) -> None:
    lock, begun, is_over = Lock(), Counter[int](), Event()

    def f(task: int) -> int:
        with lock:
            begun[task] += 1
            is_backup = begun[task] == 2
        if is_backup:
            is_over.set()
        elif task == 5:
            is_over.wait(60)
        return task

    with ThreadPoolExecutor(14) as pool:
        assert set(map_with_backups(pool, f, range(12))) == set(range(12))
    assert begun[5] == 2
    assert capsys.readouterr().out == ""


def test_cubed_raises_the_exception_of_a_task() -> None:
    with ThreadPoolExecutor(2) as pool, pytest.raises(ZeroDivisionError):
        map_with_backups(pool, lambda task: 1 // task, range(2))


def test_every_scheme_on_the_pool_runs_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"K": 3, "N": 4, "BLOCKS": stragglers.BLOCKS[:3]}.items():
        monkeypatch.setattr(stragglers, name, value)
    with stragglers.pool_schemes() as schemes:
        taken = {name: run(np.full((stragglers.ATTEMPTS, 4), 0.02)) for name, run in schemes.items()}
    assert len(taken) == 6
    for one in taken.values():
        # A job awaits six of the eight tasks per worker.
        assert one.seconds >= 0.015 and one.worker_seconds >= 0.06


def test_each_worker_sleeps_for_its_drawn_time(tmp_path: Path) -> None:
    # One of two workers hangs, and the other one computes all the rest.
    slow = SlowWorkers(tmp_path)
    slow.set_sleep_seconds(np.array([0.0, 60.0]))
    assert slow(2) == 4  # The driver does not sleep.
    maps = 0
    with polarmap.Pool(workers=2) as pool:
        blocks = [np.full(2, float(block)) for block in range(6)]
        # The first worker may finish everything before the second has started.
        while not (tmp_path / "1").exists():
            maps += 1
            results = polarmap.coded_map(slow, blocks, tasks=8, executor=pool, progress=False)
            assert np.allclose(list(results), np.multiply(2, blocks)) and results.report.seconds < 60
    # A later map does not wait for a worker that still hangs in the map before: a new one replaces it.
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"seconds", *map(str, range(len(names) - 1))}
    assert 2 <= len(names) - 1 <= 1 + maps


def test_the_page_has_ratios_of_the_same_jobs() -> None:
    def jobs(*seconds: float) -> np.ndarray:
        return np.array([(one, 10.0, 0.5) for one in seconds])

    times = {"a law": {PLAIN: jobs(2, 4, 8), "Lithops": jobs(4, 4, 4), "coded": jobs(1, 1, 1)}}
    parts = stragglers.make_page_parts(times, unit_seconds=0.2, load_average=1.25)
    assert (parts["jobs"], parts["load"], parts["began"]) == ("3", "1.2", "0.10")
    text = replace_parts((ROOT / "docs" / "real-jobs.md").read_text(), parts)
    assert "<!-- jobs -->3<!-- end --> jobs of each distribution" in text
    assert "| plain map | 4.00 | 3.00-6.00 | 7.92 | 1.00 | 1.00 |" in text
    assert "| coded | 1.00 | 1.00-1.00 | 1.00 | 0.25 | 1.00 |" in text
