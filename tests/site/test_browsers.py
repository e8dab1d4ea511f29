"""Check that the browser of these tests sees the errors of a page, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from browsers import Page

BROKEN = """<script>
console.error("printed", 3)
fetch("http://elsewhere.example/data").catch(() => 0)
setTimeout(() => { document.title = "done" })
throw new Error("thrown")
</script><img src="missing.png">"""

pytestmark = pytest.mark.site


def test_errors_and_requests_of_a_page_are_reported(open_page: Callable[..., Page], tmp_path: Path) -> None:
    path = tmp_path / "broken.html"
    path.write_text(BROKEN)
    page = open_page(path, width=390, dark=True)
    page.wait_for("document.title === 'done'")
    errors = "\n".join(page.errors())
    assert "printed 3" in errors and "thrown" in errors and "missing.png" in errors
    assert page.requested_hosts() == {"elsewhere.example"}
    assert page.run("return [innerWidth, matchMedia('(prefers-color-scheme: dark)').matches]") == [390, True]
    path.write_text("<h1>Fine</h1>")
    page.reload()
    assert (page.text("h1"), page.errors(), page.requested_hosts()) == ("Fine", [], set())


def test_a_closed_browser_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    from browsers import Browser

    browser = Browser()
    processes = psutil.Process(browser.driver.service.process.pid).children(recursive=True)
    assert len(processes) > 2 and browser.profile.exists()
    browser.close()
    assert not browser.profile.exists()
    _, alive = psutil.wait_procs(processes, timeout=30)
    # Some containers do not reap orphaned processes, which then remain as zombies.
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
