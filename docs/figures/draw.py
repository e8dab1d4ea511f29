"""Draws the figures of the documentation: python docs/figures/draw.py"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

from polarmap.planning import ShiftedExponential, completion_time, stragglers

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "polarmap"  # the same file from every run
matplotlib.rcParams["svg.fonttype"] = "none"
from matplotlib import pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
DATA, PARITY, LOST, INK = "#4477aa", "#ccbb44", "#bbbbbb", "#333333"
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
    """Six data blocks, two parity blocks, two workers that never answer."""
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
    """The distribution of the completion time, by scheme."""
    distribution = stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0)
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


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(HERE / f"{name}.svg", bbox_inches="tight", facecolor="white", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    pipeline()
    completion()
