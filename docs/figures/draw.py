"""Draw the figures of the documentation: python docs/figures/draw.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from polarmap.planning import ShiftedExponential, completion_time, polarize, virtual_medians, with_stragglers

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "polarmap"  # Makes every run write the same file.
matplotlib.rcParams["svg.fonttype"] = "none"
from matplotlib import pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
DATA, PARITY, LOST, INK = "#4477aa", "#ccbb44", "#888888", "#333333"
BLOCKS, WORKERS, SLOW = 6, 8, (1, 4)


def box(axes: Axes, x: float, y: float, text: str, colour: str, *, dead: bool = False) -> None:
    style = {"facecolor": "white", "linestyle": "--"} if dead else {"facecolor": colour}
    axes.add_patch(Rectangle((x, y), 1.5, 0.7, edgecolor=LOST if dead else INK, linewidth=0.8, **style))
    shade = LOST if dead else ("white" if colour == DATA else INK)
    axes.text(x + 0.75, y + 0.33, text, ha="center", va="center", fontsize=9, color=shade)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], *, dead: bool = False) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=9,
            linewidth=0.8,
            color=LOST if dead else INK,
            linestyle="--" if dead else "-",
        )
    )


def pipeline() -> None:
    """Draw six data blocks, two parity blocks, and two workers that never reply."""
    figure, axes = plt.subplots(figsize=(8.4, 4.6))
    heads = {0.75: "data", 4.25: "coded blocks", 7.75: "workers", 11.25: "results"}
    for x, head in heads.items():
        axes.text(x, WORKERS + 0.25, head, ha="center", fontsize=10, fontweight="bold", color=INK)
    for row in range(WORKERS):
        y, is_data, dead = WORKERS - 1.0 - row, row < BLOCKS, row in SLOW
        name, colour = (f"A{row + 1}", DATA) if is_data else (f"P{row - BLOCKS + 1}", PARITY)
        box(axes, 3.5, y, name, colour)
        arrow(axes, (5.0, y + 0.35), (7.0, y + 0.35))
        box(axes, 7.0, y, "late" if dead else f"f({name})", colour, dead=dead)
        if is_data:
            box(axes, 0.0, y, name, DATA)
            arrow(axes, (1.5, y + 0.35), (3.5, y + 0.35))
            box(axes, 10.5, y, f"f({name})", DATA)
            arrow(axes, (8.5, y + 0.35), (10.5, y + 0.35), dead=dead)
            if dead:
                axes.text(12.15, y + 0.33, "decoded", va="center", fontsize=9, color=INK)
    axes.text(0.75, 0.85, "P = combinations of A1 ... A6", ha="center", fontsize=9, color=INK)
    axes.text(11.0, 0.85, "from any 6 of the 8", ha="center", fontsize=9, color=INK)
    axes.set(xlim=(-1.4, 13.6), ylim=(-0.2, WORKERS + 0.9))
    axes.axis("off")
    save(figure, "pipeline")


def completion() -> None:
    """Draw the distribution of the completion time for each scheme."""
    distribution = with_stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0)
    rng = np.random.default_rng(0)
    times = np.sort(distribution.sample(rng, (5_000, 32)), axis=1)
    plain = np.sort(distribution.sample(rng, (5_000, 24)).max(axis=1))
    coded = np.sort(times[:, 23])
    shares = np.linspace(0, 1, len(plain))
    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    axes.plot(plain, shares, color=LOST, linewidth=2, label="plain map, 24 workers")
    axes.plot(coded, shares, color=DATA, linewidth=2, label="coded map, 32 workers")
    backup = completion_time(24, 24, "backup-cubed", distribution)
    quantiles = [backup.p50, backup.p95, backup.p99]
    axes.plot(quantiles, [0.5, 0.95, 0.99], "o", color=PARITY, label="backup tasks (p50, p95, p99)")
    axes.set(
        xlabel="seconds until the results are there", ylabel="share of jobs", xlim=(0.9, 8), ylim=(0, 1.01)
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    save(figure, "completion")


def four_workers() -> None:
    """Draw the 4 x 4 construction: the later and earlier of pairs of workers, applied twice."""
    figure, axes = plt.subplots(figsize=(8.4, 3.4))
    real = [f"worker {index}" for index in range(4)]
    pairs = ["later of 0, 2", "later of 1, 3", "earlier of 0, 2", "earlier of 1, 3"]
    virtual = ["later of these: slowest", "earlier of these", "later of these", "earlier of these: fastest"]
    columns = ((0.0, 2.2, real), (4.0, 2.8, pairs), (8.6, 4.3, virtual))
    for level, (x, width, names) in enumerate(columns):
        for row, name in enumerate(names):
            slow = (row < 2, row % 2 == 0)[level - 1] if level else False
            frozen = level == 2 and row == 0
            colour = "white" if frozen else PARITY if slow else DATA
            edge = {"linestyle": "--"} if frozen else {}
            axes.add_patch(
                Rectangle((x, 3 - row), width, 0.6, facecolor=colour, edgecolor=INK, linewidth=0.8, **edge)
            )
            shade = INK if slow else "white"
            axes.text(x + width / 2, 3.28 - row, name, ha="center", va="center", fontsize=9, color=shade)
    for start, end, apart in ((2.2, 4.0, 2), (6.8, 8.6, 1)):
        for row in range(4):
            for other in (row, row ^ apart):
                arrow(axes, (start, 3.3 - row), (end, 3.3 - other))
    axes.text(13.05, 3.28, "frozen", va="center", fontsize=9, color=INK)
    axes.set(xlim=(-0.2, 14.4), ylim=(-0.2, 3.9))
    axes.axis("off")
    save(figure, "four-workers")


def polarization_rate() -> None:
    """Draw mean squared increments by depth with their bound, and the run times of virtual workers."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
    depths = np.arange(17)
    rows = [polarize([0.5], depth) for depth in depths]
    squares = np.array([((one * (1 - one)) ** 2).mean() for one in rows])
    bound = (np.sqrt(3) / 2) ** depths / 16
    left.semilogy(depths, bound, color=LOST, linewidth=2, label="bound: 0.866 a level")
    left.semilogy(depths, squares, "o", color=DATA, markersize=5, label="mean square of an increment")
    slope = squares[-1] * 2.0 ** ((16 - depths) / 3.627)
    left.semilogy(depths, slope, ":", color=INK, linewidth=1.2, label="0.826 a level")
    slide = squares[0] * 2.0 ** (-4 * np.sqrt(depths))
    left.semilogy(depths, slide, "--", color=PARITY, linewidth=1.2, label="the talk's rate, squared")
    left.set(xlabel="depth", ylabel="at the median run time")
    distribution = ShiftedExponential(1.0, 1.0)
    shares = np.linspace(0, 0.995, 400)
    for depth, colour in ((3, LOST), (6, PARITY), (12, DATA)):
        steps = np.sort(virtual_medians(distribution, depth))
        right.step(
            np.arange(1, steps.size + 1) / steps.size,
            steps,
            where="pre",
            color=colour,
            linewidth=1.8,
            label=f"{steps.size} virtual workers",
        )
    right.plot(shares, distribution.quantile(shares), ":", color=INK, linewidth=1.2, label="real workers")
    right.set(xlabel="share of the workers", ylabel="seconds", ylim=(0.9, 6.5))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    save(figure, "polarization-rate")


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(HERE / f"{name}.svg", bbox_inches="tight", facecolor="white", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    pipeline()
    completion()
    four_workers()
    polarization_rate()
