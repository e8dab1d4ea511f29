"""Tests of figures that display themselves in a notebook."""

from __future__ import annotations

import pickle
from typing import Any

from polarmap.plot.notebook_figure import NotebookFigure


def test_a_figure_is_a_png() -> None:
    figure = NotebookFigure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_figure_can_be_pickled() -> None:
    copy: Any = pickle.loads(pickle.dumps(NotebookFigure(figsize=(2, 1))))
    assert type(copy) is NotebookFigure
    assert copy.get_size_inches().tolist() == [2, 1]
