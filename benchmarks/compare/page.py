"""The pages that begin with docs/comparison: what was measured, in tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite, log10

import numpy as np

from benchmarks.compare import elastic, prose, whole
from benchmarks.compare.codes import Measured, Size
from benchmarks.compare.goals import Goal
from benchmarks.rivals.fermat import quantization_error
from polarmap.planning import Completion

Jobs = dict[tuple[Size, str], dict[str, Completion]]
TERMS = (100, 1000)  # of the sums whose quantization is measured
SWEEP_SECONDS = 60.0
AFFORDABLE = 1.4  # times the worker-seconds of a plain map: twice and thrice of everything is not
OURS = ("rotation", "on demand", "upfront", "as many blocks", "polar, optimal")


def pages(
    codes: dict[Size, list[Measured]],
    extra: dict[Size, list[tuple[str, ...]]],
    jobs: Jobs,
    aims: list[Goal],
    swept: str,
    crowd: list[elastic.Elastic],
    megabytes: int,
    load: float,
) -> dict[str, str]:
    """The names of files and what to write to them."""
    parts = {
        "comparison.md": overview(codes, jobs, aims, swept),
        "comparison-jobs.md": [
            prose.JOBS,
            *(part for size, some in codes.items() for part in job_tables(size, some, jobs)),
        ],
        "comparison-codes.md": [
            prose.CODES.format(megabytes=megabytes, load=load),
            *(part for size in codes for part in code_tables(size, codes[size], extra.get(size, []))),
            remarks(),
        ],
        "comparison-elastic.md": [prose.ELASTIC, elastic_table(crowd)],
    }
    return {name: "\n\n".join(some) + "\n" for name, some in parts.items()}


def overview(codes: dict[Size, list[Measured]], jobs: Jobs, aims: list[Goal], swept: str) -> list[str]:
    names = list(dict.fromkeys(name for _, name in jobs))
    return [
        prose.OPENING,
        "## What was aimed at",
        prose.AIMS.format(**against_cubed(jobs)),
        table(["goal", "at most", *names], [goal_row(goal, names) for goal in aims]),
        swept,
        "## Which is fastest",
        prose.FASTEST,
        table(["blocks", *names], fastest_rows(codes, jobs, names)),
        prose.WINNERS.format(**against_rotation(codes)),
    ]


def against_cubed(jobs: Jobs) -> dict[str, str]:
    """99 % quantiles relative to those of cubed's rule, of the first size under each distribution."""
    first = [schemes for (size, _), schemes in jobs.items() if size == next(iter(jobs))[0]]

    def ratios(scheme: str) -> str:
        return ", ".join(f"{job[scheme].p99 / job['backup tasks (cubed)'].p99:.2f}" for job in first)

    return {"upfront": ratios("rotation"), "demanded": ratios("on demand")}


def swept(trials: int, seconds: float) -> str:
    """The goal that is of no distribution."""
    verdict = "met" if seconds <= SWEEP_SECONDS else "**missed**"
    return (
        f"Decode times of {trials:,} jobs of 10,000 workers under the papers' decoder: "
        f"{number(seconds)} core-seconds, at most {SWEEP_SECONDS:g}: {verdict}."
    )


def fastest_rows(codes: dict[Size, list[Measured]], jobs: Jobs, names: list[str]) -> Iterable[list[str]]:
    """The fastest rival and the fastest of polarmap's schemes, with coding and transfer, by the mean."""
    for size, some in codes.items():
        for block in whole.BLOCKS:
            row = [f"{size.k:,} of {block // 1_000_000} MB"]
            for name in names:
                means = whole_means(some, jobs[size, name], block)
                theirs, ours = (
                    min((mean, scheme) for scheme, mean in means.items() if is_ours(scheme) == mine)
                    for mine in (False, True)
                )
                row.append(f"{theirs[1]} {number(theirs[0])}, **{ours[1]}** {number(ours[0])}")
            yield row


def whole_means(some: list[Measured], jobs: dict[str, Completion], block: int) -> dict[str, float]:
    """Mean seconds with coding and transfer, of what is affordable; of k blocks only."""
    by_name, most = {code.name: code for code in some}, AFFORDABLE * jobs["uncoded"].paid
    return {
        scheme: job.mean + whole.beside_tasks(job, by_name, block).seconds
        for scheme, job in jobs.items()
        if job.pieces == 1 and not job.failure_probability and job.paid <= most
    }


def is_ours(scheme: str) -> bool:
    return any(ours in scheme for ours in OURS) and "embedding" not in scheme


def against_rotation(codes: dict[Size, list[Measured]]) -> dict[str, str]:
    """Ratios to rotation size by size: coding of two rivals, the median amplification of one."""
    dense, sparse, growth = [], [], []
    for size, some in codes.items():
        at = f"at n = {size.n:,}"
        ours = next(code for code in some if code.name == "rotation")
        gaussian = next(code for code in some if code.name == "dense Gaussian")
        ldpc = next(code for code in some if code.name.startswith("LDPC") and "inactivation" in code.name)
        for code, ratios in ((gaussian, dense), (ldpc, sparse)):
            encode = code.encode_seconds / ours.encode_seconds
            decode = code.decode_seconds / ours.decode_seconds
            ratios.append(f"{encode:.2g} and {decode:.2g} {at}")
        if ours.amplification is not None and ldpc.amplification is not None:
            growth.append(f"{10 ** (ldpc.amplification[0] - ours.amplification[0]):.2g} {at}")
    return {"dense": ", ".join(dense), "sparse": ", ".join(sparse), "growth": ", ".join(growth)}


def remarks() -> str:
    errors = " and ".join(f"{100 * quantization_error(terms):.1f} %" for terms in TERMS)
    return prose.REMARKS.format(terms=f"sums of {TERMS[0]} and {TERMS[1]} terms", errors=errors)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def goal_row(goal: Goal, names: list[str]) -> list[str]:
    return [goal.what, number(goal.limit), *(goal_cell(goal, name) for name in names)]


def goal_cell(goal: Goal, name: str) -> str:
    verdict = "met" if goal.is_met(name) else "**missed**"
    remark = f" ({goal.remarks[name]})" if name in goal.remarks else ""
    return f"{number(goal.found[name])} {verdict}{remark}"


def job_tables(size: Size, codes: list[Measured], jobs: Jobs) -> list[str]:
    """With coding and transfer, then arrivals alone, a table for each distribution, to be unfolded."""
    names = [name for of, name in jobs if of == size]
    parts = [f"## {size.k:,} blocks, {size.n:,} coded tasks"]
    for block in whole.BLOCKS:
        title = f"Blocks of {block // 1_000_000} MB, everything included"
        header = ["mean seconds", "encode", "transfer", "plan, decode", *names]
        text = table(header, whole_rows(codes, [jobs[size, name] for name in names], block))
        parts += [f"**{title}**", text]
    for name in names:
        schemes = jobs[size, name]
        header = ["seconds", "mean", "median", "99 %", "cost", "arrivals", "fails"]
        rows = [job_row(one, schemes["uncoded"].paid) for one in schemes.values()]
        parts += folding(f"Arrivals alone: {name}", table(header, rows))
    return parts


def whole_rows(codes: list[Measured], tables: list[dict[str, Completion]], block: int) -> list[list[str]]:
    """Encode, transfer and decode under the first distribution, the mean of all under each."""
    by_name, rows = {code.name: code for code in codes}, []
    for schemes in zip(*(jobs.values() for jobs in tables)):
        if schemes[0].pieces > 1:
            continue
        parts = [whole.beside_tasks(job, by_name, block) for job in schemes]
        means = [number(job.mean + part.seconds) for job, part in zip(schemes, parts)]
        cells = [number(value) for value in (parts[0].encode, parts[0].transfer, parts[0].decode)]
        tuned = schemes[0].scheme.startswith("backup tasks (tuned")  # by each distribution
        rows.append(["backup tasks (tuned)" if tuned else bold(schemes[0].scheme), *cells, *means])
    return rows


def bold(scheme: str) -> str:
    return f"**{scheme}**" if is_ours(scheme) else scheme


def job_row(one: Completion, cost: float) -> list[str]:
    name = bold(one.scheme)
    times = [number(time) for time in (one.mean, one.p50, one.p99)]
    failing = f"{one.failure_probability:.2g}" if one.failure_probability else "0"
    return [name, *times, f"{one.paid / cost:.3f}", f"{one.arrivals:,.1f}", failing]


def folding(title: str, text: str) -> list[str]:
    return [f'<details markdown="1"><summary>{title}</summary>', text, "</details>"]


def code_tables(size: Size, some: list[Measured], extra: list[tuple[str, ...]]) -> list[str]:
    header = [
        *["", "beyond k", "fails", "first use s", "encode ops", "encode s/GB"],
        *["plan s", "decode ops", "decode s/GB", "amplification", "worst", "error"],
    ]
    rows = [*(code_row(code) for code in some), *extra]
    return [f"## {size.k:,} blocks, {size.n:,} coded", table(header, rows)]


def code_row(code: Measured) -> list[str]:
    failing = 1 - code.needed.weights.sum()
    factors = ["exact", "exact"] if code.amplification is None else [power(x) for x in code.amplification]
    return [
        bold(code.name),
        f"{code.beyond:.1f}",
        f"{failing:.2g}" if failing > 1e-9 else "0",
        number(code.first_seconds),
        f"{code.encode / code.n:.1f}",
        number(1e9 * code.encode_seconds),
        number(code.plan_seconds),
        f"{code.decode / code.n:.1f}",
        number(1e9 * code.decode_seconds),
        *factors,
        f"{code.error:.0e}" if code.error else "0",
    ]


def row_without_seconds(code: Measured) -> tuple[str, ...]:
    """What does not depend on the machine."""
    return tuple("" if column in (3, 5, 6, 8, 11) else one for column, one in enumerate(code_row(code)))


def elastic_table(crowd: list[elastic.Elastic]) -> str:
    header = ["vanish before returning", "", "median s", "5 % s", "95 % s", "worker-seconds"]
    return table(header, [elastic_row(one) for one in crowd])


def elastic_row(one: elastic.Elastic) -> list[str]:
    low, middle, high = np.quantile(one.time, [0.05, 0.5, 0.95], method="higher").tolist()
    paid = one.paid[np.isfinite(one.time)]
    cost = f"{paid.mean():,.0f}" if len(paid) else "-"
    return [f"{one.lost:.0%}", one.scheme, number(middle), number(low), number(high), cost]


def number(value: float) -> str:
    """Three significant digits, without exponents where they are not needed."""
    if not isfinite(value):
        return "never"
    if value == 0:
        return "0"
    digits = max(0, 2 - int(log10(abs(value)) // 1))
    return f"{value:,.{digits}f}" if digits < 7 else f"{value:.1e}"


def power(exponent: float) -> str:
    """10^exponent, readable at any size."""
    return number(10**exponent) if exponent < 4 else f"1e{exponent:.0f}"
