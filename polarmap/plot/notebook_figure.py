"""A matplotlib figure that displays itself in notebooks."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A Figure that a notebook displays without pyplot or magic commands."""

    def _repr_png_(self) -> bytes:
        """Return the figure as PNG, for IPython."""
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
