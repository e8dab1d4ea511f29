"""Update pages with measured values: the text is written by hand, values are put between two comments.

A value looks like `<!-- load -->8.6<!-- end -->` within a line. A table has each comment on a separate line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks import ROOT

Table = list[list[str]]  # Cells of its rows, header first.


def output_folder(quick: bool) -> Path:
    """Return the folder for pages, docs/ or for a quick run build/comparison/, and create it if needed."""
    output_path = ROOT / "build" / "comparison" if quick else ROOT / "docs"
    (output_path / "figures").mkdir(parents=True, exist_ok=True)
    return output_path


def write_page(page_name: str, parts: Mapping[str, str], quick: bool) -> None:
    """Insert measured values into a page and write it to the output folder."""
    text = replace_parts((ROOT / "docs" / page_name).read_text(encoding="utf-8"), parts)
    path = output_folder(quick) / page_name
    path.write_text(text, encoding="utf-8")
    print(f"{path.relative_to(ROOT)} written", flush=True)


def replace_parts(page: str, parts: Mapping[str, str]) -> str:
    """Return the page with new parts. Raise ValueError if the page lacks one of the parts."""
    for name, text in parts.items():
        part_match = _find_part(page, name)
        page = page[: part_match.start(1)] + text + page[part_match.end(1) :]
    return page


def extract_part(page: str, part_name: str) -> str:
    """Return the text of the part with this name."""
    return _find_part(page, part_name)[1]


def _find_part(page: str, part_name: str) -> re.Match[str]:
    part_match = re.search(rf"<!-- {re.escape(part_name)} -->\s*(\S.*?|)\s*<!-- end -->", page, re.DOTALL)
    if part_match is None:
        raise ValueError(f"the page has no <!-- {part_name} --> with an <!-- end --> behind it")
    return part_match


def parse_tables(page: str) -> dict[str, Table]:
    """Return the tables of a page by their titles: the heading or bold line above each."""
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
    """Return a Markdown table; all columns but the first are right-aligned."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
