"""Open every page of the site in a browser, at two widths, in light and dark, and try its search."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest

if TYPE_CHECKING:
    from browsers import Browser, Page

ROOT = Path(__file__).parents[2]
SITE = Path(os.environ.get("SITE_FOLDER", ROOT / "site"))
PAGES = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html") if path.name != "404.html")
NARROW, WIDE = 390, 1280
MIN_CONTRAST = {"normal": 4.5, "large": 3.0}  # WCAG 2, level AA

# Queries of readers, and the pages that answer them. One of the pages is among the first three results.
QUERIES = {
    "privacy": ["your-data"],
    "where does my data go": ["your-data"],
    "number of processes": ["one-machine", "persistent-workers"],
    "multiprocessing": ["coming-from", "one-machine"],
    "faq": ["faq"],
    "dashboard": ["live"],
    "live view": ["live"],
    "gpu": ["one-machine"],
    "timeout": ["faq", "beyond-linear"],
    "retry": ["faq", "reliability"],
    "progress bar": ["logging", "live"],
    "memory": ["faq", "data", "persistent-workers"],
    "kubernetes": ["cluster", "backends/k8s"],
    "slurm": ["cluster"],
    "dask": ["cluster"],
    "ray": ["cluster"],
    "lambda cost": ["clouds"],
    "s3": ["clouds", "coded-arrays"],
    "encryption": ["encryption"],
    "integers": ["beyond-linear", "reliability"],
    "accuracy": ["reliability"],
    "amplification": ["how-it-works", "glossary"],
    "not linear": ["beyond-linear"],
    "padding": ["data"],
    "array_split": ["data"],
    "pickle error": ["faq"],
    "notebook": ["notebooks"],
    "joblib": ["coming-from"],
    "cancel": ["futures"],
    "how many workers": ["how-many-workers"],
}

SHOW_ALL = """
document.head.insertAdjacentHTML("beforeend", "<style>* { transition: none !important }</style>")
document.querySelectorAll(".md-content details").forEach(one => { one.open = true })"""

# Cells whose text is broken into lines of about one word.
CELLS_IN_PIECES = """
return [...document.querySelectorAll(".md-content td:not(.linenos), .md-content th")].flatMap(cell => {
  const words = cell.innerText.split(/\\s+/).filter(word => word)
  const range = document.createRange()
  range.selectNodeContents(cell)
  const boxes = [...range.getClientRects()].filter(box => box.width > 1)
  const bottoms = boxes.map(box => box.bottom).sort((a, b) => a - b)
  const lines = bottoms.filter((bottom, i) => !i || bottom - bottoms[i - 1] > 8).length
  const [inLine, characters] = [words.length / lines, cell.innerText.length / lines]
  return lines >= 4 && inLine < 1.6 && characters < 14 ? [cell.innerText] : []
})"""

# Large figures that are too small to read.
THUMBNAILS = """
return [...document.querySelectorAll(".md-content img")]
  .filter(image => !image.closest(".cards") && image.clientWidth < 500)
  .filter(image => (image.getAttribute("width") || image.naturalWidth) >= 600)
  .map(image => image.src)"""

HIDDEN_COPY_BUTTONS = """
return [...document.querySelectorAll(".md-content .language-python pre, .md-content .language-bash pre")]
  .filter(block => block.checkVisibility() && !block.closest(".linenos"))
  .filter(block => {
    const button = block.parentElement.querySelector("[data-md-type=copy], .md-clipboard")
    if (!button) return true
    const box = button.getBoundingClientRect()
    return !button.checkVisibility({opacityProperty: true}) || box.width < 10 || box.height < 10
  }).map(block => block.innerText)"""

# Each page builds the index of its search when it is loaded, which takes longer than everything else.
NO_SEARCH = """
class Idle extends EventTarget { postMessage() {} terminate() {} }
Object.defineProperty(window, "Worker", { get: () => Idle, set: () => {} })"""

# Texts whose contrast to the background is too low. Pictures are skipped, as are texts of no size or opacity.
LOW_CONTRASTS = """
const [normal, large] = arguments
const canvas = document.createElement("canvas")
canvas.width = canvas.height = 1
const pen = canvas.getContext("2d", { willReadFrequently: true })
const parsed = new Map()
const parse = colour => {
  if (!parsed.has(colour)) {
    pen.clearRect(0, 0, 1, 1)
    pen.fillStyle = colour
    pen.fillRect(0, 0, 1, 1)
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data
    parsed.set(colour, [r, g, b, a / 255])
  }
  return parsed.get(colour)
}
const over = (front, back, alpha) => [0, 1, 2].map(i => front[i] * alpha + back[i] * (1 - alpha))
const luminance = colour => {
  const [r, g, b] = colour.map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  return 0.2126 * r + 0.7152 * g + 0.0722 * b
}
const backgrounds = new Map([[null, [255, 255, 255]]])
const background = element => {
  if (!backgrounds.has(element)) {
    const colour = parse(getComputedStyle(element).backgroundColor)
    const back = colour[3] === 1 ? colour : over(colour, background(element.parentElement), colour[3])
    backgrounds.set(element, back.slice(0, 3))
  }
  return backgrounds.get(element)
}
const opacities = new Map([[null, 1]])
const opacity = element => {
  if (!opacities.has(element)) {
    opacities.set(element, getComputedStyle(element).opacity * opacity(element.parentElement))
  }
  return opacities.get(element)
}
const low = new Map()
const checked = new Set()
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement
  if (!walker.currentNode.data.trim() || checked.has(element)) continue
  checked.add(element)
  if (element.closest("svg, script, style, noscript")) continue
  if (!element.checkVisibility({ visibilityProperty: true })) continue
  const box = element.getBoundingClientRect()
  const seen = opacity(element)
  if (box.width < 2 || box.height < 2 || seen < 0.05) continue
  const style = getComputedStyle(element)
  const colour = parse(style.color)
  const back = background(element)
  const pair = [luminance(over(colour, back, colour[3] * seen)), luminance(back)]
  const [light, dark] = pair.sort((a, b) => b - a)
  const ratio = (light + 0.05) / (dark + 0.05)
  const size = parseFloat(style.fontSize)
  const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700)
  if (ratio < (isLarge ? large : normal)) {
    const key = `${style.color} on ${back.map(Math.round)} (${element.tagName}.${element.className})`
    low.set(key, `${ratio.toFixed(2)}: ${key}: ${walker.currentNode.data.trim().slice(0, 40)}`)
  }
}
return [...low.values()]"""

pytestmark = pytest.mark.site
needs_site = pytest.mark.skipif(not PAGES, reason="needs the site; `make test-site` builds it")


@pytest.fixture(scope="module")
def window(browser: Browser) -> Iterator[Page]:
    """Provide one window, in which the tests of this file open their pages."""
    page = browser.open("about:blank")
    page.command("Page.addScriptToEvaluateOnNewDocument", source=NO_SEARCH)
    yield page
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_page_is_legible_at_every_width_in_light_and_dark(name: str, window: Page) -> None:
    window.go_to(SITE / name)
    window.run(SHOW_ALL)
    found: dict[str, list[Any]] = {}
    for scheme in ("default", "slate"):
        window.run("document.body.dataset.mdColorScheme = arguments[0]", scheme)
        found[f"low contrast, {scheme}"] = window.run(LOW_CONTRASTS, *MIN_CONTRAST.values())
    # The first width is the last one of the page before: resizing takes longer than the checks.
    for width in sorted((NARROW, WIDE), key=lambda one: one != window.run("return innerWidth")):
        window.resize(width)
        found[f"wider than {width}"] = sideways(window)
        if width == NARROW:
            found["cell in pieces"] = window.run(CELLS_IN_PIECES)
            found["thumbnail"] = window.run(THUMBNAILS)
        else:
            found["hidden copy button"] = window.run(HIDDEN_COPY_BUTTONS)
    found["error"] = window.errors()
    found["host"] = sorted(window.requested_hosts())
    problems = [f"{kind}: {value}" for kind, values in found.items() for value in values]
    assert not problems, "\n".join(problems)


@needs_site
def test_colours_follow_the_system(window: Page) -> None:
    window.set_dark(True)
    window.go_to(SITE / "index.html")
    window.wait_for("document.body.dataset.mdColorScheme === 'slate'")
    window.set_dark(False)
    window.wait_for("document.body.dataset.mdColorScheme === 'default'")


def sideways(page: Page) -> list[str]:
    """Return a message if the page scrolls sideways, as a list."""
    width, inner = page.run("return [document.documentElement.scrollWidth, innerWidth]")
    return [f"{width} pixels in a window of {inner}"] if width > inner else []


# --- links ---------------------------------------------------------------------------------------


class Links(HTMLParser):
    """The anchors of a page, and the addresses that it refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            if name in ("href", "src") and value:
                self.addresses.append(value)


@cache
def links(page: str) -> Links:
    """Return the anchors and addresses of a page of the site."""
    parser = Links()
    parser.feed((SITE / page).read_text(encoding="utf-8"))
    return parser


@needs_site
def test_links_lead_to_files_and_anchors_of_the_site() -> None:
    files = {str(path.relative_to(SITE)) for path in SITE.rglob("*") if path.is_file()}
    broken = []
    for name in PAGES:
        for address in sorted(set(links(name).addresses)):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            folder = os.path.dirname(name)
            target = os.path.normpath(os.path.join(folder, unquote(parts.path))) if parts.path else name
            anchor = unquote(parts.fragment)
            is_missing = target not in files
            # `__` begins the anchors of controls, such as the search.
            if not is_missing and anchor and target.endswith(".html") and not anchor.startswith("__"):
                is_missing = anchor not in links(target).anchors
            if is_missing:
                broken.append(f"{name}: {address}")
    assert not broken, "\n".join(broken)


@needs_site
def test_no_link_to_a_repository_is_empty_or_a_placeholder() -> None:
    suspicious = {
        f"{name}: {address}"
        for name in PAGES
        for address in links(name).addresses
        if re.search(r"example\.(com|org)/|github\.com/(OWNER|USER|you|owner|user)\b|^https?://$", address)
    }
    assert suspicious == set()


# --- search --------------------------------------------------------------------------------------

# Each result is a page; further links below it lead to sections of the page.
RESULTS = """[...document.querySelectorAll(".md-search-result__item")]
  .map(result => result.querySelector("a.md-search-result__link").href)"""


@pytest.fixture(scope="module")
def search(browser: Browser) -> Iterator[Callable[[str], list[str]]]:
    """Provide a function that types a query into the search of the site and returns the found pages."""
    page = browser.open(SITE / "index.html")
    field = "[data-md-component=search-query]"
    page.click(field)

    def find(query: str) -> list[str]:
        page.run(
            "const field = document.querySelector(arguments[0]); field.value = '';"
            "field.dispatchEvent(new KeyboardEvent('keyup', {key: 'Backspace'}))",
            field,
        )
        page.wait_for(f"!{RESULTS}.length")
        page.type_text(field, query)
        page.wait_for(f"{RESULTS}.length", timeout=60)
        found: list[str] = []
        # Results for the beginning of the query may appear first. Wait until the results no longer change.
        while found != (found := page.run(f"return new Promise(r => setTimeout(() => r({RESULTS}), 300))")):
            pass
        return [urlsplit(url).path.removeprefix(f"{SITE.absolute()}/") for url in found]

    yield find
    assert page.errors() == [] and page.requested_hosts() == set()
    page.close()


@needs_site
@pytest.mark.parametrize("query", QUERIES)
def test_search_shows_the_page_that_answers_a_query(query: str, search: Callable[[str], list[str]]) -> None:
    found = search(query)
    assert {f"{page}.html" for page in QUERIES[query]} & set(found[:3]), found[:8]
