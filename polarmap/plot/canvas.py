"""The look that all figures share."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from polarmap.clouds.extras import install_command
from polarmap.errors import CodeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart by colour-blind readers; from dark to light, so in greyscale too.
INK = "#222222"
BLUE = "#0072B2"
ORANGE = "#E69F00"
VERMILLION = "#D55E00"
GREEN = "#009E73"
SKY = "#56B4E9"
GREY = "#8A8A8A"
PALE = "#D9D9D9"

DPI = 150
Path = str | PathLike[str]


def blank(width: float, height: float, columns: int = 1, rows: int = 1, **shared: Any) -> tuple[Figure, Any]:
    """Make a figure of so many inches and its axes, an array (rows, columns) of Axes; a notebook shows it."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        from polarmap.plot.shown_figure import ShownFigure
    except ImportError as error:
        raise CodeError(f"figures need matplotlib: {install_command('plot')}") from error
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    figure = ShownFigure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    for one in axes.flat:
        plain(one)
    return figure, axes


def plain(axes: Axes) -> None:
    """Style axes: two spines, a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)


def titled(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """Set the title, on the left, and the labels, which name units."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(x, fontsize=10, color=INK)
    axes.set_ylabel(y, fontsize=10, color=INK)


def saved(figure: Figure, path: Path | None) -> Figure:
    """Return the figure, also written to `path` if there is one; its ending says the format."""
    if path is not None:
        try:
            figure.savefig(path, dpi=DPI)
        except ValueError as error:  # an ending matplotlib does not know
            raise CodeError(f"the figure cannot be written to {path}: {error}") from error
    return figure
