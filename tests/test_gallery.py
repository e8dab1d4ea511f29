"""Check which examples are in the gallery, and how a script becomes a notebook and a page."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPT = """# %% [markdown]
# # A line
#
# Drawn by *matplotlib*.

# %%
import matplotlib.pyplot as plt

print("one")
plt.plot([1, 2])
print("two")
plt.show()

# %% [markdown]
# The end.
"""


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    """Load the hook of mkdocs that builds the gallery."""
    spec = spec_from_file_location("gallery", ROOT / "docs" / "gallery.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def titles(gallery: ModuleType) -> dict[str, str]:
    """Return the first cell of each notebook among the examples, by name."""
    return {path.stem: gallery.notebook_of(text).cells[0].source for path, text in gallery.scripts().items()}


def test_a_script_becomes_a_page_with_what_its_cells_show(gallery: ModuleType) -> None:
    notebook = gallery.notebook_of(SCRIPT)
    asyncio.run(gallery.execute([notebook]))
    nbformat.validate(notebook)
    page, pictures = gallery.page_of("line", notebook)
    title, links, code, printed, picture, end = re.split(r"\n\n(?=\[Download|```|!\[|The end)", page)
    assert title == "# A line\n\nDrawn by *matplotlib*."
    assert "(line.ipynb)" in links and "`examples/line.py`" in links
    assert code.startswith("```python\nimport matplotlib") and code.endswith("plt.show()\n```")
    assert (printed, end) == ('```text title="Output"\none\ntwo\n```', "The end.\n")
    assert picture.endswith("(line-1.png)")
    assert pictures["line-1.png"].startswith(b"\x89PNG")


def test_the_gallery_shows_every_example(titles: dict[str, str]) -> None:
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    cards = {
        name: title for title, name in re.findall(r"^- \[(.+)\]\(\.\./examples/(\w+)\.py\)$", page, re.M)
    }
    assert len(cards) == 10
    assert {name: f"# {title}" for name, title in cards.items()} == {
        name: title.partition("\n")[0] for name, title in titles.items()
    }
    other_names = set(re.findall(r"`(\w+(?:\.py)?)`", page))
    existing = {path.name for path in (ROOT / "examples").iterdir() if path.name != "__pycache__"}
    assert existing == other_names | {f"{name}.py" for name in cards}


def find_sections(entries: list[Any], title: str) -> Iterator[list[dict[str, str]]]:
    """Yield the entries of each section of the navigation with this title, at any depth."""
    for name, content in [item for entry in entries if isinstance(entry, dict) for item in entry.items()]:
        if name == title:
            yield content
        elif isinstance(content, list):
            yield from find_sections(content, title)


def test_every_notebook_is_in_the_navigation(titles: dict[str, str]) -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    [pages] = find_sections(site["nav"], "Gallery")
    named = [page for entry in pages for page in entry.values()]
    assert sorted(named) == sorted(["gallery.md", *(f"gallery/{name}.md" for name in titles)])
