"""The pages that begin with docs/comparison: what was measured, in tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from math import isfinite, log10

import numpy as np

from benchmarks.compare import elastic, prose
from benchmarks.compare.codes import Measured, Size
from benchmarks.compare.goals import Goal
from benchmarks.rivals.fermat import quantization_error
from polarmap.planning import Completion

Jobs = dict[tuple[Size, str], dict[str, Completion]]
TERMS = (100, 1000)  # of the sums whose quantization is measured
OURS = ("rotation", "on demand", "upfront", "subtasks", "polar, optimal")


def pages(
    codes: dict[Size, list[Measured]],
    extra: dict[Size, list[tuple[str, ...]]],
    jobs: Jobs,
    aims: list[Goal],
    crowd: list[elastic.Elastic],
    megabytes: int,
    load: float,
) -> dict[str, str]:
    """The names of files and what to write to them."""
    parts = {
        "comparison.md": overview(codes, aims),
        "comparison-jobs.md": [prose.JOBS, *(part for size in codes for part in job_tables(size, jobs))],
        "comparison-codes.md": [
            prose.CODES.format(megabytes=megabytes, cores=os.cpu_count(), load=load),
            *(part for size in codes for part in code_tables(size, codes[size], extra.get(size, []))),
            remarks(),
        ],
        "comparison-elastic.md": [prose.ELASTIC, elastic_table(crowd)],
    }
    return {name: "\n\n".join(some) + "\n" for name, some in parts.items()}


def overview(codes: dict[Size, list[Measured]], aims: list[Goal]) -> list[str]:
    return [
        prose.OPENING,
        "## What was aimed at",
        table(["goal", "found", "at most", ""], [goal_row(goal) for goal in aims]),
        prose.WINNERS.format(growth=growth(codes)),
    ]


def growth(codes: dict[Size, list[Measured]]) -> str:
    """The median amplification of LDPC relative to that of rotation, size by size."""
    ratios = []
    for size, some in codes.items():
        ours, theirs = (
            next(code.amplification for code in some if code.name.startswith(name))
            for name in ("rotation", "LDPC")
        )
        if ours is not None and theirs is not None:
            ratios.append(f"{10 ** (theirs[0] - ours[0]):.2g} at n = {size.n:,}")
    return ", ".join(ratios)


def remarks() -> str:
    errors = " and ".join(f"{100 * quantization_error(terms):.1f} %" for terms in TERMS)
    return prose.REMARKS.format(terms=f"sums of {TERMS[0]} and {TERMS[1]} terms", errors=errors)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def goal_row(goal: Goal) -> list[str]:
    return [goal.what, number(goal.found), number(goal.limit), "met" if goal.is_met else "**missed**"]


def job_tables(size: Size, jobs: Jobs) -> list[str]:
    """A table for each distribution; those of all sizes but the first can be unfolded."""
    parts = [f"## {size.k:,} blocks, {size.n:,} coded tasks"]
    folded = size != next(iter(jobs))[0]
    for (of, name), schemes in jobs.items():
        if of == size:
            cost = schemes["uncoded"].paid
            header = ["seconds", "mean", "median", "99 %", "cost", "arrivals", "fails"]
            rows = [job_row(one, cost) for one in schemes.values()]
            parts += folding(name, table(header, rows)) if folded else [f"**{name}**", table(header, rows)]
    return parts


def job_row(one: Completion, cost: float) -> list[str]:
    name = f"**{one.scheme}**" if any(ours in one.scheme for ours in OURS) else one.scheme
    times = [number(time) for time in (one.mean, one.p50, one.p99)]
    arrivals = "" if "subtasks" in one.scheme else f"{one.arrivals:,.1f}"
    failing = f"{one.failure_probability:.2g}" if one.failure_probability else "0"
    return [name, *times, f"{one.paid / cost:.3f}", arrivals, failing]


def folding(title: str, text: str) -> list[str]:
    return [f'<details markdown="1"><summary>{title}</summary>', text, "</details>"]


def code_tables(size: Size, some: list[Measured], extra: list[tuple[str, ...]]) -> list[str]:
    header = [
        *["", "beyond k", "fails", "encode ops", "encode s"],
        *["decode ops", "plan s", "decode s", "amplification", "worst"],
    ]
    rows = [*(code_row(size, code) for code in some), *extra]
    return [f"## {size.k:,} blocks, {size.n:,} coded", table(header, rows)]


def code_row(size: Size, code: Measured) -> list[str]:
    failing = 1 - code.needed.weights.sum()
    factors = ["exact", "exact"] if code.amplification is None else [power(x) for x in code.amplification]
    return [
        f"**{code.name}**" if any(ours in code.name for ours in OURS) else code.name,
        f"{code.beyond:.1f}",
        f"{failing:.2g}" if failing > 1e-9 else "0",
        f"{code.encode / size.n:.1f}",
        number(code.encode_seconds),
        f"{code.decode / size.n:.1f}",
        number(code.plan_seconds),
        number(code.decode_seconds),
        *factors,
    ]


def row_without_seconds(size: Size, code: Measured) -> tuple[str, ...]:
    """What does not depend on the machine."""
    return tuple("" if column in (4, 6, 7) else one for column, one in enumerate(code_row(size, code)))


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
