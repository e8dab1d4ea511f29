"""Put the table of `python -m benchmarks.iterations` into README: `python -m benchmarks.headlines`."""

from __future__ import annotations

from benchmarks import ROOT
from benchmarks.pages import part_of, table, tables_of, with_parts

PAGE = "docs/comparison-iterations.md"
COMMAND = "python -m benchmarks.iterations"


def iterations(page: str) -> str:
    """Seconds of a step with slow workers, a column for each iteration."""
    found = tables_of(page)
    columns = [{row[0]: row[2] for row in rows} for rows in found.values()]
    body = [[name, *(column.get(name, "-") for column in columns)] for name in list(columns[0])[1:]]
    return table([f"seconds of a step; load average {part_of(page, 'load')}", *found], body)


def with_table(readme: str) -> str:
    """README with its table as the page has it now; ValueError if it lacks it."""
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    return with_parts(readme, {f"from {PAGE}: {COMMAND}": iterations(page)})


def main() -> None:
    """Write README.md anew."""
    path = ROOT / "README.md"
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
