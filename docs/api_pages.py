"""Give every public name of polarmap its own page, and link names and pages in both directions.

The pages of docs/reference list names as `::: polarmap.coded_map`, in sections with introductions. On the
site they are the index pages of the reference: each name becomes a line with a link and the first sentence of
its docstring. The page of a name has the rendered docstring, its source, and the pages whose code uses it.
"""

import ast
import html
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from mkdocs.structure.files import File
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).parents[1]
ENTRY = re.compile(r"^::: ([\w.]+)\n((?: +.*\n)*)", re.MULTILINE)
PYTHON = re.compile(r"^( *)```python[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r"^(?:# %% \[markdown\]\n)?(?:# )?# (.+)$", re.MULTILINE)
# The pages of names come after all other pages in the results of a search.
SEARCH_BOOST = 0.2
# Words that code spans also use for options, methods or commands: they link only as `polarmap.plan`.
COMMON_WORDS = {"apply", "frontier", "measure", "plan", "shutdown", "simplex", "submit"}
# Docstrings use these common words only for the function.
WORDS_OF_DOCSTRINGS = {"plan", "simplex"}
# Elements whose text gets no link, because it is a link or a title already.
CLOSED_ELEMENTS = {"a", "autoref", "button", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "summary", "title"}
TAG = re.compile(r"(<[^>]+>)")
CODE_BLOCK = re.compile(r'(<div class="language-python[^"]*highlight">)(.*?)(</code></pre>)', re.DOTALL)
CODE_NAME = re.compile(r'<span class="n">(\w+)</span>')
# A name after `polarmap.` in a highlighted program.
CODE_ATTRIBUTE = re.compile(
    r'(<span class="n">polarmap</span><span class="o">\.</span>)<span class="n">(\w+)</span>'
)
IMPORT = re.compile(r"^ *from (polarmap[\w.]*) import (?:\(([^)]*)\)|([\w ,]+))", re.MULTILINE)
SOURCE = re.compile(r'<details class="mkdocstrings-source">.*?</details>', re.DOTALL)
SOURCE_PLACE = re.compile(r"<!-- source (\d+) -->")


class ApiName(NamedTuple):
    """A public name of polarmap that has a page."""

    path: str  # The dotted name, as users import it.
    options: str  # Lines after `:::` in the index page, indented by four spaces.
    index: str  # The index page that lists the name.

    @property
    def short(self) -> str:
        """The name without its module."""
        return self.path.rpartition(".")[2]

    @property
    def uri(self) -> str:
        """The page of the name, below docs/."""
        return f"reference/{self.path}.md"


@cache
def index_pages() -> dict[str, str]:
    """Return the texts of the index pages of the reference, by page."""
    paths = sorted((ROOT / "docs" / "reference").glob("*.md"))
    return {f"reference/{path.name}": path.read_text(encoding="utf-8") for path in paths}


@cache
def api_names() -> list[ApiName]:
    """Return the names that the index pages list, in their order. Modules stay on the index page."""
    return [
        ApiName(match[1], match[2], uri)
        for uri, text in index_pages().items()
        for match in ENTRY.finditer(f"{text}\n")
        if not inspect.ismodule(find_object(match[1]))
    ]


@cache
def find_object(path: str) -> Any:
    """Return the object with a dotted name, or None if it does not exist."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found
    return None


# --- navigation and files -------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Turn each index page of the reference into a section of the navigation with the pages of its names."""
    by_index: dict[str, list[ApiName]] = {}
    for name in api_names():
        by_index.setdefault(name.index, []).append(name)

    def expand(entries: list[Any]) -> list[Any]:
        expanded: list[Any] = []
        for entry in entries:
            if isinstance(entry, str):
                expanded.append(entry)
                continue
            for title, page in entry.items():
                expanded.append({title: expand(page) if isinstance(page, list) else section_of(page)})
        return expanded

    def section_of(page: str) -> Any:
        names = by_index.get(page, [])
        return [page, *({name.short: name.uri} for name in names)] if names else page

    config.nav = expand(config.nav)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each public name."""
    uses = find_uses()
    for name in api_names():
        files.append(File.generated(config, name.uri, content=page_of(name, uses.get(name.path, []))))
    return files


def on_nav(nav: Any, files: Any, **_: Any) -> Any:
    """Let the titles of sections in the navigation lead to their index pages."""
    for uri in index_pages():
        file = files.get_file_from_path(uri)
        assert file.url, "the address is computed from the name, and stays"
        file.name = "index"
    return nav


def page_of(name: ApiName, users: list[tuple[str, str]]) -> str:
    """Return the page of a name as Markdown."""
    options = "".join(f"{line}\n" for line in name.options.splitlines() if "options:" not in line)
    text = (
        f"---\ntitle: {name.path}\nsearch:\n  boost: {SEARCH_BOOST}\n---\n\n"
        f"::: {name.path}\n    options:\n      heading_level: 1\n{options}\n"
    )
    if users:
        lines = [f"- [{title}]({uri})" if uri.endswith(".md") else f"- `{uri}`" for title, uri in users]
        text += "## Used in\n\n" + "\n".join(lines) + "\n"
    return text


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Show the names of an index page as a list with links and first sentences."""
    if page.file.src_uri not in index_pages():
        return markdown
    uri_by_path = {name.path: name.uri for name in api_names()}

    def line(match: re.Match[str]) -> str:
        path = match[1]
        if path not in uri_by_path:
            return match[0]
        file = uri_by_path[path].rpartition("/")[2]
        return f"- [`{path}`]({file}): {first_sentence(path)}\n"

    # Without the empty lines between them, the names are one list.
    listed = re.sub(r"\n\n(?=- \[`polarmap)", "\n", ENTRY.sub(line, f"{markdown}\n"))
    return re.sub(r"^(?!- )(.*)\n(?=- \[`polarmap)", r"\1\n\n", listed, flags=re.MULTILINE)


def first_sentence(path: str) -> str:
    """Return the first sentence of the docstring of a name."""
    paragraph = " ".join((inspect.getdoc(find_object(path)) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s(?=[A-Z])", paragraph)[0]


# --- from a name to the pages that use it ---------------------------------------------------------


def find_uses() -> dict[str, list[tuple[str, str]]]:
    """Return the title and page of each page whose code uses a public name, by name.

    Examples without a page are named by their path.
    """
    path_by_object = {id(find_object(name.path)): name.path for name in api_names()}
    uses: dict[str, list[tuple[str, str]]] = {}
    for title, uri, code in sources():
        used = {path_by_object.get(id(find_object(path))) for path in used_paths(code)}
        for path in used - {None}:
            users = uses.setdefault(str(path), [])
            if (title, uri) not in users:
                users.append((title, uri))
    return uses


def sources() -> Iterator[tuple[str, str, str]]:
    """Yield the title, the page relative to the reference, and the code of each page and example."""
    pages = {f"../{path.relative_to(ROOT / 'docs')}": path for path in sorted(ROOT.glob("docs/**/*.md"))}
    pages |= {
        f"../backends/{path.parent.name}.md": path for path in sorted(ROOT.glob("backends/*/README.md"))
    }
    for uri, path in {"../index.md": ROOT / "README.md", **pages}.items():
        text = path.read_text(encoding="utf-8")
        title = TITLE.search(text)
        # Blocks run on their own, so each is parsed on its own.
        for _, block in PYTHON.findall(text):
            yield title[1] if title else path.stem, uri, textwrap.dedent(block)
    for path in sorted(ROOT.glob("examples/**/*.py")):
        text = path.read_text(encoding="utf-8")
        title = TITLE.match(text)
        uri = f"../gallery/{path.stem}.md" if title else str(path.relative_to(ROOT))
        yield title[1] if title else path.stem, uri, text


def used_paths(code: str) -> set[str]:
    """Return the dotted names below polarmap that a program imports or reaches through its imports."""
    try:
        tree = ast.parse(code)
    except SyntaxError:  # Some blocks need an account and leave out a value.
        return set()
    bound: dict[str, str] = {}
    paths = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bound |= {
                alias.asname or "polarmap": alias.name if alias.asname else "polarmap"
                for alias in node.names
                if alias.name.split(".")[0] == "polarmap"
            }
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "polarmap":
            for alias in node.names:
                paths.add(f"{node.module}.{alias.name}")
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            if first in bound and all(part.isidentifier() for part in rest):
                paths.add(".".join([bound[first], *rest]))
    return paths


# --- from pages to the pages of names -------------------------------------------------------------


def on_page_content(content: str, page: Any, files: Any, **_: Any) -> str:
    """Link the public names in the text and the code of a page, and take out the sources until the end.

    The search would index every word of the sources, and reading them takes long.
    """
    targets = link_targets(page.file.src_uri, files)
    own_page = page.file.src_uri.removeprefix("reference/").removesuffix(".md")
    urls = {
        word: get_relative_url(url, page.url)
        for word, url in targets.items()
        if not url.startswith(f"reference/{own_page}.html")
    }
    if own_page in {name.path for name in api_names()}:
        module, _, word = own_page.rpartition(".")
        line = f'<p class="api-import"><code>from {module} import {word}</code></p>'
        content = content.replace("</h1>", f"</h1>{line}", 1)
    content = CODE_BLOCK.sub(lambda match: match[1] + link_code(match[2], urls) + match[3], content)
    page.meta["sources"] = sources = SOURCE.findall(content)
    places = iter(f"<!-- source {index} -->" for index in range(len(sources)))
    return link_text(SOURCE.sub(lambda _: next(places), content), urls)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Put the sources back into a page."""
    return SOURCE_PLACE.sub(lambda match: page.meta["sources"][int(match[1])], output)


def link_targets(page: str, files: Any) -> dict[str, str]:
    """Return the address of each word that may stand for a public name in a code span of a page."""
    excluded = COMMON_WORDS - (WORDS_OF_DOCSTRINGS if page.startswith("reference/") else set())
    urls = {name.uri: file.url for name in api_names() if (file := files.get_file_from_path(name.uri))}
    return {
        word: urls[uri] + anchor
        for word, (uri, anchor) in words_of_names().items()
        if uri in urls and word not in excluded
    }


@cache
def words_of_names() -> dict[str, tuple[str, str]]:
    """Return the page and the anchor of each word that may stand for a public name or its member."""
    words: dict[str, tuple[str, str]] = {}
    for name in api_names():
        words[name.path] = words[name.short] = (name.uri, "")
        value = find_object(name.path)
        for word, member in vars(value).items() if inspect.isclass(value) else ():
            if not word.startswith("_"):
                words[f"{name.short}.{word}"] = (
                    name.uri,
                    f"#{name.path}.{word}" if has_section(member) else "",
                )
    return words


def has_section(member: Any) -> bool:
    """Return whether a page has a section on a member of its class: fields are in the list of attributes."""
    kinds = (property, cached_property, classmethod, staticmethod)
    return (inspect.isroutine(member) or isinstance(member, kinds)) and bool(member.__doc__)


def link_text(content: str, urls: dict[str, str]) -> str:
    """Link the first code span of each public name."""
    parts, open_elements = TAG.split(content), list[str]()
    linked = set[str]()
    for index, part in enumerate(parts):
        if not part.startswith("<") or part.startswith("<!--"):
            continue
        element = re.match(r"</?([\w-]+)", part)
        if element is None or element[1] not in CLOSED_ELEMENTS:
            word = html.unescape(parts[index + 1]).removesuffix("()") if index + 1 < len(parts) else ""
            is_span = part == "<code>" and index + 2 < len(parts) and parts[index + 2] == "</code>"
            if is_span and not open_elements and word in urls and urls[word] not in linked:
                linked.add(urls[word])
                parts[index] = f'<a class="api-link" href="{urls[word]}"><code>'
                parts[index + 2] = "</code></a>"
        elif part.startswith("</"):
            if element[1] in open_elements:
                open_elements.remove(element[1])
        else:
            open_elements.append(element[1])
    return "".join(parts)


def link_code(block: str, urls: dict[str, str]) -> str:
    """Link the names that a highlighted program imports from polarmap, or reaches as `polarmap.name`."""
    imported = imported_names(html.unescape(TAG.sub("", block)))

    def link(word: str, path: str) -> str:
        span = f'<span class="n">{word}</span>'
        return f'<a class="api-link" href="{urls[path]}">{span}</a>' if path in urls else span

    block = CODE_NAME.sub(lambda match: link(match[1], imported.get(match[1], "")), block)
    return CODE_ATTRIBUTE.sub(lambda match: match[1] + link(match[2], f"polarmap.{match[2]}"), block)


def imported_names(code: str) -> dict[str, str]:
    """Return the dotted names of what a program imports from polarmap, by the word that it uses."""
    words: dict[str, str] = {}
    for module, in_brackets, in_line in IMPORT.findall(code):
        for name in (in_brackets or in_line).split(","):
            if match := re.fullmatch(r"(\w+)(?: as (\w+))?", name.strip()):
                words[match[2] or match[1]] = f"{module}.{match[1]}"
    return words
