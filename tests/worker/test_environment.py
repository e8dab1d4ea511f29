"""Tests of the number of cores that f may use."""

from __future__ import annotations

import os

import pytest

from polarmap.worker.environment import count_available_cores


def test_available_cores_are_at_most_those_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 1 <= count_available_cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert count_available_cores() == (os.cpu_count() or 1)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_available_cores() == 1
