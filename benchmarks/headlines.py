"""README's tables, taken from the pages that benchmarks write: `python -m benchmarks.headlines` puts them in.

Each stands between two comments, of which the first says which page and which command it comes from.
"""

from __future__ import annotations

import re

from benchmarks import ROOT
from benchmarks.compare.page import table

Table = list[list[str]]  # cells of its rows, the header first


def tables_of(page: str) -> dict[str, Table]:
    """The tables of a page by what they stand under: a heading, or a line in bold."""
    found: dict[str, Table] = {}
    title = ""
    for line in page.splitlines():
        head = re.match(r"#+ (.+)|\*\*(.+)\*\*$", line)
        if head:
            title = next(filter(None, head.groups()))
        elif line.startswith("|") and not line.startswith("|---"):
            found.setdefault(title, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def columns_of(rows: Table, names: list[str]) -> Table:
    """The first column and those of these names, header included."""
    places = [0, *(rows[0].index(name) for name in names)]
    return [[row[place] for place in places] for row in rows]


def load_of(page: str) -> str:
    """What else the machine did, as the page says it."""
    found: str = re.findall(r"load\s+average\s+\d+\.\d+", page)[0]
    return " ".join(found.split())


def jobs(page: str) -> str:
    """Of real jobs: every scheme under the first distribution."""
    title, rows = next(iter(tables_of(page).items()))
    header, *body = columns_of(rows, ["median", "99 %", "worker-seconds"])
    count = re.findall(r"(\d+) jobs of each", page)[0]
    return table([f"{count} jobs, {title}; {load_of(page)}", *header[1:]], body)


def iterations(page: str) -> str:
    """Of iterations: seconds of a step with slow workers, a column for each iteration."""
    found = tables_of(page)
    first = next(iter(found.values()))
    columns = [{row[0]: row[2] for row in rows} for rows in found.values()]
    names = [row[0] for row in first[1:]]
    body = [[name, *(column.get(name, "-") for column in columns)] for name in names]
    return table([f"seconds of a step; {load_of(page)}", *found], body)


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
    for path, (command, taken) in SOURCES.items():
        first, last = f"<!-- from {path}: python -m {command} -->\n", "<!-- end -->"
        before, found, rest = readme.partition(first)
        _, ended, after = rest.partition(last)
        if not (found and ended):
            raise ValueError(f"README.md has no {first.strip()} with an <!-- end --> behind it")
        readme = before + first + taken((ROOT / path).read_text(encoding="utf-8")) + "\n" + last + after
    return readme


def main() -> None:
    """Write README.md anew."""
    path = ROOT / "README.md"
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
