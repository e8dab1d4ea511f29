"""The view of `progress="live"`: maps share it, and it is closed with the last of them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from polarmap.live import activation, terminal, views
from polarmap.live.snapshots import ProgramSnapshot

PROGRAM = """
import numpy as np
import polarmap
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

def double(block):
    return 2 * block

"""


class RecordedView:
    """A view that records its calls in `calls`."""

    calls: list[str]

    def __init__(self, take_snapshot: Any) -> None:
        self.take_snapshot = take_snapshot

    def start(self) -> None:
        self.calls.append("start")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Replace the terminal's view by one that records its calls."""
    recorded: list[str] = []
    monkeypatch.setattr(RecordedView, "calls", recorded, raising=False)
    monkeypatch.setattr(terminal, "TerminalView", RecordedView)
    monkeypatch.setattr(views, "activate_until_exit", activation.activate)
    yield recorded
    while activation.active_hub is not None:
        activation.deactivate()


def run_program(text: str) -> str:
    """Run a program whose standard error is not a terminal, and return what it wrote there."""
    command = [sys.executable, "-c", PROGRAM + textwrap.dedent(text)]
    environment = {**os.environ, "POLARMAP_LIVE": ""}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stderr


def test_users_share_the_view_until_the_last_one_closes_it(calls: list[str]) -> None:
    views.open_view(is_in_notebook=False)
    views.open_view(is_in_notebook=False)
    views.close_view()
    assert calls == ["start"]
    views.close_view()
    assert calls == ["start", "close"]


def test_map_without_a_terminal_writes_plain_lines() -> None:
    error_output = run_program(
        "executor = ReplayExecutor()\n"
        "polarmap.coded_map(double, np.ones(12), blocks=3, tasks=5, executor=executor, progress='live')"
    )
    assert "3 needed, 4 arrived, done in" in error_output and "\x1b" not in error_output


def test_map_that_fails_closes_its_view() -> None:
    error_output = run_program(
        """
        from polarmap.live import views

        executor = FaultyExecutor(ReplayExecutor(), {0: Fault("raise", attempts=9)})
        try:
            polarmap.hedged_map(double, [np.ones(2)], executor=executor, progress="live")
        except Exception as error:
            print(type(error).__name__)
        assert views._view is None
        """
    )
    assert "failed after" in error_output


def test_products_of_an_operator_share_a_view(calls: list[str]) -> None:
    import numpy as np

    from polarmap import CodedOperator
    from polarmap.testing import ReplayExecutor

    with CodedOperator(np.eye(9), blocks=3, executor=ReplayExecutor(), progress="live") as operator:
        operator @ np.ones(9)
        operator @ np.ones(9)
        assert calls == ["start"]
    assert calls == ["start", "close"]


def test_object_outside_of_a_notebook_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    def take_snapshot(is_final: bool) -> ProgramSnapshot:
        raise AssertionError("must not be called")

    views.display_in_notebook("an object", take_snapshot, lambda: True)
    assert capsys.readouterr().out == "'an object'\n"
