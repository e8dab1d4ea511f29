"""Provide the command line as a function."""

from __future__ import annotations

import sys
import warnings

import pytest
from command_lines import Ran, Run

from polarmap.cli import main


@pytest.fixture
def polarmap(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command line in this process."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["polarmap", *map(str, arguments)])
        code = main()
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main() replaces this function.
    return run
