"""Check what the hooks of mkdocs make of pages, without building the site."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """import polarmap
import polarmap.planning as planning
from polarmap import (
    coded_map,
    Pool as Workers,
)

with Workers() as pool:
    planning.plan(4, planning.Pareto(2.0)).plot()
    polarmap.types.Report
    other.encode(coded_map)
"""

pytestmark = pytest.mark.site


def load(name: str) -> ModuleType:
    """Import a hook of docs/, which is not in a package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def api_pages() -> ModuleType:
    return load("api_pages")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    return load("hooks")


def test_names_that_a_program_uses_are_found(api_pages: ModuleType) -> None:
    assert api_pages.used_paths(PROGRAM) == {
        *("polarmap.coded_map", "polarmap.Pool", "polarmap.types", "polarmap.types.Report"),
        *("polarmap.planning.plan", "polarmap.planning.Pareto"),
    }
    assert api_pages.used_paths("from polarmap import (") == set()


def test_a_name_knows_the_pages_that_use_it_once(api_pages: ModuleType) -> None:
    users = api_pages.find_uses()["polarmap.coded_map"]
    assert len(users) == len(set(users)) > 5
    assert "../index.md" in {uri for _, uri in users}


def test_every_listed_name_exists_and_has_a_first_sentence(api_pages: ModuleType) -> None:
    paths = [name.path for name in api_pages.api_names()]
    assert len(paths) == len(set(paths)) > 100
    assert [path for path in paths if api_pages.find_object(path) is None] == []
    assert [path for path in paths if not api_pages.first_sentence(path).endswith((".", ":"))] == []


def test_the_first_code_span_of_a_name_is_linked(api_pages: ModuleType) -> None:
    text = "<h2><code>plan</code></h2><p><code>plan</code> <a><code>Pool</code></a> <code>plan()</code></p>"
    linked = api_pages.link_text(text, {"plan": "plan.html", "Pool": "pool.html"})
    assert linked.count("<a class") == 1
    assert '<p><a class="api-link" href="plan.html"><code>plan</code></a> ' in linked


def test_names_in_programs_are_linked(api_pages: ModuleType) -> None:
    block = (
        '<span class="kn">from</span> <span class="nn">polarmap</span> <span class="kn">import</span> '
        '<span class="n">encode</span>\n<span class="n">plan</span>\n<span class="n">polarmap</span>'
        '<span class="o">.</span><span class="n">submit</span>'
    )
    urls = {f"polarmap.{name}": f"{name}.html" for name in ("encode", "plan", "submit")}
    linked = api_pages.link_code(block, urls)
    assert 'href="encode.html"' in linked and 'href="submit.html"' in linked
    assert 'href="plan.html"' not in linked


def test_formulas_long_cells_and_wide_figures_are_marked(hooks: ModuleType) -> None:
    files = SimpleNamespace(get_file_from_path={"figures/a.svg": SimpleNamespace(content_bytes=SVG)}.get)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    content = (
        '<span class="arithmatex">\\(a &lt; b\\)</span><div class="arithmatex">\\[\nx^2\n\\]</div>'
        f'<td>short</td><td style="text-align: right;">{"long " * 9}</td><img alt="" src="figures/a.svg" />'
    )
    shown = hooks.on_page_content(content, page=page, files=files)
    assert shown.count("<math") == 2 and 'display="block"' in shown and "arithmatex" not in shown
    assert "<mo>&#x0003C;</mo>" in shown
    assert '<td>short</td><td style="text-align: right;" class="long-cell">' in shown
    assert '<img class="wide-figure" alt=""' in shown


SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="483.12pt" height="20pt">'


def test_links_to_the_repository_appear_with_its_address(
    hooks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def configured() -> SimpleNamespace:
        config = SimpleNamespace(extra={}, site_name="polarmap", repo_url="", repo_name="", edit_uri="")
        return hooks.on_config(config)  # type: ignore[no-any-return]

    monkeypatch.delenv("REPOSITORY_URL", raising=False)
    assert "Source" in (ROOT / "setup.cfg").read_text() or configured().repo_url == ""
    monkeypatch.setenv("REPOSITORY_URL", "https://code.example/polarmap")
    config = configured()
    assert (config.repo_url, config.edit_uri) == ("https://code.example/polarmap", "edit/main/docs/")
    assert config.extra["package_version"] in config.copyright
    page = '<div class="md-header__topic"><span class="md-ellipsis"> polarmap </span></div>'
    assert f">{config.extra['package_version']}</small>" in hooks.on_post_page(page, config=config)


def test_every_page_with_search_keywords_is_in_the_navigation(hooks: ModuleType) -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page for page in hooks.search_keywords() if f": {page}\n" not in navigation] == []
