"""Put README's tables in, from the pages that benchmarks write: `python -m benchmarks.headlines`."""

from __future__ import annotations

from benchmarks import ROOT
from benchmarks.pages import Table, part_of, table, tables_of, with_parts


def columns_of(rows: Table, names: list[str]) -> Table:
    """The first column and those of these names, header included."""
    places = [0, *(rows[0].index(name) for name in names)]
    return [[row[place] for place in places] for row in rows]


def jobs(page: str) -> str:
    """Of real jobs: every scheme under the first distribution."""
    title, rows = next(iter(tables_of(page).items()))
    header, *body = columns_of(rows, ["median", "99 %", "worker-seconds"])
    title = f"{part_of(page, 'jobs')} jobs, {title}; load average {part_of(page, 'load')}"
    return table([title, *header[1:]], body)


def iterations(page: str) -> str:
    """Of iterations: seconds of a step with slow workers, a column for each iteration."""
    found = tables_of(page)
    columns = [{row[0]: row[2] for row in rows} for rows in found.values()]
    body = [[name, *(column.get(name, "-") for column in columns)] for name in list(columns[0])[1:]]
    return table([f"seconds of a step; load average {part_of(page, 'load')}", *found], body)


def arrivals(page: str) -> str:
    """Of codes: results beyond k, a column for each size."""
    found = tables_of(page)
    columns = [dict(zip(*zip(*columns_of(rows, ["beyond k"])[1:]))) for rows in found.values()]
    names = {
        "polar, sequential": "Arikan, sequential (the papers)",
        "**polar, optimal, integers**": "Arikan, optimal over the integers",
        "**rotation**": "rotation",
    }
    sizes = [size.replace(" blocks,", " of").removesuffix(" coded") for size in found]
    body = [[ours, *(column[name] for column in columns)] for name, ours in names.items()]
    return table(["results needed beyond k (mean, random order)", *sizes], body)


SOURCES = {
    "docs/real-jobs.md": ("benchmarks.stragglers", jobs),
    "docs/comparison-iterations.md": ("benchmarks.iterations", iterations),
    "docs/comparison-codes.md": ("benchmarks.compare", arrivals),
}


def with_tables(readme: str) -> str:
    """README with its tables as the pages have them now; ValueError for one that it lacks."""
    taken = {
        f"from {path}: python -m {command}": of((ROOT / path).read_text(encoding="utf-8"))
        for path, (command, of) in SOURCES.items()
    }
    return with_parts(readme, taken)


def main() -> None:
    """Write README.md anew."""
    path = ROOT / "README.md"
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
