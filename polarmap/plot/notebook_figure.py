"""A matplotlib figure that displays itself in notebooks."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A matplotlib Figure that notebooks display automatically, without pyplot or magic commands."""

    def _repr_png_(self) -> bytes:
        """Return the figure as PNG bytes. IPython calls this method to display the figure."""
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
