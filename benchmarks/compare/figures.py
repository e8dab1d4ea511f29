"""Draw the figures of the comparison."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import elastic
from benchmarks.compare.codes import CodeMeasurement, Size
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

# Maps a label to a pattern of scheme names, a marker, a colour, and whether the marker is filled. Schemes
# without a code are grey, rival codes have open markers, polarmap's have filled ones.
JOB_STYLES = {
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
# Maps a label to a pattern of code names, a line style and a colour.
CODE_STYLES = {
    "LT": (r"LT .*\)$", "o-", figure_style.GREEN),
    "LDPC": (r"LDPC.*[e)]$", "D--", figure_style.GREY),
    "LDPC, inactivation": (r"LDPC.*inactivation", "h-", figure_style.TEXT_COLOR),
    "polar, sequential": (r"polar, sequential$", "^-", figure_style.ORANGE),
    "polar, optimal, integers": (r"polar, optimal, integers$", "s--", figure_style.SKY_BLUE),
    "polar, optimal": (r"polar, optimal$", "v-", figure_style.BLUE),
    "rotation, dense MDS, Fermat": (r"rotation$", "*-", figure_style.VERMILLION),
}
ELASTIC_STYLES = {
    "uncoded, restarted": ("s-", figure_style.TEXT_COLOR),
    "coded, polar sequential": ("^--", figure_style.ORANGE),
    "coded, rotation": ("o-", figure_style.VERMILLION),
}

MIN_TEXT_POINTS = 11.0  # of figures that a narrow window shrinks


def draw_figures(
    folder: Path,
    measurements: dict[Size, list[CodeMeasurement]],
    jobs: dict[tuple[Size, str], dict[str, Completion]],
    elastic_jobs: list[elastic.ElasticJobs],
) -> None:
    """Draw all figures into a folder; jobs are drawn for the smallest size only."""
    draw_jobs(jobs, next(iter(measurements)), folder / "compare-jobs.png")
    draw_arrivals(measurements, folder / "compare-arrivals.png")
    draw_elastic(elastic_jobs, folder / "elastic.png")
    plot_polarization(ShiftedExponential(1.0, 1.0), folder / "polarization.png")
    draw_example_plan(folder)


def sample_example_run_times() -> Floats:
    """Return the run times of docs/how-many-workers.md, with the lines that the page shows."""
    rng = np.random.default_rng(0)
    seconds = np.concatenate([rng.gamma(40, 0.05, 385), 5 * rng.gamma(40, 0.05, 15)])
    return seconds


def draw_example_plan(folder: Path) -> None:
    """Draw the figures of docs/how-many-workers.md: its run times, and the frontier of its plan."""
    run_times = sample_example_run_times()
    plot_run_times(run_times, folder / "run-times.png")
    save_narrow(plan(24, Empirical(run_times)).plot(), folder / "frontier.svg")


def save_narrow(figure: Any, path: Path) -> None:
    """Save a figure as SVG in a size whose text is legible when a narrow window shrinks the figure.

    Labels that would cover earlier ones are left out.
    """
    import matplotlib
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure.set_size_inches(5.4, 4.4)
    for text in figure.findobj(Text):
        text.set_fontsize(max(text.get_fontsize(), MIN_TEXT_POINTS))
    figure.draw_without_rendering()
    shown: list[Bbox] = []
    for label in (label for axes in figure.axes for label in axes.texts):
        area = label.get_window_extent()
        label.set_visible(area.count_overlaps(shown) == 0)
        shown += [area] * label.get_visible()
    # Every run writes the same file.
    with matplotlib.rc_context({"svg.hashsalt": "polarmap", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def draw_jobs(jobs: dict[tuple[Size, str], dict[str, Completion]], size: Size, path: Path) -> None:
    """Draw the 99 % quantile against cost, in a panel for each distribution."""
    figure, axes = figure_style.new_figure(10.5, 7.6, n_columns=2, n_rows=2)
    names = [name for job_size, name in jobs if job_size == size]
    for subplot, name in zip(axes.flat, names):
        schemes = jobs[size, name]
        for scheme, completion in schemes.items():
            label = next(
                (key for key, (pattern, *_) in JOB_STYLES.items() if re.match(pattern, scheme)), None
            )
            if label is not None and np.isfinite(completion.p99):
                _, marker, color, is_filled = JOB_STYLES[label]
                marker_style = {
                    "color": color,
                    "markerfacecolor": color if is_filled else "white",
                    "label": label,
                }
                point = [completion.worker_seconds / schemes["uncoded"].worker_seconds], [completion.p99]
                subplot.plot(
                    *point, marker, ms=13 if marker == "*" else 8.5, markeredgewidth=1.4, **marker_style
                )
        subplot.set_ylim(bottom=0)
        figure_style.label_axes(
            subplot, name, "worker-seconds, relative to a plain map", "99 % quantile, seconds"
        )
    legend = axes[0, 0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(f"{size.k} blocks, {size.n} coded tasks: below and left is better", fontsize=12)
    figure_style.save_figure(figure, path)


def draw_arrivals(measurements: dict[Size, list[CodeMeasurement]], path: Path) -> None:
    """Draw the results needed beyond k, as a share of k, by the size of the code."""
    figure, ((axes,),) = figure_style.new_figure(7.5, 4.4)
    for label, (pattern, style, color) in CODE_STYLES.items():
        points = [
            (size.n, 100 * code.mean_extra_arrivals / size.k)
            for size, size_measurements in measurements.items()
            for code in size_measurements
            if re.match(pattern, code.name)
        ]
        axes.plot(*zip(*points), style, color=color, label=label, ms=11 if "*" in style else 6, lw=1.5)
    axes.set_xscale("log")
    axes.set_xticks([size.n for size in measurements], [f"{size.n:,}" for size in measurements])
    axes.minorticks_off()
    figure_style.label_axes(axes, "Results needed beyond k", "coded tasks n, k = 3 n / 4", "mean, % of k")
    axes.legend(frameon=False, fontsize=9)
    figure_style.save_figure(figure, path)


def draw_elastic(results: list[elastic.ElasticJobs], path: Path) -> None:
    """Draw one run with vanishing workers, and completion times by the share of workers that vanish."""
    figure, axes = figure_style.new_figure(10.5, 4.2, n_columns=2)
    left, right = axes[0]
    n_needed = elastic.BLOCKS
    runs = elastic.sample_one_job(elastic.VANISHING_RATES[2]).items()
    for (name, times), color in zip(runs, (figure_style.TEXT_COLOR, figure_style.VERMILLION)):
        left.step(times, np.arange(1, len(times) + 1), "-", where="post", color=color, lw=1.8, label=name)
        done_at = times[n_needed - 1]
        left.plot([done_at], [n_needed], "o", color=color, ms=7, zorder=3)
        annotation_options: Any = (
            {"xytext": (-4, -16), "ha": "right"} if done_at > 5 else {"xytext": (6, -16)}
        )
        left.annotate(
            f"{done_at:.1f} s",
            (done_at, n_needed),
            textcoords="offset points",
            fontsize=9,
            **annotation_options,
        )
    left.axhline(n_needed, color=figure_style.GREY, ls="--", lw=1)
    left.set_xlim(left=0)
    figure_style.label_axes(left, "One run: results that have arrived", "seconds", "results (500 are needed)")
    for scheme, (style, color) in ELASTIC_STYLES.items():
        scheme_jobs = [job for job in results if job.scheme == scheme]
        time_quantiles = np.array(
            [np.quantile(job.completion_times, [0.05, 0.5, 0.95], method="higher") for job in scheme_jobs]
        )
        lost_percentages = [100 * job.lost_fraction for job in scheme_jobs]
        right.plot(lost_percentages, time_quantiles[:, 1], style, color=color, label=scheme)
        right.fill_between(
            lost_percentages, time_quantiles[:, 0], time_quantiles[:, 2], color=color, alpha=0.15, linewidth=0
        )
    right.set_ylim(bottom=0)
    title = "Median completion (5 to 95 %)"
    figure_style.label_axes(right, title, "workers that vanish before they return, %", "seconds")
    for job in axes[0]:
        job.legend(frameon=False, fontsize=9)
    figure_style.save_figure(figure, path)
