"""Draw the figures of the documentation: python docs/figures/draw.py

Figures are less than 600 pixels wide, so that their text is legible when a narrow window shrinks them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

import polarmap
from polarmap.planning import ShiftedExponential, completion_time, polarize, virtual_medians, with_stragglers
from polarmap.plot import figure_style
from polarmap.testing import ReplayExecutor

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "polarmap"  # Makes every run write the same file.
matplotlib.rcParams["svg.fonttype"] = "none"
from matplotlib import pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
DATA, PARITY, DECODED, FAILED = (
    figure_style.BLUE,
    figure_style.ORANGE,
    figure_style.GREEN,
    figure_style.VERMILLION,
)
LOST, INK = figure_style.GREY, figure_style.TEXT_COLOR
DARK_COLOURS = DATA, DECODED  # Text on these is white.
BLOCKS, WORKERS, SLOW = 6, 8, (1, 4)
MACHINES = 4
TEXT_SIZE, BOX_TEXT_SIZE = 12.5, 14.0  # points


def box(
    axes: Axes, x: float, y: float, text: str, colour: str, *, dead: bool = False, width: float = 1.5
) -> None:
    style = {"facecolor": "white", "linestyle": "--"} if dead else {"facecolor": colour}
    axes.add_patch(Rectangle((x, y), width, 0.7, edgecolor=LOST if dead else INK, linewidth=0.8, **style))
    shade = INK if dead or colour not in DARK_COLOURS else "white"
    axes.text(x + width / 2, y + 0.33, text, ha="center", va="center", fontsize=BOX_TEXT_SIZE, color=shade)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], *, dead: bool = False) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=11,
            linewidth=1,
            shrinkA=2,
            shrinkB=2,
            color=LOST if dead else INK,
            linestyle="--" if dead else "-",
        )
    )


def pipeline() -> None:
    """Draw six data blocks, two parity blocks, and two workers that never reply."""
    figure = plt.figure(figsize=(5.9, 4.9))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    columns = {"data": 0.0, "coded": 2.5, "workers": 5.0, "results": 7.5}
    for head, x in columns.items():
        axes.text(
            x + 0.75, WORKERS + 0.1, head, ha="center", fontsize=BOX_TEXT_SIZE, fontweight="bold", color=INK
        )
    data_x, coded_x, worker_x, result_x = columns.values()
    for row in range(WORKERS):
        y, is_data, dead = WORKERS - 1.0 - row, row < BLOCKS, row in SLOW
        name, colour = (f"A{row + 1}", DATA) if is_data else (f"P{row - BLOCKS + 1}", PARITY)
        box(axes, coded_x, y, name, colour)
        arrow(axes, (coded_x + 1.5, y + 0.35), (worker_x, y + 0.35))
        box(axes, worker_x, y, "late" if dead else f"f({name})", colour, dead=dead)
        if is_data:
            box(axes, data_x, y, name, DATA)
            arrow(axes, (data_x + 1.5, y + 0.35), (coded_x, y + 0.35))
            box(axes, result_x, y, f"f({name})", DECODED if dead else DATA)
            if not dead:
                arrow(axes, (worker_x + 1.5, y + 0.35), (result_x, y + 0.35))
    notes = {
        data_x + 0.75: "P1, P2: weighted\nsums of A1 to A6",
        result_x + 0.75: "green: decoded\nfrom any 6 of 8",
    }
    for x, note in notes.items():
        axes.text(x, 0.85, note, ha="center", va="center", fontsize=TEXT_SIZE, color=INK)
    axes.set(xlim=(-0.85, 9.85), ylim=(-0.1, WORKERS + 0.6))
    axes.axis("off")
    save(figure, "pipeline")


def plain_and_coded() -> None:
    """Draw two maps of six blocks with two slow workers: a plain one, and a coded one with eight tasks."""
    seconds = {0: 6.0, 1: 1.02, 2: 1.18, 3: 0.96, 4: 5.2, 5: 1.1, 6: 1.24, 7: 1.06}
    A, executor = np.ones((1_200, 80)), ReplayExecutor(seconds)
    plain = polarmap.hedged_map(np.sum, A, blocks=BLOCKS, executor=executor, backups=0).report
    coded = polarmap.coded_map(
        sum_rows, A, blocks=BLOCKS, tasks=WORKERS, executor=executor, verify=False
    ).report
    figure, panels = plt.subplots(
        2, 1, figsize=(5.8, 5.0), sharex=True, height_ratios=(BLOCKS, WORKERS), layout="constrained"
    )
    for axes, report, title in zip(
        panels,
        (plain, coded),
        ("plain map: all 6 results are needed", "coded map: any 6 of 8 results are enough"),
    ):
        for task in report.tasks:
            is_late = seconds[task.index] > 2
            draw_task(axes, task.index, task, report)
            if is_late and report is coded:
                axes.plot(report.seconds + 0.2, task.index, "D", color=DECODED, markersize=7)
                axes.text(report.seconds + 0.4, task.index, "decoded", va="center", fontsize=TEXT_SIZE)
            elif is_late:
                text = "this worker sleeps"
                axes.text(2.0, task.index, text, va="center", fontsize=TEXT_SIZE, color="white")
        axes.axvline(report.seconds, color=INK, linewidth=1.6)
        is_right = report is plain
        axes.text(
            report.seconds + (-0.1 if is_right else 0.15),
            (len(report.tasks) - 1) / 2 + (0.5 if is_right else 1.6),
            f"done after {report.seconds:.1f} s",
            ha="right" if is_right else "left",
            va="center",
            fontsize=TEXT_SIZE + 1,
            fontweight="bold",
            color=INK,
        )
        axes.set_title(title, loc="left", fontsize=TEXT_SIZE, color=INK)
        axes.set(xlim=(0, 6.3), ylim=(len(report.tasks) - 0.4, -0.6))
        labels = [str(index) if index < BLOCKS else f"P{index - BLOCKS + 1}" for index in range(report.n)]
        axes.set_yticks(range(report.n), labels, fontsize=TEXT_SIZE - 1, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=TEXT_SIZE - 1, labelcolor=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel("task", fontsize=TEXT_SIZE, color=INK)
    panels[1].set_xlabel("seconds since the start", fontsize=TEXT_SIZE, color=INK)
    save(figure, "plain-and-coded")


def lost_machine() -> None:
    """Draw a map of 24 blocks and 32 tasks on four machines, one of which is cut off from the network."""
    lost_machine, lost_at = 2, 0.55
    rng = np.random.default_rng(4)
    seconds = dict(enumerate((0.85 + rng.gamma(2.0, 0.06, 32)).tolist()))
    seconds |= dict.fromkeys(range(lost_machine, 32, MACHINES), math.inf)
    report = polarmap.coded_map(
        sum_rows, np.ones((240, 5)), blocks=24, tasks=32, executor=ReplayExecutor(seconds), verify=False
    ).report
    figure, axes = plt.subplots(figsize=(5.8, 4.7), layout="constrained")
    per_machine, gap = report.n // MACHINES, 1.6
    for task in report.tasks:
        # A pool gives each task to the machine that has had the fewest tasks.
        machine, row = task.index % MACHINES, task.index // MACHINES
        y = machine * (per_machine + gap) + row
        draw_task(axes, y, task, report, lost_at if machine == lost_machine else None)
    for machine in range(MACHINES):
        y = machine * (per_machine + gap) + (per_machine - 1) / 2
        label = f"machine {machine + 1}\n8 tasks"
        axes.text(-0.03, y, label, ha="right", va="center", fontsize=TEXT_SIZE, color=INK)
        if machine == lost_machine:
            style: dict[str, Any] = {"va": "center", "fontsize": TEXT_SIZE}
            axes.text(lost_at + 0.05, y, "lost: 8 results\nare missing", color=INK, **style)
    axes.axvline(report.seconds, color=INK, linewidth=1.6)
    axes.text(
        report.seconds,
        -1.6,
        f"24 of 32 results: done after {report.seconds:.1f} s",
        ha="right",
        fontsize=TEXT_SIZE,
        fontweight="bold",
        color=INK,
    )
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in (DATA, PARITY)]
    figure.legend(
        handles,
        ["data", "parity"],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=TEXT_SIZE,
        labelcolor=INK,
    )
    axes.set(xlim=(0, 1.03 * report.seconds), ylim=(MACHINES * (per_machine + gap) - gap, -0.8))
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=TEXT_SIZE - 1, labelcolor=INK)
    axes.set_xlabel("seconds since the start", fontsize=TEXT_SIZE, color=INK)
    save(figure, "lost-machine")


def draw_task(axes: Axes, y: float, task: Any, report: Any, lost_at: float | None = None) -> None:
    """Draw the bar of a task, which is pale if its result has not arrived.

    `lost_at` is the time in seconds at which the machine of the task was lost.
    """
    if lost_at is not None:
        axes.barh(y, lost_at, height=0.72, facecolor="white", edgecolor=FAILED, linewidth=0.9)
        axes.plot(lost_at, y, "x", color=FAILED, markersize=5, markeredgewidth=1.6)
    elif task.arrived is None:
        axes.barh(y, report.seconds, height=0.72, facecolor="white", edgecolor=LOST, linewidth=1)
    else:
        axes.barh(y, task.arrived, height=0.72, color=DATA if task.index < report.k else PARITY)


def sum_rows(block: Any) -> Any:
    """Return the sum of each row of a block, which is a linear function."""
    return block.sum(axis=1)


def completion() -> None:
    """Draw the distribution of the completion time for each scheme."""
    distribution = with_stragglers(ShiftedExponential(1.0, 0.1), 0.02, 5.0)
    rng = np.random.default_rng(0)
    times = np.sort(distribution.sample(rng, (5_000, 32)), axis=1)
    plain = np.sort(distribution.sample(rng, (5_000, 24)).max(axis=1))
    coded = np.sort(times[:, 23])
    shares = np.linspace(0, 1, len(plain))
    figure, axes = plt.subplots(figsize=(5.8, 3.9), layout="constrained")
    axes.plot(plain, shares, color=LOST, linewidth=2.5, label="plain map, 24 workers")
    axes.plot(coded, shares, color=DATA, linewidth=2.5, label="coded map, 32 workers")
    backup = completion_time(24, 24, "backup-cubed", distribution)
    quantiles = [backup.p50, backup.p95, backup.p99]
    label = "backup tasks\n(p50, p95, p99)"
    axes.plot(quantiles, [0.5, 0.95, 0.99], "o", color=PARITY, markersize=8, label=label)
    axes.set(xlim=(0.9, 8), ylim=(0, 1.01))
    axes.set_xlabel("seconds until the results are there", fontsize=TEXT_SIZE)
    axes.set_ylabel("share of jobs", fontsize=TEXT_SIZE)
    axes.tick_params(labelsize=TEXT_SIZE - 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=TEXT_SIZE)
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
    plain_and_coded()
    lost_machine()
    completion()
    four_workers()
    polarization_rate()
