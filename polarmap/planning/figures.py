"""Figures of run times, of how those of virtual workers polarize, of the frontier of a plan."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from polarmap.errors import CodeError
from polarmap.planning.distributions import Distribution, Floats
from polarmap.planning.empirical import Empirical, as_runtimes
from polarmap.planning.polarization import polarize
from polarmap.plot import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 600  # of a curve
MOST_DEPTH = 12  # beyond, lines can no longer be told apart
LEAST = 1e-4  # share still out at which a tail is cut off


def plot_runtimes(
    runtimes: object, path: canvas.Path | None = None, *, fitted: Distribution | None = None
) -> Figure:
    """Plot how run times spread, and how many workers are still out as time goes by.

    Parameters
    ----------
    runtimes : Distribution, run times in seconds, or reports of coded maps
    path : str or path, optional
        Where to write it: .png, .svg or .pdf.
    fitted : Distribution, optional
        Drawn beside them, to see whether it fits.

    Returns
    -------
    matplotlib.figure.Figure
    """
    distribution = as_runtimes(runtimes)
    figure, (axes,) = canvas.blank(9.5, 3.8, columns=2)
    times = _grid(distribution)
    _draw_density(axes[0], distribution, times)
    _draw_survival(axes[1], distribution, times, fitted)
    return canvas.saved(figure, path)


def plot_polarization(
    runtimes: object, path: canvas.Path | None = None, *, depths: tuple[int, ...] = (0, 1, 3, 8)
) -> Figure:
    """Plot P(T <= t) of the virtual workers at some depths of the recursion: towards steps.

    Parameters
    ----------
    runtimes : Distribution, run times in seconds, or reports of coded maps
    path : str or path, optional
        Where to write it: .png, .svg or .pdf.
    depths : tuple of int
        One panel each; at depth d there are 2^d virtual workers.

    Returns
    -------
    matplotlib.figure.Figure
    """
    distribution = as_runtimes(runtimes)
    if not depths or not all(0 <= depth <= MOST_DEPTH for depth in depths):
        raise CodeError(f"depths to draw lie between 0 and {MOST_DEPTH}, not {depths}")
    figure, axes = canvas.blank(2.7 * len(depths) + 0.9, 3.6, columns=len(depths), sharey=True)
    times = _grid(distribution)
    for one, depth in zip(axes[0], depths):
        _draw_virtual(one, times, distribution.cdf(times), 1 - polarize(distribution.survival(times), depth))
    _explain(axes[0, int(np.argmax(depths))])
    axes[0, 0].set_ylabel("probability of being done by then", fontsize=10, color=canvas.INK)
    return canvas.saved(figure, path)


def _grid(distribution: Distribution) -> Floats:
    """Times from a little before the first return to where hardly any worker is still out."""
    ends = 1 - distribution.failure_probability
    first, last = distribution.quantile([1e-4 * ends, (1 - 10 * LEAST) * ends]).tolist()
    return np.linspace(max(0.0, first - 0.1 * (last - first)), last + 0.05 * (last - first) + 1e-9, POINTS)


def _draw_density(axes: Axes, distribution: Distribution, times: Floats) -> None:
    edges = np.linspace(times[0], times[-1], 60)
    shares = np.diff(distribution.cdf(edges))
    axes.bar(
        edges[:-1], 100 * shares, np.diff(edges), align="edge", color=canvas.BLUE, edgecolor="white", lw=0.4
    )
    count = f" ({distribution.observed} tasks)" if isinstance(distribution, Empirical) else ""
    canvas.titled(axes, f"Run times{count}", "run time of a task, seconds", "share of the tasks, %")
    axes.grid(visible=False, axis="x")


def _draw_survival(
    axes: Axes, distribution: Distribution, times: Floats, fitted: Distribution | None
) -> None:
    axes.semilogy(times, _positive(distribution.survival(times)), color=canvas.BLUE, lw=1.8, label="observed")
    if fitted is not None:
        fit = _positive(fitted.survival(times))
        axes.semilogy(times, fit, "--", color=canvas.VERMILLION, lw=1.5, label=type(fitted).__name__)
        axes.legend(frameon=False, fontsize=9)
    for p, style in ((0.5, ":"), (0.99, "--")):
        time = float(distribution.quantile(p))
        if np.isfinite(time):
            axes.axvline(time, color=canvas.GREY, lw=1, ls=style)
            text = f"{'median' if p == 0.5 else '99 %'} {time:.3g} s"
            right = time > 0.7 * times[-1] + 0.3 * times[0]
            axes.annotate(
                text,
                (time, 1.0),
                (-4 if right else 4, -10),
                textcoords="offset points",
                ha="right" if right else "left",
                fontsize=8,
            )
    axes.set_ylim(LEAST, 1.3)
    canvas.titled(axes, "Still out", "seconds since the start", "share of the tasks not yet back")


def _explain(axes: Axes) -> None:
    """Add a legend that says which line is which, in the panel with the most of them."""
    for name, share in (("fastest virtual worker", 0.85), ("slowest virtual worker", 0.0)):
        axes.plot([], [], color=_shade(np.array([share]))[0], lw=2, label=name)
    axes.legend(frameon=True, framealpha=0.9, edgecolor="white", fontsize=7.5, loc="lower right")


def _shade(shares: Floats) -> Floats:
    """Colours from dark (0) to light, told apart by everybody."""
    from matplotlib import colormaps

    return np.asarray(colormaps["cividis"](shares))


def _positive(shares: Floats) -> Floats:
    """What a logarithmic axis can show."""
    return np.where(shares > 0, shares, np.nan)


def _draw_virtual(axes: Axes, times: Floats, real: Floats, done: Floats) -> None:
    """Draw a line (times,) for each row of `done` (virtual workers, times), and the one of real workers."""
    from matplotlib.collections import LineCollection

    slowest_first = done[np.argsort(done.mean(axis=1), kind="stable")]
    count = len(slowest_first)
    colors = _shade(np.linspace(0.0, 0.85, count))
    lines = [np.column_stack([times, curve]) for curve in slowest_first]
    width = float(np.clip(2.2 - 0.22 * np.log2(count), 0.5, 2.0))
    axes.add_collection(LineCollection(lines, colors=colors, linewidths=width))
    axes.plot(times, real, "--", color=canvas.VERMILLION, lw=1.3, label="a real worker")
    axes.set_xlim(times[0], times[-1])
    axes.set_ylim(-0.02, 1.02)
    workers = "a real worker" if count == 1 else f"{count} virtual workers"
    canvas.titled(axes, workers, "seconds")


def draw_frontier(plan: Any, path: canvas.Path | None = None) -> Figure:
    """What `Plan.plot` shows: completion time against worker-seconds, for each size worth choosing."""
    figure, ((axes,),) = canvas.blank(7.5, 4.6)
    clock = plan.clock
    options = [one for one in plan.frontier if isfinite(getattr(one, clock))]
    times = [getattr(one, clock) for one in options]  # of none, where fewer jobs than that ever complete
    paid = [one.paid for one in options]
    axes.plot(paid, times, "-o", color=canvas.BLUE, ms=4, lw=1.2, label="frontier", zorder=2)
    _name_some(axes, options, plan, clock)
    _single_out(axes, plan.uncoded, clock, "s", canvas.GREY, f"plain map, {plan.uncoded.n} workers")
    _single_out(axes, plan.expected, clock, "*", canvas.VERMILLION, f"plan, {plan.expected.n} workers")
    name = {"mean": "mean completion time"}.get(clock, f"completion time, {clock[1:]} % quantile")
    canvas.titled(
        axes, f"{plan.k} blocks: what waiting less costs", "worker-seconds paid, mean", f"{name}, seconds"
    )
    axes.set_ylim(bottom=0)
    axes.margins(x=0.08)
    axes.legend(frameon=False, fontsize=9)
    return canvas.saved(figure, path)


def _name_some(axes: Axes, options: list[Any], plan: Any, clock: str) -> None:
    """Write the number of workers beside those points that are far enough from each other."""
    high = max([getattr(one, clock) for one in options], default=1.0)
    costs = [one.paid for one in options] or [0.0]
    low_cost, width = costs[0], (costs[-1] - costs[0]) or 1.0

    def place(one: Any) -> tuple[float, float]:
        return (one.paid - low_cost) / width, getattr(one, clock) / high

    taken = [place(plan.expected), place(plan.uncoded)]
    for one in options:
        across, up = place(one)
        if any(abs(across - x) < 0.075 and abs(up - y) < 0.07 for x, y in taken):
            continue
        taken.append((across, up))
        at = (one.paid, getattr(one, clock))
        axes.annotate(f"n = {one.n}", at, (5, 6), textcoords="offset points", fontsize=8, color=canvas.INK)


def _single_out(axes: Axes, one: Any, clock: str, marker: str, color: str, label: str) -> None:
    value = getattr(one, clock)
    if isfinite(value):
        size = 15 if marker == "*" else 8
        axes.plot([one.paid], [value], marker, color=color, ms=size, mec="white", label=label, zorder=3)
