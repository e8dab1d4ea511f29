"""Create, label and save matplotlib figures in the style that all figures of polarmap share."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from polarmap.errors import CodeError
from polarmap.optional import format_extras_install_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# These colours come from the colour-blind-safe palette of Okabe and Ito (2008). They also differ in
# lightness, so they can be told apart in greyscale.
TEXT_COLOR = "#222222"
BLUE = "#0072B2"
ORANGE = "#E69F00"
VERMILLION = "#D55E00"
GREEN = "#009E73"
SKY_BLUE = "#56B4E9"
GREY = "#8A8A8A"
LIGHT_GREY = "#D9D9D9"

DPI = 150
FigurePath = str | PathLike[str]


def new_figure(
    width: float, height: float, n_columns: int = 1, n_rows: int = 1, **subplot_options: Any
) -> tuple[Figure, Any]:
    """Create a figure of `width` x `height` inches with a grid of subplots.

    Returns the figure, and its axes as an array of shape (n_rows, n_columns).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        from polarmap.plot.notebook_figure import NotebookFigure
    except ImportError as error:
        raise CodeError(f"figures need matplotlib: {format_extras_install_command('plot')}") from error
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    figure = NotebookFigure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n_rows, n_columns, squeeze=False, **subplot_options)
    for subplot in axes.flat:
        style_axes(subplot)
    return figure, axes


def style_axes(axes: Axes) -> None:
    """Apply the common style to axes: only left and bottom borders, and a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=TEXT_COLOR, labelsize=9)
    axes.grid(color=LIGHT_GREY, linewidth=0.6)
    axes.set_axisbelow(True)


def label_axes(axes: Axes, title: str, x_label: str = "", y_label: str = "") -> None:
    """Set the title and the axis labels. The labels should include units."""
    axes.set_title(title, loc="left", fontsize=11, color=TEXT_COLOR)
    axes.set_xlabel(x_label, fontsize=10, color=TEXT_COLOR)
    axes.set_ylabel(y_label, fontsize=10, color=TEXT_COLOR)


def save_figure(figure: Figure, path: FigurePath | None) -> Figure:
    """Write the figure to `path`, unless `path` is None, and return the figure.

    The suffix of the path determines the format: .png, .svg or .pdf.
    """
    if path is not None:
        try:
            figure.savefig(path, dpi=DPI)
        except ValueError as error:  # matplotlib does not support the file suffix.
            raise CodeError(f"the figure cannot be written to {path}: {error}") from error
    return figure
