"""Hooks of mkdocs that adapt pages written for readers of the repository to readers of the site."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
NOTEST = re.compile(r'^( *```python) notest="([^"]+)"$', re.MULTILINE)
PROJECT = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}  # Pages of the site, and the files they are made of.
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)*)([\w./-]+)(#[\w-]+)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the README of every backend, and files of the project, as pages of the site."""
    pages = {f"backends/{file.parent.name}.md": file for file in sorted(ROOT.glob("backends/*/README.md"))}
    pages |= {name: ROOT / file for name, file in PROJECT.items()}
    for name, file in pages.items():
        files.append(File.generated(config, name, content=file.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Show the requirements of untested code blocks, and remove links to files that are not on the site."""
    uri = PurePosixPath(page.file.src_uri)
    # The folder of the page in the repository.
    home = ROOT / uri.parent / uri.stem if uri.parts[0] == "backends" else ROOT / "docs" / uri.parent
    home = ROOT if str(uri) in PROJECT else home

    def on_site(match: re.Match[str]) -> str:
        text, up, path, anchor = match.groups()
        target = (home / (up + path)).resolve()
        if not target.exists():
            return match[0]  # mkdocs reports broken links.
        inside = _uri(target)
        if inside is None or files.get_file_from_path(inside) is None:
            place = target.relative_to(ROOT)
            return f"`{place}`" if text.strip("`") in str(place) else f"{text} (`{place}`)"
        return f"[{text}]({'../' * (len(uri.parts) - 1)}{inside}{anchor or ''})"

    markdown = markdown.replace("](docs/figures/", "](figures/")
    return LINK.sub(on_site, NOTEST.sub(_title, markdown))


def _title(fence: re.Match[str]) -> str:
    """Return the fence of an untested code block with its requirement as a title."""
    return f'{fence[1]} title="{fence[2][0].upper()}{fence[2][1:]}"'


def _uri(target: Path) -> str | None:
    """Return the page or file of the site that shows a file of the repository, or None."""
    if target.is_relative_to(ROOT / "docs"):
        return target.relative_to(ROOT / "docs").as_posix()
    for name, file in PROJECT.items():
        if target == ROOT / file:
            return name
    if target.parent == ROOT / "examples" and target.suffix == ".py":
        return f"gallery/{target.stem}.md"
    if target.parent.parent == ROOT / "backends" and target.name == "README.md":
        return f"backends/{target.parent.name}.md"
    return None
