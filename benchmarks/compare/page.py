"""Format the measured parts of the pages whose names begin with docs/comparison."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from benchmarks import format_number
from benchmarks.compare import elastic
from benchmarks.compare.codes import CodeMeasurement, Size
from benchmarks.compare.jobs import BLOCK_SIZES, estimate_coding_seconds
from benchmarks.pages import markdown_table
from benchmarks.rivals.fermat import measure_quantization_error
from polarmap.planning import Completion

Jobs = dict[tuple[Size, str], dict[str, Completion]]
QUANTIZED_TERMS = (100, 1000)  # Numbers of terms of the sums whose quantization error is measured.
# Multiple of a plain map's worker-seconds: two or three copies of each task exceed it.
MAX_RELATIVE_COST = 1.4
# Rows of the table on top of the page of completion times.
SUMMARY_SCHEMES = {
    "uncoded",
    "2x replication",
    "3x replication",
    "backup tasks (cubed)",
    "backup tasks (tuned)",
    "dense Gaussian",
    "rotation",
    "on demand",
}
CODE_SUMMARY = re.compile(r"dense|Fermat|local|Raptor|LDPC.*inactivation|polar, optimal|rotation$")
POLARMAP_SCHEMES = ("rotation", "on demand", "upfront", "as many blocks", "polar, optimal")


def make_page_parts(
    measurements: dict[Size, list[CodeMeasurement]],
    extra_rows: dict[Size, list[list[str]]],
    jobs: Jobs,
    elastic_jobs: list[elastic.ElasticJobs],
    megabytes: int,
    load_average: float,
) -> dict[str, dict[str, str]]:
    """Return the parts of each page, by page name and part name."""
    return {
        "comparison.md": {
            "fastest": make_fastest_table(measurements, jobs),
            "ratios": make_ratio_table(measurements),
        },
        "comparison-jobs.md": {
            "summary": make_summary_table(next(iter(measurements.items())), jobs),
            "sizes": "\n\n".join(
                make_job_tables(size, size_measurements, jobs)
                for size, size_measurements in measurements.items()
            ),
        },
        "comparison-codes.md": {
            "load": f"{load_average:.0f}",
            "megabytes": str(megabytes),
            "summary": make_code_summary(next(iter(measurements.values()))),
            "sizes": "\n\n".join(
                make_code_table(size, measurements[size], extra_rows.get(size, [])) for size in measurements
            ),
            "quantized": " and ".join(
                f"{100 * measure_quantization_error(n_terms):.1f} %" for n_terms in QUANTIZED_TERMS
            ),
        },
        "comparison-elastic.md": {"vanishing": make_elastic_table(elastic_jobs)},
    }


def make_fastest_table(measurements: dict[Size, list[CodeMeasurement]], jobs: Jobs) -> str:
    """Return a table of the fastest rival and the fastest polarmap scheme, by the mean total time."""
    distributions, rows = list(dict.fromkeys(distribution for _, distribution in jobs)), []
    for size, size_measurements in measurements.items():
        for block_bytes in BLOCK_SIZES:
            row = [f"{size.k:,} of {block_bytes // 1_000_000} MB"]
            for distribution in distributions:
                means = affordable_mean_seconds(size_measurements, jobs[size, distribution], block_bytes)
                fastest_rival, fastest_polarmap = (
                    min(
                        (mean, scheme)
                        for scheme, mean in means.items()
                        if is_polarmap_scheme(scheme) == of_polarmap
                    )
                    for of_polarmap in (False, True)
                )
                row.append(
                    f"{shorten_scheme(fastest_rival[1])} {format_number(fastest_rival[0])}<br>"
                    f"**{shorten_scheme(fastest_polarmap[1])}** {format_number(fastest_polarmap[0])}"
                )
            rows.append(row)
    return markdown_table(["blocks", *distributions], rows)


def shorten_scheme(scheme: str) -> str:
    """Return the name of a scheme without its tuned multiple or number of upfront tasks."""
    return re.sub(r" \(tuned.*\)|[\d,]+ upfront, rest ", "", scheme)


def affordable_mean_seconds(
    measurements: list[CodeMeasurement], jobs: dict[str, Completion], block_bytes: int
) -> dict[str, float]:
    """Return the mean seconds, coding and transfer included, of the affordable schemes with k blocks."""
    by_name, max_worker_seconds = (
        {code.name: code for code in measurements},
        MAX_RELATIVE_COST * jobs["uncoded"].worker_seconds,
    )
    return {
        scheme: job.mean + estimate_coding_seconds(job, by_name, block_bytes).total_seconds
        for scheme, job in jobs.items()
        if job.tasks_per_worker == 1
        and not job.failure_probability
        and job.worker_seconds <= max_worker_seconds
    }


def is_polarmap_scheme(scheme: str) -> bool:
    return any(name_part in scheme for name_part in POLARMAP_SCHEMES) and "embedding" not in scheme


def make_ratio_table(measurements: dict[Size, list[CodeMeasurement]]) -> str:
    """Return a table of two rival codes relative to rotation: coding times, and the amplification of one."""
    rows = []
    for size, size_measurements in measurements.items():
        rotation = next(code for code in size_measurements if code.name == "rotation")
        gaussian = next(code for code in size_measurements if code.name == "dense Gaussian")
        ldpc = next(
            code for code in size_measurements if code.name.startswith("LDPC") and "inactivation" in code.name
        )
        row = [f"{size.n:,}"]
        for code in (gaussian, ldpc):
            row.append(f"{code.encode_seconds / rotation.encode_seconds:.2g}")
            row.append(f"{code.decode_seconds / rotation.decode_seconds:.2g}")
        if rotation.amplification is not None and ldpc.amplification is not None:
            row.append(f"{10 ** (ldpc.amplification[0] - rotation.amplification[0]):.2g}")
        rows.append(row)
    header = ["coded tasks n", "dense Gaussian: encode", "decode"]
    header += ["LDPC with inactivation: encode", "decode", "rounding errors"]
    return markdown_table(header, rows)


def make_summary_table(first_size: tuple[Size, list[CodeMeasurement]], jobs: Jobs) -> str:
    """Return the mean total times and the cost of a few schemes, for the first size and smaller blocks."""
    size, measurements = first_size
    distributions = [distribution for job_size, distribution in jobs if job_size == size]
    schemes_by_distribution = [jobs[size, distribution] for distribution in distributions]
    first_schemes = schemes_by_distribution[0]
    costs = {
        re.sub(r"\(tuned.*\)", "(tuned)", scheme): job.worker_seconds
        / first_schemes["uncoded"].worker_seconds
        for scheme, job in first_schemes.items()
    }
    rows = []
    for name, _, _, _, *means in make_total_rows(measurements, schemes_by_distribution, BLOCK_SIZES[0]):
        scheme = name.strip("*")
        if scheme in SUMMARY_SCHEMES:
            rows.append([name, *means, f"{costs[scheme]:.2f}"])
    return markdown_table(["mean seconds", *distributions, "cost"], rows)


def make_job_tables(size: Size, measurements: list[CodeMeasurement], jobs: Jobs) -> str:
    """Return folded tables: one of total times for each block size, one of arrivals for each distribution."""
    distributions = [distribution for job_size, distribution in jobs if job_size == size]
    sections = [
        f"## {size.k:,} blocks, {size.n:,} coded tasks",
        f"The jobs in these tables have {size.k:,} blocks of data, for which codes start {size.n:,} tasks. "
        "Open a table to compare all schemes.",
    ]
    for block_bytes in BLOCK_SIZES:
        header = ["mean seconds", "encode", "transfer", "plan, decode", *distributions]
        table_text = markdown_table(
            header,
            make_total_rows(
                measurements, [jobs[size, distribution] for distribution in distributions], block_bytes
            ),
        )
        sections += fold(f"Blocks of {block_bytes // 1_000_000} MB, everything included", table_text)
    for distribution in distributions:
        schemes = jobs[size, distribution]
        header = ["seconds", "mean", "median", "99 %", "cost", "arrivals", "fails"]
        table_text = markdown_table(
            header,
            [
                format_job_row(completion, schemes["uncoded"].worker_seconds)
                for completion in schemes.values()
            ],
        )
        sections += fold(f"Arrivals alone: {distribution}", table_text)
    return "\n\n".join(sections)


def fold(title: str, text: str) -> list[str]:
    """Return the lines that show only the title until the reader opens it."""
    return [f'<details markdown="1"><summary>{title}</summary>', text, "</details>"]


def make_total_rows(
    measurements: list[CodeMeasurement], tables: list[dict[str, Completion]], block_bytes: int
) -> list[list[str]]:
    """Return rows of encode, transfer and decode times, and of the mean total under each distribution.

    The coding times are those under the first distribution.
    """
    by_name, rows = {code.name: code for code in measurements}, []
    for schemes in zip(*(jobs.values() for jobs in tables)):
        if schemes[0].tasks_per_worker > 1:
            continue
        coding_seconds = [estimate_coding_seconds(job, by_name, block_bytes) for job in schemes]
        means = [
            format_number(job.mean + job_coding_seconds.total_seconds)
            for job, job_coding_seconds in zip(schemes, coding_seconds)
        ]
        # The multiple differs between distributions.
        is_tuned = schemes[0].scheme.startswith("backup tasks (tuned")
        name = "backup tasks (tuned)" if is_tuned else bold_if_polarmap(schemes[0].scheme)
        rows.append([name, *map(format_number, coding_seconds[0]), *means])
    return rows


def bold_if_polarmap(scheme: str) -> str:
    return f"**{scheme}**" if is_polarmap_scheme(scheme) else scheme


def format_job_row(completion: Completion, uncoded_worker_seconds: float) -> list[str]:
    times = [format_number(time) for time in (completion.mean, completion.p50, completion.p99)]
    failure_text = f"{completion.failure_probability:.2g}" if completion.failure_probability else "0"
    return [
        bold_if_polarmap(completion.scheme),
        *times,
        f"{completion.worker_seconds / uncoded_worker_seconds:.3f}",
        f"{completion.n_results_awaited:,.1f}",
        failure_text,
    ]


def make_code_summary(measurements: list[CodeMeasurement]) -> str:
    """Return a table of the most important codes, without operations and worst cases."""
    rows = [format_code_row(code) for code in measurements if CODE_SUMMARY.match(code.name)]
    header = ["", "beyond k", "encode s/GB", "decode s/GB", "amplification"]
    return markdown_table(header, [[row[0], row[1], row[3], row[5], row[6]] for row in rows])


def make_code_table(size: Size, measurements: list[CodeMeasurement], extra_rows: list[list[str]]) -> str:
    header = ["", "beyond k", "encode ops", "encode s/GB", "decode ops", "decode s/GB"]
    header += ["amplification", "worst"]
    rows = [*(format_code_row(code) for code in measurements), *extra_rows]
    sections = [
        f"## {size.k:,} blocks, {size.n:,} coded",
        f"All codes in this table make {size.n:,} coded blocks out of {size.k:,} data blocks, "
        "or more to fill the grid of a local product code.",
        *fold(f"All codes with {size.k:,} blocks", markdown_table(header, rows)),
    ]
    return "\n\n".join(sections)


def format_code_row(measurement: CodeMeasurement) -> list[str]:
    failure_probability = 1 - measurement.arrivals_needed.probabilities.sum()
    amplification_cells = (
        ["exact", "exact"]
        if measurement.amplification is None
        else [format_power(x) for x in measurement.amplification]
    )
    return [
        bold_if_polarmap(measurement.name),
        f"{measurement.mean_extra_arrivals:.1f}"
        + (f", {failure_probability:.2g} fail" if failure_probability > 1e-9 else ""),
        f"{measurement.encode_operations / measurement.n:.1f}",
        format_number(1e9 * measurement.encode_seconds),
        f"{measurement.decode_operations / measurement.n:.1f}",
        format_number(1e9 * measurement.decode_seconds),
        *amplification_cells,
    ]


def format_row_without_seconds(measurement: CodeMeasurement) -> list[str]:
    """Return a row without the columns that depend on the machine."""
    return ["" if column in (3, 5) else cell for column, cell in enumerate(format_code_row(measurement))]


def format_amplification_row(name: str, amplifications: tuple[float, float]) -> list[str]:
    """Return the row of an MDS code for which only the error amplification is known."""
    return [name, "0.0", *[""] * 4, *map(format_power, amplifications)]


def make_elastic_table(elastic_jobs: Iterable[elastic.ElasticJobs]) -> str:
    header = ["vanish before returning", "", "median s", "5 % s", "95 % s", "worker-seconds"]
    return markdown_table(header, [format_elastic_row(job) for job in elastic_jobs])


def format_elastic_row(job: elastic.ElasticJobs) -> list[str]:
    p5, median_time, p95 = np.quantile(job.completion_times, [0.05, 0.5, 0.95], method="higher").tolist()
    finite_worker_seconds = job.worker_seconds[np.isfinite(job.completion_times)]
    cost = f"{finite_worker_seconds.mean():,.0f}" if len(finite_worker_seconds) else "-"
    return [
        f"{job.lost_fraction:.0%}",
        job.scheme,
        format_number(median_time),
        format_number(p5),
        format_number(p95),
        cost,
    ]


def format_power(exponent: float) -> str:
    """Return 10^exponent, in a form that is readable at any size."""
    return format_number(10**exponent) if exponent < 4 else f"1e{exponent:.0f}"
