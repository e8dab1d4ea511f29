"""The figures of the comparison."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import elastic
from benchmarks.compare.codes import Measured, Size
from polarmap.dtypes import Floats
from polarmap.planning import (
    Completion,
    Empirical,
    ShiftedExponential,
    plan,
    plot_polarization,
    plot_run_times,
)
from polarmap.plot import figure_style

# Label -> what schemes of that name match, marker, colour, whether it is filled: no code grey, rival codes
# open, ours filled.
JOBS = {
    "uncoded": (r"uncoded$", "s", figure_style.TEXT_COLOR, True),
    "2x replication": (r"2x", "P", figure_style.GREY, True),
    "3x replication": (r"3x", "X", figure_style.GREY, True),
    "backup tasks (cubed)": (r"backup tasks \(cubed", "v", figure_style.TEXT_COLOR, False),
    "backup tasks, tuned": (r"backup tasks \(tuned", "^", figure_style.TEXT_COLOR, False),
    "local product": (r"local product", "s", figure_style.GREEN, False),
    "LT": (r"LT .*\)$", "o", figure_style.GREEN, False),
    "LDPC": (r"LDPC.*[e)]$", "D", figure_style.GREEN, False),
    "LDPC, inactivation": (r"LDPC.*inactivation", "h", figure_style.GREEN, False),
    "polar, sequential": (r"polar, sequential$", "^", figure_style.ORANGE, False),
    "rotation (as MDS)": (r"rotation$", "*", figure_style.VERMILLION, True),
    "on demand": (r"on demand$", "o", figure_style.BLUE, True),
    "upfront, rest on demand": (r"\d+ upfront", "p", figure_style.BLUE, True),
    "16x as many blocks": (r"16x as", "d", figure_style.SKY_BLUE, True),
}
# Label -> what codes of that name match, line, colour.
CODES = {
    "LT": (r"LT .*\)$", "o-", figure_style.GREEN),
    "LDPC": (r"LDPC.*[e)]$", "D--", figure_style.GREY),
    "LDPC, inactivation": (r"LDPC.*inactivation", "h-", figure_style.TEXT_COLOR),
    "polar, sequential": (r"polar, sequential$", "^-", figure_style.ORANGE),
    "polar, optimal, integers": (r"polar, optimal, integers$", "s--", figure_style.SKY_BLUE),
    "polar, optimal": (r"polar, optimal$", "v-", figure_style.BLUE),
    "rotation, dense MDS, Fermat": (r"rotation$", "*-", figure_style.VERMILLION),
}
CROWDS = {
    "uncoded, restarted": ("s-", figure_style.TEXT_COLOR),
    "coded, polar sequential": ("^--", figure_style.ORANGE),
    "coded, rotation": ("o-", figure_style.VERMILLION),
}


def draw(
    folder: Path,
    measured: dict[Size, list[Measured]],
    jobs: dict[tuple[Size, str], dict[str, Completion]],
    crowd: list[elastic.Elastic],
) -> None:
    """All of them; jobs are those of the smallest size."""
    draw_jobs(jobs, next(iter(measured)), folder / "compare-jobs.png")
    draw_arrivals(measured, folder / "compare-arrivals.png")
    draw_elastic(crowd, folder / "elastic.png")
    plot_polarization(ShiftedExponential(1.0, 1.0), folder / "polarization.png")
    draw_plan(folder)


def example_seconds() -> Floats:
    """Return the run times of docs/how-many-workers.md, with the lines that the page shows."""
    rng = np.random.default_rng(0)
    seconds = np.concatenate([rng.gamma(40, 0.05, 385), 5 * rng.gamma(40, 0.05, 15)])
    return seconds


def draw_plan(folder: Path) -> None:
    """Draw the figures of docs/how-many-workers.md: its run times, and the frontier of its plan."""
    seconds = example_seconds()
    plot_run_times(seconds, folder / "run-times.png")
    plan(24, Empirical(seconds)).plot(folder / "frontier.png")


def draw_jobs(jobs: dict[tuple[Size, str], dict[str, Completion]], size: Size, path: Path) -> None:
    """The 99 % quantile against cost, a panel for each distribution."""
    figure, axes = figure_style.new_figure(10.5, 7.6, n_columns=2, n_rows=2)
    names = [name for of, name in jobs if of == size]
    for one, name in zip(axes.flat, names):
        schemes = jobs[size, name]
        for scheme, found in schemes.items():
            label = next((key for key, (pattern, *_) in JOBS.items() if re.match(pattern, scheme)), None)
            if label is not None and np.isfinite(found.p99):
                _, marker, color, filled = JOBS[label]
                look = {"color": color, "markerfacecolor": color if filled else "white", "label": label}
                point = [found.worker_seconds / schemes["uncoded"].worker_seconds], [found.p99]
                one.plot(*point, marker, ms=13 if marker == "*" else 8.5, markeredgewidth=1.4, **look)
        one.set_ylim(bottom=0)
        figure_style.label_axes(
            one, name, "worker-seconds, relative to a plain map", "99 % quantile, seconds"
        )
    legend = axes[0, 0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(f"{size.k} blocks, {size.n} coded tasks: below and left is better", fontsize=12)
    figure_style.save_figure(figure, path)


def draw_arrivals(codes: dict[Size, list[Measured]], path: Path) -> None:
    """Results needed beyond k, as a share of k, by the size of the code."""
    figure, ((axes,),) = figure_style.new_figure(7.5, 4.4)
    for label, (pattern, style, color) in CODES.items():
        points = [
            (size.n, 100 * code.beyond / size.k)
            for size, some in codes.items()
            for code in some
            if re.match(pattern, code.name)
        ]
        axes.plot(*zip(*points), style, color=color, label=label, ms=11 if "*" in style else 6, lw=1.5)
    axes.set_xscale("log")
    axes.set_xticks([size.n for size in codes], [f"{size.n:,}" for size in codes])
    axes.minorticks_off()
    figure_style.label_axes(axes, "Results needed beyond k", "coded tasks n, k = 3 n / 4", "mean, % of k")
    axes.legend(frameon=False, fontsize=9)
    figure_style.save_figure(figure, path)


def draw_elastic(results: list[elastic.Elastic], path: Path) -> None:
    """One run under vanishing workers; completion times as more of them vanish."""
    figure, axes = figure_style.new_figure(10.5, 4.2, n_columns=2)
    left, right = axes[0]
    needed = elastic.BLOCKS
    runs = elastic.one_run(elastic.RATES[2]).items()
    for (name, times), color in zip(runs, (figure_style.TEXT_COLOR, figure_style.VERMILLION)):
        left.step(times, np.arange(1, len(times) + 1), "-", where="post", color=color, lw=1.8, label=name)
        done = times[needed - 1]
        left.plot([done], [needed], "o", color=color, ms=7, zorder=3)
        place: Any = {"xytext": (-4, -16), "ha": "right"} if done > 5 else {"xytext": (6, -16)}
        left.annotate(f"{done:.1f} s", (done, needed), textcoords="offset points", fontsize=9, **place)
    left.axhline(needed, color=figure_style.GREY, ls="--", lw=1)
    left.set_xlim(left=0)
    figure_style.label_axes(left, "One run: results that have arrived", "seconds", "results (500 are needed)")
    for scheme, (style, color) in CROWDS.items():
        some = [one for one in results if one.scheme == scheme]
        middle = np.array([np.quantile(one.time, [0.05, 0.5, 0.95], method="higher") for one in some])
        lost = [100 * one.lost for one in some]
        right.plot(lost, middle[:, 1], style, color=color, label=scheme)
        right.fill_between(lost, middle[:, 0], middle[:, 2], color=color, alpha=0.15, linewidth=0)
    right.set_ylim(bottom=0)
    title = "Median completion (5 to 95 %)"
    figure_style.label_axes(right, title, "workers that vanish before they return, %", "seconds")
    for one in axes[0]:
        one.legend(frameon=False, fontsize=9)
    figure_style.save_figure(figure, path)
