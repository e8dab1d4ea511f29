"""Hooks of mkdocs that adapt pages written for readers of the repository to readers of the site."""

import configparser
import html
import os
import re
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
NOTEST = re.compile(r'^( *```python) notest="([^"]+)"$', re.MULTILINE)
PROJECT = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}  # Pages of the site, and the files they are made of.
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)*)([\w./-]+)(#[\w-]+)?\)")
INLINE_FORMULA = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>([,.;:!?)]*)', re.DOTALL)
DISPLAYED_FORMULA = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
CELL = re.compile(r"<(t[dh])( style=[^>]*)?>(.*?)</t[dh]>", re.DOTALL)
LONG_CELL = 24  # Characters of a cell from which its text may break into lines in a narrow window.
IMAGE = re.compile(r'<img [^>]*src="([^":]+)"')
WIDE_FIGURE = 600  # Pixels of width from which a figure scrolls in a narrow window, instead of shrinking.
PIXELS = {"pt": 4 / 3, "px": 1.0, "": 1.0}
SITE_NAME = re.compile(r'(<div class="md-header__topic">\s*<span class="md-ellipsis">\s*[\w-]+)')


def on_config(config: Any) -> Any:
    """Take the version and the address of the repository from setup.cfg.

    The site links to the repository and to the source of each page once project_urls of setup.cfg has an
    address named Source, or the environment variable REPOSITORY_URL is set.
    """
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    config.extra["package_version"] = setup["metadata"]["version"]
    config.copyright = f"{config.site_name} {setup['metadata']['version']}, {setup['metadata']['license']}"
    urls = [line.partition(" = ") for line in setup["metadata"]["project_urls"].splitlines()]
    named = {name: url for name, _, url in urls}
    if repository := os.environ.get("REPOSITORY_URL") or named.get("Source"):
        config.repo_url, config.repo_name = repository, "Source"
        config.edit_uri = "edit/main/docs/"
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the README of every backend, and files of the project, as pages of the site."""
    pages = {f"backends/{file.parent.name}.md": file for file in sorted(ROOT.glob("backends/*/README.md"))}
    pages |= {name: ROOT / file for name, file in PROJECT.items()}
    for name, path in pages.items():
        file = File.generated(config, name, content=path.read_text(encoding="utf-8"))
        file.edit_uri = f"../{path.relative_to(ROOT).as_posix()}"
        files.append(file)
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

    if words := search_keywords().get(str(uri)):
        page.meta["tags"] = words
    if str(uri) == "index.md":
        page.meta["hide"] = ["navigation"]  # The tabs lead everywhere.
    markdown = markdown.replace("](docs/figures/", "](figures/")
    return LINK.sub(on_site, NOTEST.sub(_title, markdown))


@cache
def search_keywords() -> dict[str, list[str]]:
    """Return the words by which a search finds a page, by page."""
    return dict(yaml.safe_load((ROOT / "docs" / "search_keywords.yml").read_text(encoding="utf-8")))


def on_page_content(content: str, page: Any, files: Any, **_: Any) -> str:
    """Show formulas as MathML, which browsers draw on their own, and mark long cells and wide figures."""
    content = INLINE_FORMULA.sub(inline_formula, content)
    content = DISPLAYED_FORMULA.sub(lambda match: convert(html.unescape(match[1]), display="block"), content)
    folder = PurePosixPath(page.file.src_uri).parent

    def mark_cell(match: re.Match[str]) -> str:
        length = len(html.unescape(re.sub(r"<[^>]+>", "", match[3])))
        name = ' class="long-cell"' if length >= LONG_CELL and "<br" not in match[3] else ""
        return f"<{match[1]}{match[2] or ''}{name}>{match[3]}</{match[1]}>"

    def mark_image(match: re.Match[str]) -> str:
        file = files.get_file_from_path(os.path.normpath(folder / match[1]))
        given = re.search(r' width="(\d+)"', match[0])  # An attribute before the source.
        width = float(given[1]) if given else image_width(file.content_bytes) if file else 0.0
        is_wide = width >= WIDE_FIGURE
        return match[0].replace("<img ", '<img class="wide-figure" ' if is_wide else "<img ", 1)

    return IMAGE.sub(mark_image, CELL.sub(mark_cell, content))


def inline_formula(match: re.Match[str]) -> str:
    """Return a formula as MathML, in one line with the punctuation that follows it."""
    formula = convert(html.unescape(match[1]))
    return f'<span class="formula">{formula}{match[2]}</span>' if match[2] else formula


def image_width(content: bytes) -> float:
    """Return the width of a PNG, animated WebP or SVG file in pixels, or 0 if it has none."""
    if content.startswith(b"\x89PNG"):
        return float(int.from_bytes(content[16:20], "big"))
    if content[8:16] == b"WEBPVP8X":
        return float(int.from_bytes(content[24:27], "little") + 1)
    match = re.search(rb'<svg[^>]* width="([\d.]+)(pt|px|)"', content)
    return float(match[1]) * PIXELS[match[2].decode()] if match else 0.0


def on_post_page(output: str, config: Any, **_: Any) -> str:
    """Show the version next to the site's name, and stop the theme from querying the repository's host."""
    version = f' <small class="package-version">{config.extra["package_version"]}</small>'
    output = SITE_NAME.sub(lambda match: match[1] + version, output, count=1)
    return output.replace(' data-md-component="source"', "")


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
