"""Cores of this process."""

from __future__ import annotations

import os

import pytest

from polarmap.worker.cores import available_cores


def test_no_more_than_the_machine_has_and_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert available_cores() == (os.cpu_count() or 1)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1
