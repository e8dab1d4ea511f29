"""Pages with what benchmarks measure: the words stand on the page, what is measured between two comments.

`<!-- load -->8.6<!-- end -->` in a line, or on lines of their own around a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks import ROOT

Table = list[list[str]]  # cells of its rows, the header first


def output_folder(quick: bool) -> Path:
    """Where pages are written: docs/, or of a quick run build/comparison/."""
    output_path = ROOT / "build" / "comparison" if quick else ROOT / "docs"
    (output_path / "figures").mkdir(parents=True, exist_ok=True)
    return output_path


def write_page(page_name: str, parts: Mapping[str, str], quick: bool) -> None:
    """Put what was measured into a page."""
    text = replace_parts((ROOT / "docs" / page_name).read_text(encoding="utf-8"), parts)
    path = output_folder(quick) / page_name
    path.write_text(text, encoding="utf-8")
    print(f"{path.relative_to(ROOT)} written", flush=True)


def replace_parts(page: str, parts: Mapping[str, str]) -> str:
    """The page with new parts; ValueError for one that has no place on it."""
    for name, text in parts.items():
        part_match = _find_part(page, name)
        page = page[: part_match.start(1)] + text + page[part_match.end(1) :]
    return page


def extract_part(page: str, part_name: str) -> str:
    """What stands on the page in the place of that name."""
    return _find_part(page, part_name)[1]


def _find_part(page: str, part_name: str) -> re.Match[str]:
    part_match = re.search(rf"<!-- {re.escape(part_name)} -->\s*(\S.*?|)\s*<!-- end -->", page, re.DOTALL)
    if part_match is None:
        raise ValueError(f"the page has no <!-- {part_name} --> with an <!-- end --> behind it")
    return part_match


def parse_tables(page: str) -> dict[str, Table]:
    """The tables of a page by what they stand under: a heading, or a line in bold."""
    tables: dict[str, Table] = {}
    title = ""
    for line in page.splitlines():
        heading = re.match(r"#+ (.+)|\*\*(.+)\*\*$", line)
        if heading:
            title = next(filter(None, heading.groups()))
        elif line.startswith("|") and not line.startswith("|---"):
            tables.setdefault(title, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return tables


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
