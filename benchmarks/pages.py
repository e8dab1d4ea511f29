"""Pages with what benchmarks measure: the words stand on the page, what is measured between two comments.

`<!-- load -->8.6<!-- end -->` in a line, or on lines of their own around a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks import ROOT

Table = list[list[str]]  # cells of its rows, the header first


def folder(quick: bool) -> Path:
    """Where pages are written: docs/, or of a quick run build/comparison/."""
    found = ROOT / "build" / "comparison" if quick else ROOT / "docs"
    (found / "figures").mkdir(parents=True, exist_ok=True)
    return found


def write(name: str, parts: Mapping[str, str], quick: bool) -> None:
    """Put what was measured into a page."""
    text = with_parts((ROOT / "docs" / name).read_text(encoding="utf-8"), parts)
    path = folder(quick) / name
    path.write_text(text, encoding="utf-8")
    print(f"{path.relative_to(ROOT)} written", flush=True)


def with_parts(page: str, parts: Mapping[str, str]) -> str:
    """The page with new parts; ValueError for one that has no place on it."""
    for name, text in parts.items():
        found = _place(page, name)
        page = page[: found.start(1)] + text + page[found.end(1) :]
    return page


def part_of(page: str, name: str) -> str:
    """What stands on the page in the place of that name."""
    return _place(page, name)[1]


def _place(page: str, name: str) -> re.Match[str]:
    found = re.search(rf"<!-- {re.escape(name)} -->\s*(\S.*?|)\s*<!-- end -->", page, re.DOTALL)
    if found is None:
        raise ValueError(f"the page has no <!-- {name} --> with an <!-- end --> behind it")
    return found


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


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
