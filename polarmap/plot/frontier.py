"""What waiting less costs: the frontier of a `polarmap.Plan`, whose options are `Completion`s."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from polarmap.plot import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
