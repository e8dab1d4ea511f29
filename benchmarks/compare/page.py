"""What stands on the pages that begin with docs/comparison of what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from benchmarks import number
from benchmarks.compare import elastic
from benchmarks.compare.codes import Measured, Size
from benchmarks.compare.jobs import BLOCKS, beside_tasks
from benchmarks.pages import table
from benchmarks.rivals.fermat import quantization_error
from polarmap.planning import Completion

Jobs = dict[tuple[Size, str], dict[str, Completion]]
TERMS = (100, 1000)  # of the sums whose quantization is measured
AFFORDABLE = 1.4  # times the worker-seconds of a plain map: twice and thrice of everything is not
OURS = ("rotation", "on demand", "upfront", "as many blocks", "polar, optimal")


def pages(
    codes: dict[Size, list[Measured]],
    extra: dict[Size, list[list[str]]],
    jobs: Jobs,
    crowd: list[elastic.Elastic],
    megabytes: int,
    load: float,
) -> dict[str, dict[str, str]]:
    """The names of pages and the parts to write into them."""
    return {
        "comparison.md": {"fastest": fastest_table(codes, jobs), **against_rotation(codes)},
        "comparison-jobs.md": {
            "sizes": "\n\n".join(job_tables(size, some, jobs) for size, some in codes.items())
        },
        "comparison-codes.md": {
            "load": f"{load:.0f}",
            "megabytes": str(megabytes),
            "sizes": "\n\n".join(code_table(size, codes[size], extra.get(size, [])) for size in codes),
            "quantized": " and ".join(f"{100 * quantization_error(terms):.1f} %" for terms in TERMS),
        },
        "comparison-elastic.md": {"vanishing": elastic_table(crowd)},
    }


def fastest_table(codes: dict[Size, list[Measured]], jobs: Jobs) -> str:
    """The fastest rival and the fastest of polarmap's schemes, with coding and transfer, by the mean."""
    names, rows = list(dict.fromkeys(name for _, name in jobs)), []
    for size, some in codes.items():
        for block in BLOCKS:
            row = [f"{size.k:,} of {block // 1_000_000} MB"]
            for name in names:
                means = whole_means(some, jobs[size, name], block)
                theirs, ours = (
                    min((mean, scheme) for scheme, mean in means.items() if is_ours(scheme) == mine)
                    for mine in (False, True)
                )
                row.append(
                    f"{short(theirs[1])} {number(theirs[0])}<br>**{short(ours[1])}** {number(ours[0])}"
                )
            rows.append(row)
    return table(["blocks", *names], rows)


def short(scheme: str) -> str:
    """Its name, without how much was tuned or starts at once."""
    return re.sub(r" \(tuned.*\)|[\d,]+ upfront, rest ", "", scheme)


def whole_means(some: list[Measured], jobs: dict[str, Completion], block: int) -> dict[str, float]:
    """Mean seconds with coding and transfer, of what is affordable; of k blocks only."""
    by_name, most = {code.name: code for code in some}, AFFORDABLE * jobs["uncoded"].worker_seconds
    return {
        scheme: job.mean + beside_tasks(job, by_name, block).seconds
        for scheme, job in jobs.items()
        if job.tasks_per_worker == 1 and not job.failure_probability and job.worker_seconds <= most
    }


def is_ours(scheme: str) -> bool:
    return any(ours in scheme for ours in OURS) and "embedding" not in scheme


def against_rotation(codes: dict[Size, list[Measured]]) -> dict[str, str]:
    """Ratios to rotation size by size: coding of two rivals, the median amplification of one."""
    found: dict[str, list[str]] = {"dense": [], "sparse": [], "growth": []}
    for size, some in codes.items():
        at = f"at n = {size.n:,}"
        ours = next(code for code in some if code.name == "rotation")
        gaussian = next(code for code in some if code.name == "dense Gaussian")
        ldpc = next(code for code in some if code.name.startswith("LDPC") and "inactivation" in code.name)
        for name, code in (("dense", gaussian), ("sparse", ldpc)):
            encode = code.encode_seconds / ours.encode_seconds
            decode = code.decode_seconds / ours.decode_seconds
            found[name].append(f"{encode:.2g} and {decode:.2g} {at}")
        if ours.amplification is not None and ldpc.amplification is not None:
            found["growth"].append(f"{10 ** (ldpc.amplification[0] - ours.amplification[0]):.2g} {at}")
    return {name: ", ".join(ratios) for name, ratios in found.items()}


def job_tables(size: Size, codes: list[Measured], jobs: Jobs) -> str:
    """With coding and transfer, then arrivals alone, a table for each distribution, to be unfolded."""
    names = [name for of, name in jobs if of == size]
    parts = [f"## {size.k:,} blocks, {size.n:,} coded tasks"]
    for block in BLOCKS:
        header = ["mean seconds", "encode", "transfer", "plan, decode", *names]
        text = table(header, whole_rows(codes, [jobs[size, name] for name in names], block))
        parts += [f"**Blocks of {block // 1_000_000} MB, everything included**", text]
    for name in names:
        schemes = jobs[size, name]
        header = ["seconds", "mean", "median", "99 %", "cost", "arrivals", "fails"]
        text = table(header, [job_row(one, schemes["uncoded"].worker_seconds) for one in schemes.values()])
        summary = f'<details markdown="1"><summary>Arrivals alone: {name}</summary>'
        parts += [summary, text, "</details>"]
    return "\n\n".join(parts)


def whole_rows(codes: list[Measured], tables: list[dict[str, Completion]], block: int) -> list[list[str]]:
    """Encode, transfer and decode under the first distribution, the mean of all under each."""
    by_name, rows = {code.name: code for code in codes}, []
    for schemes in zip(*(jobs.values() for jobs in tables)):
        if schemes[0].pieces > 1:
            continue
        parts = [beside_tasks(job, by_name, block) for job in schemes]
        means = [number(job.mean + part.seconds) for job, part in zip(schemes, parts)]
        tuned = schemes[0].scheme.startswith("backup tasks (tuned")  # by each distribution
        name = "backup tasks (tuned)" if tuned else bold(schemes[0].scheme)
        rows.append([name, *map(number, parts[0]), *means])
    return rows


def bold(scheme: str) -> str:
    return f"**{scheme}**" if is_ours(scheme) else scheme


def job_row(one: Completion, cost: float) -> list[str]:
    times = [number(time) for time in (one.mean, one.p50, one.p99)]
    failing = f"{one.failure_probability:.2g}" if one.failure_probability else "0"
    return [
        bold(one.scheme),
        *times,
        f"{one.worker_seconds / cost:.3f}",
        f"{one.n_results_awaited:,.1f}",
        failing,
    ]


def code_table(size: Size, some: list[Measured], extra: list[list[str]]) -> str:
    header = ["", "beyond k", "encode ops", "encode s/GB", "decode ops", "decode s/GB"]
    header += ["amplification", "worst"]
    rows = [*(code_row(code) for code in some), *extra]
    return f"## {size.k:,} blocks, {size.n:,} coded\n\n{table(header, rows)}"


def code_row(code: Measured) -> list[str]:
    failing = 1 - code.needed.probabilities.sum()
    factors = ["exact", "exact"] if code.amplification is None else [power(x) for x in code.amplification]
    return [
        bold(code.name),
        f"{code.beyond:.1f}" + (f", {failing:.2g} fail" if failing > 1e-9 else ""),
        f"{code.encode / code.n:.1f}",
        number(1e9 * code.encode_seconds),
        f"{code.decode / code.n:.1f}",
        number(1e9 * code.decode_seconds),
        *factors,
    ]


def row_without_seconds(code: Measured) -> list[str]:
    """What does not depend on the machine."""
    return ["" if column in (3, 5) else one for column, one in enumerate(code_row(code))]


def row_of_amplification(name: str, factors: tuple[float, float]) -> list[str]:
    """Of a code any k blocks of which decode, of which nothing else is known."""
    return [name, "0.0", *[""] * 4, *map(power, factors)]


def elastic_table(crowd: Iterable[elastic.Elastic]) -> str:
    header = ["vanish before returning", "", "median s", "5 % s", "95 % s", "worker-seconds"]
    return table(header, [elastic_row(one) for one in crowd])


def elastic_row(one: elastic.Elastic) -> list[str]:
    low, middle, high = np.quantile(one.time, [0.05, 0.5, 0.95], method="higher").tolist()
    paid = one.paid[np.isfinite(one.time)]
    cost = f"{paid.mean():,.0f}" if len(paid) else "-"
    return [f"{one.lost:.0%}", one.scheme, number(middle), number(low), number(high), cost]


def power(exponent: float) -> str:
    """10^exponent, readable at any size."""
    return number(10**exponent) if exponent < 4 else f"1e{exponent:.0f}"
