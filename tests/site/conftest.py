"""Fixtures that open pages in a real browser: Debian's Chromium, driven by Selenium.

`make test-site` runs the tests of this folder, which carry the marker `site`. Two fixtures are for any test
that looks at a page, whether it is a file of the site or comes from a server of this machine:

`browser` (session)
    A running Chromium, a `Browser` of tests/browsers.py. It reaches addresses of this
    machine only.

`open_page` (function)
    A function `open_page(url, width=1280, height=900, dark=False)` that opens a window of that size and
    returns it as a `Page`. `url` is an address or a path. The windows are closed at the end of the test.

        @pytest.mark.site
        def test_a_page_shows_its_title(open_page, tmp_path):
            page = open_page(ROOT / "site" / "index.html", width=390, dark=True)
            assert page.run("return document.title") == "polarmap"
            page.click("#start")
            page.wait_for("document.querySelector('#done')")
            assert page.text("h1") == "Finished"
            assert page.errors() == [] and page.requested_hosts() == set()
            page.resize(1280, 900)
            page.set_dark(False)
            page.screenshot(tmp_path / "page.png")
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from browsers import Browser, Page


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start Chromium, and end it with all its processes and files after the last test."""
    # Imported here, since `make test` collects this folder without the extra site-test.
    from browsers import Browser

    with contextlib.closing(Browser()) as chromium:
        yield chromium


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Provide a function that opens a page, and close the opened windows at the end of the test."""
    pages: list[Page] = []

    def open_window(url: str | Path, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        pages.append(browser.open(url, width, height, dark))
        return pages[-1]

    yield open_window
    for page in pages:
        page.close()
