"""Figures for planning: run times, the polarization of virtual workers, and the time and cost of a plan."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from polarmap.errors import CodeError
from polarmap.planning.distributions import Distribution, Floats
from polarmap.planning.empirical import Empirical, as_distribution
from polarmap.planning.polarization import polarize
from polarmap.plot import figure_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_POINTS = 600  # The number of points per curve.
MAX_DEPTH = 12  # The maximum recursion depth that can be drawn, with 4,096 lines in a panel.
MIN_SURVIVAL = 1e-4  # Figures leave out the tail of the slowest tasks, where P(T > t) is smaller.


def plot_run_times(
    run_times: object,
    path: figure_style.FigurePath | None = None,
    *,
    fitted_distribution: Distribution | None = None,
) -> Figure:
    """Plot a histogram of run times and their survival function.

    Parameters
    ----------
    run_times : Distribution, run times in seconds, or reports of coded maps
        The run time of one task.
    path : str or path, optional
        The file to write the figure to: .png, .svg or .pdf. By default, the figure is only returned.
    fitted_distribution : Distribution, optional
        A fitted distribution to draw into the same figure for comparison.

    Returns
    -------
    matplotlib.figure.Figure
    """
    distribution = as_distribution(run_times)
    figure, (axes,) = figure_style.new_figure(9.5, 3.8, n_columns=2)
    times = _make_time_grid(distribution)
    _draw_density(axes[0], distribution, times)
    _draw_survival(axes[1], distribution, times, fitted_distribution)
    return figure_style.save_figure(figure, path)


def plot_polarization(
    run_times: object, path: figure_style.FigurePath | None = None, *, depths: tuple[int, ...] = (0, 1, 3, 8)
) -> Figure:
    """Plot how the run times of virtual workers polarize into fast and slow ones.

    Each panel shows the cdfs of all virtual workers (see `polarize`) at one depth of the recursion. With
    increasing depth, the curves become steeper and approach step functions.

    Parameters
    ----------
    run_times : Distribution, run times in seconds, or reports of coded maps
        The run time of one task.
    path : str or path, optional
        The file to write the figure to: .png, .svg or .pdf. By default, the figure is only returned.
    depths : tuple of int
        The recursion depth of each panel. At depth d, there are 2^d virtual workers.

    Returns
    -------
    matplotlib.figure.Figure
    """
    distribution = as_distribution(run_times)
    if not depths or not all(0 <= depth <= MAX_DEPTH for depth in depths):
        raise CodeError(f"depths must be one or more numbers from 0 to {MAX_DEPTH}, not {depths}")
    figure, axes = figure_style.new_figure(2.7 * len(depths) + 0.9, 3.6, n_columns=len(depths), sharey=True)
    times = _make_time_grid(distribution)
    cdf, survival = distribution.cdf_and_survival(times)
    for panel, depth in zip(axes[0], depths):
        _draw_virtual_cdfs(panel, times, cdf, 1 - polarize(survival, depth))
    _add_legend(axes[0, int(np.argmax(depths))])
    axes[0, 0].set_ylabel("probability of completion by then", fontsize=10, color=figure_style.TEXT_COLOR)
    return figure_style.save_figure(figure, path)


def _make_time_grid(distribution: Distribution) -> Floats:
    """Return evenly spaced times, in seconds, that cover the run times of nearly all tasks."""
    completion_probability = 1 - distribution.failure_probability
    p = np.array([1e-4, 1 - 10 * MIN_SURVIVAL]) * completion_probability
    first_time, last_time = distribution.quantile(p).tolist()
    span = last_time - first_time
    return np.linspace(max(0.0, first_time - 0.1 * span), last_time + 0.05 * span + 1e-9, N_POINTS)


def _draw_density(axes: Axes, distribution: Distribution, times: Floats) -> None:
    edges = np.linspace(times[0], times[-1], 60)
    percentages, widths = 100 * np.diff(distribution.cdf(edges)), np.diff(edges)
    style: dict[str, Any] = {"color": figure_style.BLUE, "edgecolor": "white", "lw": 0.4}
    axes.bar(edges[:-1], percentages, widths, align="edge", **style)
    count_text = f" ({distribution.n_observations} tasks)" if isinstance(distribution, Empirical) else ""
    figure_style.label_axes(
        axes, f"Run times{count_text}", "run time of a task, seconds", "fraction of tasks, %"
    )
    axes.grid(visible=False, axis="x")


def _draw_survival(
    axes: Axes, distribution: Distribution, times: Floats, fitted_distribution: Distribution | None
) -> None:
    survival = _replace_nonpositive_by_nan(distribution.survival(times))
    axes.semilogy(times, survival, color=figure_style.BLUE, lw=1.8, label="observed")
    if fitted_distribution is not None:
        fit = _replace_nonpositive_by_nan(fitted_distribution.survival(times))
        label = type(fitted_distribution).__name__
        axes.semilogy(times, fit, "--", color=figure_style.VERMILLION, lw=1.5, label=label)
        axes.legend(frameon=False, fontsize=9)
    for p, style in ((0.5, ":"), (0.99, "--")):
        time = float(distribution.quantile(p))
        if np.isfinite(time):
            axes.axvline(time, color=figure_style.GREY, lw=1, ls=style)
            label = f"{'median' if p == 0.5 else '99 %'} {time:.3g} s"
            is_right = time > 0.7 * times[-1] + 0.3 * times[0]
            axes.annotate(
                label,
                (time, 1.0),
                (-4 if is_right else 4, -10),
                textcoords="offset points",
                ha="right" if is_right else "left",
                fontsize=8,
            )
    axes.set_ylim(MIN_SURVIVAL, 1.3)
    figure_style.label_axes(axes, "Not completed", "seconds since the start", "fraction not completed")


def _add_legend(axes: Axes) -> None:
    """Add a legend that explains the line colors of the virtual workers."""
    for label, color_position in (("fastest virtual worker", 0.85), ("slowest virtual worker", 0.0)):
        axes.plot([], [], color=_pick_colormap_colors(np.array([color_position]))[0], lw=2, label=label)
    axes.legend(frameon=True, framealpha=0.9, edgecolor="white", fontsize=7.5, loc="lower right")


def _pick_colormap_colors(positions: Floats) -> Floats:
    """Return color-blind-friendly colors for positions from 0 (dark) to 1 (light)."""
    from matplotlib import colormaps

    return np.asarray(colormaps["cividis"](positions))


def _replace_nonpositive_by_nan(probabilities: Floats) -> Floats:
    """Replace probabilities of 0 by NaN, so that a logarithmic axis leaves them out."""
    return np.where(probabilities > 0, probabilities, np.nan)


def _draw_virtual_cdfs(axes: Axes, times: Floats, worker_cdf: Floats, virtual_cdfs: Floats) -> None:
    """Draw the cdf of each virtual worker, and a dashed line for the cdf of a real worker.

    The rows of `virtual_cdfs` are the cdfs of the virtual workers at `times`.
    """
    from matplotlib.collections import LineCollection

    slowest_first = virtual_cdfs[np.argsort(virtual_cdfs.mean(axis=1), kind="stable")]
    n_virtual_workers = len(slowest_first)
    colors = _pick_colormap_colors(np.linspace(0.0, 0.85, n_virtual_workers))
    lines = [np.column_stack([times, curve]) for curve in slowest_first]
    width = float(np.clip(2.2 - 0.22 * np.log2(n_virtual_workers), 0.5, 2.0))
    axes.add_collection(LineCollection(lines, colors=colors, linewidths=width))
    axes.plot(times, worker_cdf, "--", color=figure_style.VERMILLION, lw=1.3, label="a real worker")
    axes.set_xlim(times[0], times[-1])
    axes.set_ylim(-0.02, 1.02)
    title = "a real worker" if n_virtual_workers == 1 else f"{n_virtual_workers} virtual workers"
    figure_style.label_axes(axes, title, "seconds")


def draw_time_cost_frontier(plan: Any, path: figure_style.FigurePath | None = None) -> Figure:
    """Draw the completion time and cost of a map for different numbers of workers.

    The plan's recommendation and the map without a code are marked. Other numbers of workers are only drawn
    if they are on the Pareto frontier, i.e. if no other number is better in both time and cost.
    """
    figure, ((axes,),) = figure_style.new_figure(7.5, 4.6)
    time_metric = plan.time_metric
    candidates = [candidate for candidate in plan.frontier if isfinite(getattr(candidate, time_metric))]
    # The list of candidates is empty if too many jobs never complete, so that the quantile of the completion
    # time is infinite for all of them.
    times = [getattr(candidate, time_metric) for candidate in candidates]
    worker_seconds = [candidate.worker_seconds for candidate in candidates]
    axes.plot(worker_seconds, times, "-o", color=figure_style.BLUE, ms=4, lw=1.2, label="frontier", zorder=2)
    _annotate_worker_counts(axes, candidates, plan, time_metric)
    uncoded_label, plan_label = f"plain map, {plan.uncoded.n} workers", f"plan, {plan.expected.n} workers"
    _highlight_candidate(axes, plan.uncoded, time_metric, "s", figure_style.GREY, uncoded_label)
    _highlight_candidate(axes, plan.expected, time_metric, "*", figure_style.VERMILLION, plan_label)
    quantile_label = f"completion time, {time_metric[1:]} % quantile"
    metric_label = "mean completion time" if time_metric == "mean" else quantile_label
    title = f"{plan.k} blocks: completion time and cost"
    figure_style.label_axes(axes, title, "mean worker-seconds", f"{metric_label}, seconds")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.08)
    axes.legend(frameon=False, fontsize=9)
    return figure_style.save_figure(figure, path)


def _annotate_worker_counts(axes: Axes, candidates: list[Any], plan: Any, time_metric: str) -> None:
    """Write the number of workers next to each point, except where labels would overlap."""
    max_time = max([getattr(candidate, time_metric) for candidate in candidates], default=1.0)
    worker_seconds = [candidate.worker_seconds for candidate in candidates] or [0.0]
    min_worker_seconds = worker_seconds[0]
    worker_seconds_range = (worker_seconds[-1] - min_worker_seconds) or 1.0

    def compute_relative_position(candidate: Any) -> tuple[float, float]:
        relative_cost = (candidate.worker_seconds - min_worker_seconds) / worker_seconds_range
        return relative_cost, getattr(candidate, time_metric) / max_time

    labelled_positions = [compute_relative_position(plan.expected), compute_relative_position(plan.uncoded)]
    for candidate in candidates:
        relative_x, relative_y = compute_relative_position(candidate)
        if any(abs(relative_x - x) < 0.075 and abs(relative_y - y) < 0.07 for x, y in labelled_positions):
            continue
        labelled_positions.append((relative_x, relative_y))
        point = (candidate.worker_seconds, getattr(candidate, time_metric))
        style: dict[str, Any] = {"fontsize": 8, "color": figure_style.TEXT_COLOR}
        axes.annotate(f"n = {candidate.n}", point, (5, 6), textcoords="offset points", **style)


def _highlight_candidate(
    axes: Axes, candidate: Any, time_metric: str, marker: str, color: str, label: str
) -> None:
    value = getattr(candidate, time_metric)
    if isfinite(value):
        style: dict[str, Any] = {"color": color, "ms": 15 if marker == "*" else 8, "mec": "white"}
        axes.plot([candidate.worker_seconds], [value], marker, label=label, zorder=3, **style)
