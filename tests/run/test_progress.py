"""Who looks on while a map runs, as its progress= says."""

from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import polarmap
from polarmap.errors import CodeError
from polarmap.run.progress import ProgressBar, observers_of
from polarmap.run.running_map import Observer, RunningMap, blank_report, counting
from polarmap.run.tasks import TaskTable


def test_progress_says_who_looks_on(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = (Observer(),)
    assert observers_of(mine) is mine
    monkeypatch.setattr("polarmap.run.progress.log_observers", lambda: ())
    assert observers_of(False) == ()
    [bar] = observers_of(np.True_)
    assert isinstance(bar, ProgressBar)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert observers_of(None) == ()
    monkeypatch.setattr(sys, "stderr", None)
    assert observers_of(None) == ()
    for progress in ("yes", (1,)):
        with pytest.raises(CodeError, match=r"progress must be True, False or None, not .*(yes|1)"):
            observers_of(progress)


def test_a_bar_counts_arrivals_and_stripes(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar()
    bar.began(RunningMap(blank_report(8, 6, 6, "", ""), TaskTable(8)))
    bar.looked(5)
    bar.finished(RuntimeError())
    with counting((bar,), 4) as show:
        show(3)
    text = capsys.readouterr().err
    assert "0/8 arrived, 6 needed" in text
    assert "5/8 arrived, 6 needed" in text
    assert "3/4 stripes" in text


def test_maps_at_the_same_time_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        sizes = (4, 6), (8, 10), (5, 7)
        futures = [
            polarmap.submit(np.negative, np.eye(8), blocks=k, workers=n, executor=pool, progress=True)
            for k, n in sizes
        ]
        for future in futures:
            future.result(60.0)
    text = capsys.readouterr().err
    assert all(f"/{n} arrived, {k} needed" in text for k, n in sizes)
