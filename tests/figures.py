"""Checks that every figure must pass, and reports to draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from polarmap import coded_map
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from polarmap.types import Report


def rendered(figure: Figure) -> None:
    """Check that a figure can be drawn and is not empty, without drawing it twice as saving would."""
    figure.set_dpi(50)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert np.ptp(np.asarray(canvas.buffer_rgba())) > 0


def report_of(
    seconds: Mapping[int, float], faults: Mapping[int, Fault] | None = None, **options: Any
) -> Report:
    """Return the report of a map with six blocks and three parity blocks."""
    executor = FaultyExecutor(ReplayExecutor(seconds), faults or {})
    return coded_map(np.negative, list(np.ones((6, 4))), tasks=9, executor=executor, **options).report


KILLED = {2: Fault("kill", attempts=9)}
