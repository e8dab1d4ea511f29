"""Tests of properties that all figures share: their formats, and that they change no global state."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from polarmap.errors import CodeError
from polarmap.planning import (
    plot_run_times,
)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CodeError, match="cannot be written"):
        plot_run_times([1.0, 2.0], tmp_path / "figure.nonsense")


def test_no_figure_touches_pyplot() -> None:
    code = (
        "import sys; from polarmap.planning import plot_polarization, load_training_trace; "
        "plot_polarization(load_training_trace(), depths=(1,)); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
