"""Figures that a notebook shows as they are."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A Figure that is shown as the last line of a cell, with no magic and no pyplot."""

    def _repr_png_(self) -> bytes:
        """The picture, as IPython asks for it."""
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
