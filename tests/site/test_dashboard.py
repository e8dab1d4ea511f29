"""Look at the dashboard in a browser: what it shows, how it changes, and whether everybody can use it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("tornado", reason="comes with the extra live")

import polarmap
from polarmap.live.dashboard import DashboardServer
from polarmap.live.html_export import render_html, save_html
from polarmap.live.snapshots import (
    ExecutorSnapshot,
    FailureSnapshot,
    IterationSnapshot,
    MapSnapshot,
    ProgramSnapshot,
    WorkerSnapshot,
    make_map_snapshot,
)

if TYPE_CHECKING:
    from browsers import Page

pytestmark = pytest.mark.site

NARROW, WIDE = 390, 1280
DEADLINE_SECONDS = 30.0
MIN_TEXT_CONTRAST, MIN_GRAPHIC_CONTRAST = 4.5, 3.0  # WCAG 2, level AA
ARROW_RIGHT, ARROW_DOWN, ESCAPE, TAB = "\ue014", "\ue015", "\ue00c", "\ue004"
MIX = "aaaaaaaaaaaarrrRqqqhfFsxXc"  # a task in each state

# The contrasts of all visible texts with their backgrounds, and of the colours of the states with a card.
CONTRASTS = """
const luminance = colour => {
  const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(linear)
  return 0.2126 * r + 0.7152 * g + 0.0722 * b
}
const contrast = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b)
  return (high + 0.05) / (low + 0.05)
}
const background = element => {
  const colour = getComputedStyle(element).backgroundColor
  return colour.endsWith(", 0)") && element.parentElement ? background(element.parentElement) : colour
}
const texts = [...document.body.querySelectorAll("*")]
  .filter(one => [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
  .filter(one => one.checkVisibility())
  .filter(one => !one.closest("script, noscript, .visually-hidden"))
  .map(one => [one.textContent.trim().slice(0, 40), contrast(getComputedStyle(one).color, background(one))])
const card = background(document.querySelector(".card"))
const probe = document.body.appendChild(document.createElement("i"))
const graphics = arguments[0].map(name => {
  probe.style.color = `var(--${name})`
  return [name, contrast(getComputedStyle(probe).color, card)]
})
probe.remove()
return [texts, graphics]"""
# The colours of the edges and fills that tell the shape of each square.
GRAPHIC_COLOURS = [
    *("arrived", "running-edge", "outline", "surplus-edge", "failed", "decoded"),
    *("queued-bar", "text", "focus"),
]

# The colours in a cell of the squares of a map, from the most to the least frequent.
CELL_COLOURS = """
const [selector, cell] = arguments
const canvas = document.querySelector(selector)
const [pitch, columns] = [Number(canvas.dataset.pitch), Number(canvas.dataset.columns)]
const [x, y] = [(cell % columns) * pitch, Math.floor(cell / columns) * pitch]
const { data } = canvas.getContext("2d").getImageData(x, y, pitch, pitch)
const counts = new Map()
for (let i = 0; i < data.length; i += 4) {
  if (data[i + 3] < 255) continue
  const hex = [...data.slice(i, i + 3)].map(one => one.toString(16).padStart(2, "0"))
  const colour = `#${hex.join("")}`
  counts.set(colour, (counts.get(colour) || 0) + 1)
}
return [...counts].sort((one, other) => other[1] - one[1]).map(([colour]) => colour)"""
GRID = ".card[open] .task-grid"
BLUE, ORANGE, LIGHT_GREY, VERMILLION = "#0072b2", "#e69f00", "#d9d9d9", "#d55e00"


class Source:
    """Provides the snapshots that a test chooses, and counts how often the server takes them."""

    def __init__(self) -> None:
        self.programs: list[ProgramSnapshot] = [make_program()]
        self.n_calls = 0

    def __call__(self) -> list[ProgramSnapshot]:
        self.n_calls += 1
        return self.programs

    def show(self, *maps: MapSnapshot, **values: Any) -> None:
        self.programs = [make_program(*maps, **values)]


def make_program(*maps: MapSnapshot, pid: int = 7, name: str = "fit.py", **values: Any) -> ProgramSnapshot:
    n_finished_maps = sum(not one.is_running for one in maps)
    return ProgramSnapshot(pid, name, "laptop", 1.7e9, n_finished_maps, 12.5, maps, **values)


def make_map(states: str, map_id: int = 1, is_running: bool = True, **values: Any) -> MapSnapshot:
    """Return a map whose tasks run for 0.1 s to 0.5 s, one after the other on a quarter as many workers."""
    n, letters = len(states), states.lower()
    has_result = [letter in "as" for letter in letters]
    has_ended = [letter in "asf" for letter in letters]
    has_started = [letter in "asrfx" for letter in letters]
    started = [round(0.3 * (index // max(1, n // 4)), 4) for index in range(n)]
    fields: dict[str, Any] = {
        "needed": max(1, 3 * n // 4),
        "elapsed_seconds": 2.0,
        "submitted": tuple(None if letter == "h" else 0.0 for letter in letters),
        "started": tuple(start if is_known else None for start, is_known in zip(started, has_started)),
        "ended": tuple(
            round(start + 0.1 + index % 5 / 10, 4) if is_known else None
            for index, (start, is_known) in enumerate(zip(started, has_ended))
        ),
        **values,
    }
    return MapSnapshot(
        map_id=map_id,
        name="negative",
        code="polar",
        executor="processes",
        n=n,
        k=max(1, 3 * n // 4),
        n_arrived=sum(has_result),
        is_running=is_running,
        states=states,
        **fields,
    )


def make_full_program() -> ProgramSnapshot:
    """Return a program that fills every part of the page."""
    failures = (FailureSnapshot(20, "ValueError: a rather long message " * 8, "node1"),)
    return make_program(
        make_map(MIX, 1, is_running=False, sufficed_at=1.5, decoded_blocks=(16, 17), failures=failures),
        make_map(
            MIX,
            2,
            next_result_seconds=0.3,
            cost_dollars=0.0012,
            failures=failures,
            n_failed_tasks=2,
            error="",
        ),
        workers=(
            WorkerSnapshot("a-pool-with-a-long-name", 0, 4711, "", "working", 3, 0.4, 100 << 20, 1.5),
            WorkerSnapshot("pool", 1, None, "node-with-a-long-name.example", "idle", None, 12.0),
            WorkerSnapshot("pool", 2, 4713, "", "abandoned", 7, 3.0),
        ),
        iterations=(IterationSnapshot("LogisticRegression", 12, 0.25, 1e-3, 0.012, 24, 1.2, True),),
    )


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def server(source: Source) -> Iterator[DashboardServer]:
    with DashboardServer(source) as one:
        yield one


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_text(page: Page, selector: str, text: str) -> None:
    page.wait_for(
        "document.querySelector(arguments[0])?.innerText.includes(arguments[1])",
        selector,
        text,
        timeout=DEADLINE_SECONDS,
    )


def list_texts(page: Page, selector: str) -> list[str]:
    return list(
        page.run("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector)
    )


def press(page: Page, *keys: str) -> None:
    """Press keys, as a user without a mouse would."""
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(page.driver).send_keys(*keys).perform()


# --- contents ----------------------------------------------------------------------------------


def test_squares_change_as_tasks_do(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    page = open_page(server.url)
    wait_for_text(page, "#program-name", "fit.py")
    assert page.count(".card") == 0
    source.show(make_map("qqqqrrrr"))
    wait_for_text(page, ".card .counts", "4 queued")
    assert page.run(CELL_COLOURS, GRID, 0)[0] == LIGHT_GREY
    assert page.run(CELL_COLOURS, GRID, 4)[0] == ORANGE
    source.show(make_map("rqqqaaRf", next_result_seconds=0.31))
    wait_for_text(page, ".status", "6 needed, 2 arrived, next expected in about 0.3 s")
    assert [page.run(CELL_COLOURS, GRID, cell)[0] for cell in (0, 1, 4, 6, 7)] == [
        *(ORANGE, LIGHT_GREY, BLUE, ORANGE, VERMILLION)
    ]
    counts = list_texts(page, ".card .counts li")
    assert counts == ["2 arrived", "2 running", "3 queued", "1 failed", "1 late"]
    label = page.run("return document.querySelector(arguments[0]).getAttribute('aria-label')", GRID)
    assert label == "Tasks of map 1: negative: 2 arrived, 2 running, 3 queued, 1 failed, 1 late"
    assert page.run("return document.title") == "2 of 6 · fit.py · polarmap"
    assert page.errors() == [] and page.requested_hosts() == set()


def test_all_parts_of_a_program_are_shown(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    source.programs = [make_full_program()]
    page = open_page(server.url)
    wait_for_text(
        page, ".card[data-running=true] .status", "19 needed, 13 arrived, next expected in about 0.3 s"
    )
    facts = list_texts(page, ".card[open] .facts li")
    assert facts == ["2.00 s elapsed", "0 results/s", "$0.0012 so far", "26 tasks for 19 blocks"]
    assert list_texts(page, ".card[open] .failures li")[0].startswith("task 20 on node1: ValueError")
    assert list_texts(page, "#totals dd") == ["1", "1", "12.5"]
    workers = [row.split("\t") for row in list_texts(page, "#workers tbody tr")]
    assert [cell.strip() for cell in workers[0]] == [
        *("a-pool-with-a-long-name 0", "4711", "this machine", "3", "0.40 s", "105 MB", "1.50 s")
    ]
    assert [cell.strip() for cell in workers[1]] == [
        *("pool 1", "–", "node-with-a-long-name.example", "idle", "12.0 s", "–", "–")
    ]
    (iteration,) = list_texts(page, "#iterations tbody tr")
    assert [cell.strip() for cell in iteration.split("\t") if cell.strip()] == [
        *("LogisticRegression", "12", "0.25", "1.0e-3", "12", "24", "1.20 s")
    ]


def test_a_map_is_folded_once_it_has_finished_and_can_be_opened(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    source.show(make_map("aaar", 1), make_map("rrrr", 2))
    page = open_page(server.url)
    page.wait_for("document.querySelectorAll('.card[open]').length === 2")
    source.show(make_map("aaax", 1, is_running=False, sufficed_at=1.0), make_map("arrr", 2))
    page.wait_for("document.querySelectorAll('.card[open]').length === 1")
    assert "3 needed, 3 arrived, done in 2.00 s" in list_texts(page, ".card:not([open]) summary")[0]
    page.click(".card:not([open]) summary")
    wait_for_text(page, ".card[data-running=false] .facts", "results sufficed after 1.00 s")
    assert page.run(CELL_COLOURS, ".card[data-running=false] .task-grid", 0)[0] == BLUE
    source.show(make_map("aaax", 1, is_running=False, sufficed_at=1.0), make_map("aarr", 2))
    wait_for_text(page, ".card[data-running=true] .status", "2 arrived")
    assert page.count(".card[open]") == 2  # The user has opened it, so it remains open.


def test_the_objective_is_drawn(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    page = open_page(server.url)
    for step in range(1, 4):
        iteration = IterationSnapshot("Lasso", step, 1 / step, None, 0.01, 2 * step, 0.1 * step, True)
        source.show(iterations=(iteration,))
        page.wait_for(f"document.querySelector('#iterations tbody td:nth-child(2)')?.innerText === '{step}'")
    points = page.run(
        "return document.querySelector('.sparkline polyline').getAttribute('points').split(' ')"
    )
    assert len(points) >= 2
    label = page.run("return document.querySelector('.sparkline').getAttribute('aria-label')")
    assert label.endswith("to 0.3333333")


def test_several_programs_can_be_chosen(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    source.programs = [make_program(make_map("rr"), pid=1, name="one.py"), make_program(pid=2, name="two.py")]
    page = open_page(server.url)
    wait_for_text(page, "#program-name", "two.py")
    page.run("document.querySelector('#program-select').focus()")
    press(page, "\ue013")  # the arrow key up
    wait_for_text(page, "#program-name", "one.py")
    wait_for_text(page, ".card .counts", "2 running")
    source.programs = source.programs[1:]
    wait_for_text(page, "#connection", "The program has ended")
    assert "2 running" in page.text(".card .counts")


def test_texts_of_the_user_are_not_markup(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    text = "<img src=x onerror=\"document.title='broken'\"><script>1</script>"
    failing_map = replace(make_map("fr"), name=text, failures=(FailureSnapshot(0, text, text),), error=text)
    source.programs = [
        make_program(failing_map, name=text, workers=(WorkerSnapshot(text, 0, 1, text, text, 0, 0.1),))
    ]
    page = open_page(server.url)
    wait_for_text(page, ".failures li", text)
    assert page.count("main img") == 0 and page.run("return document.title") != "broken"
    assert page.errors() == []


def test_calls_of_executors_and_the_maps_of_workers_are_shown(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    workers = (
        WorkerSnapshot("pool", 0, 1, "", "working", 3, 0.1, job="map 2"),
        WorkerSnapshot("pool", 1, 2, "", "abandoned", 7, 0.1, job="map 1"),
        WorkerSnapshot("pool", 2, 3, "", "idle", None, 0.1),
    )
    source.programs = [
        make_program(
            workers=workers, executors=(ExecutorSnapshot("Executor 1", "processes", 2000, 120, 4, 1),)
        )
    ]
    page = open_page(server.url)
    wait_for_text(page, "#executors tbody tr", "Executor 1")
    assert list_texts(page, "#executors td") == ["Executor 1", "processes", "120 of 2,000", "4", "1"]
    assert list_texts(page, "#workers td:nth-child(4)") == ["3 of map 2", "7 of map 1 (abandoned)", "idle"]
    source.programs = [make_program(workers=workers)]
    page.wait_for("document.querySelector('#executors-section').hidden")
    assert page.errors() == []


def test_a_failed_task_ends_at_its_failure(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    source.show(make_map("rfrr", started=(0.2,) * 4, ended=(None, 0.7, None, None)))
    page = open_page(server.url)
    wait_for_text(page, ".card .counts", "1 failed")
    page.run("document.querySelector('.task-slider').focus()")
    press(page, ARROW_RIGHT)
    wait_for_text(page, "#tooltip", "Task 1: failed after 0.70 s, queued for 0.20 s, ran for 0.50 s")


def test_a_real_pool_is_shown(open_page: Callable[..., Page], tmp_path: Path) -> None:
    go_on = tmp_path / "go on"

    def wait_or_die(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        marker = tmp_path / f"died {float(block.ravel()[0])}"
        if block.ravel()[0] == 0 and not marker.exists():
            marker.touch()
            os._exit(1)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not go_on.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return -block

    with polarmap.dashboard() as url, polarmap.Pool(workers=2) as pool:
        page = open_page(url)
        rows = np.arange(8.0).reshape(8, 1)
        results: list[Any] = []
        thread = threading.Thread(
            target=lambda: results.append(polarmap.coded_map(wait_or_die, rows, blocks=4, executor=pool)),
            daemon=True,
        )
        thread.start()
        wait_for_text(page, ".card .counts", "running")
        page.wait_for("document.querySelectorAll('#workers tbody tr').length >= 2")
        wait_for_text(page, "#workers-summary", "2 working")
        go_on.touch()
        thread.join(DEADLINE_SECONDS)
        assert np.allclose(results[0].concatenate(), -rows)
        wait_for_text(page, ".card[data-running=false]", "done in")
    wait_for_text(page, "#connection", "The program has closed this page")
    assert page.errors() == []


# --- everybody can use it ----------------------------------------------------------------------


def test_tasks_can_be_inspected_with_the_keyboard(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    source.show(make_map(MIX, hosts=("node1",) * len(MIX), decoded_blocks=(16,)))
    page = open_page(server.url)
    wait_for_text(page, ".card .counts", "queued")
    visited = []
    for _ in range(12):
        press(page, TAB)
        visited.append(page.run("const e = document.activeElement; return e.id || e.className || e.tagName"))
        if visited[-1] == "task-slider":
            break
    assert visited[0] == "skip-link" and {"pause", "task-slider"} <= set(visited)
    wait_for_text(
        page, "#tooltip", "Task 0: arrived after 0.10 s, queued for 0.00 s, ran for 0.10 s, on node1"
    )
    press(page, ARROW_RIGHT)
    wait_for_text(page, "#tooltip", "Task 1: ")
    columns = int(page.run("return document.querySelector(arguments[0]).dataset.columns", GRID))
    press(page, ARROW_DOWN)
    wait_for_text(page, "#tooltip", f"Task {columns + 1}: ")
    value = page.run("return document.activeElement.getAttribute('aria-valuetext')")
    assert value == page.text("#tooltip")
    assert page.run("return document.querySelector('.cursor').checkVisibility()")
    press(page, ESCAPE)
    page.wait_for("document.querySelector('#tooltip').hidden")
    # Updates do not take the focus away.
    source.show(make_map("a" * len(MIX)))
    wait_for_text(page, ".card .counts", f"{len(MIX)} arrived")
    assert page.run("return document.activeElement.className") == "task-slider"


def test_tasks_can_be_inspected_with_the_mouse(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    source.show(make_map("arq" + "q" * 21))
    page = open_page(server.url)
    wait_for_text(page, ".card .counts", "queued")
    for selector, y in [(GRID, 10), (".card .timeline", 30)]:
        canvas = page.wait_for("document.querySelector(arguments[0])", selector)
        # Selenium counts offsets from the centre of the element.
        offsets = 10 - canvas.size["width"] // 2, y - canvas.size["height"] // 2
        ActionChains(page.driver).move_to_element_with_offset(canvas, *offsets).perform()
        wait_for_text(page, "#tooltip", "Task 0: arrived")
        ActionChains(page.driver).move_to_element(page.driver.find_element("id", "program-name")).perform()
        page.wait_for("document.querySelector('#tooltip').hidden")


def test_updates_can_be_paused(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    source.show(make_map("rrrr"))
    page = open_page(server.url)
    wait_for_text(page, ".card .counts", "4 running")
    page.click("#pause")
    wait_for_text(page, "#connection", "Paused")
    source.show(make_map("aarr"))
    n_calls = source.n_calls
    wait_until(lambda: source.n_calls > n_calls + 3)
    assert "4 running" in page.text(".card .counts")
    page.click("#pause")
    wait_for_text(page, ".card .counts", "2 arrived")


def test_screen_readers_are_told_of_progress(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    source.show(make_map("arrr"))
    page = open_page(server.url)
    wait_for_text(page, ".card .counts", "1 arrived")
    region = page.run(
        "const e = document.querySelector('#announcements'); return [e.ariaLive, e.textContent]"
    )
    assert region == ["polite", "map 1: negative: 3 needed, 1 arrived"]
    source.show(make_map("aarr"))
    wait_for_text(page, ".card .counts", "2 arrived")
    # The next announcement waits for some seconds.
    assert "1 arrived" in page.run("return document.querySelector('#announcements').textContent")
    unnamed = page.run("""return [...document.querySelectorAll("canvas, input, button, select, [role]")]
        .filter(element => element.checkVisibility() && element.ariaHidden !== "true")
        .filter(element => !element.ariaLabel && !element.innerText?.trim() && !element.closest("label"))
        .map(element => element.outerHTML)""")
    assert unnamed == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrasts_meet_wcag_aa(
    open_page: Callable[..., Page], server: DashboardServer, source: Source, dark: bool
) -> None:
    source.programs = [make_full_program()]
    page = open_page(server.url, dark=dark)
    wait_for_text(page, ".card .counts", "queued")
    page.click(".legend summary")
    page.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
    texts, graphics = page.run(CONTRASTS, GRAPHIC_COLOURS)
    assert len(texts) > 60
    assert [text for text in texts if text[1] < MIN_TEXT_CONTRAST] == []
    assert [graphic for graphic in graphics if graphic[1] < MIN_GRAPHIC_CONTRAST] == []


def test_squares_follow_the_colours_of_the_system(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    source.show(make_map("aaaa"))
    page = open_page(server.url)
    wait_for_text(page, ".card .counts", "4 arrived")
    light = page.run(CELL_COLOURS, GRID, 0)[0]
    page.set_dark(True)
    wait_until(lambda: page.run(CELL_COLOURS, GRID, 0)[0] != light)
    assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 21, 23)"


@pytest.mark.parametrize("n", [24, 1000, 10_000])
def test_narrow_pages_do_not_scroll_sideways(
    open_page: Callable[..., Page], server: DashboardServer, source: Source, n: int
) -> None:
    program = make_full_program()
    states = (MIX * (n // len(MIX) + 1))[:n]
    source.programs = [replace(program, maps=(*program.maps, make_map(states, 3)))]
    page = open_page(server.url, width=NARROW)
    page.wait_for("document.querySelectorAll('.card').length === 3")
    for width in (NARROW, 320, 700, WIDE, NARROW):
        page.resize(width)
        page.wait_for("innerWidth === arguments[0]", width)
        page.wait_for("document.documentElement.scrollWidth <= innerWidth")
        page.wait_for("""[...document.querySelectorAll(".card[open] canvas")]
            .every(element => element.getBoundingClientRect().right <= innerWidth)""")
    titles = page.run("return [...document.querySelectorAll('#workers thead th')].map(e => e.textContent)")
    assert titles[0] == "Worker"  # Hidden on narrow pages, but not from screen readers.


def test_nothing_moves_if_the_user_prefers_that(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    source.show(make_map("arrr"))
    page = open_page(server.url)
    wait_for_text(page, ".card .counts", "1 arrived")
    duration = "return getComputedStyle(document.querySelector('.progress-fill')).transitionDuration"
    assert page.run(duration) == "0.2s"
    features = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    page.command("Emulation.setEmulatedMedia", features=features)
    assert page.run(duration) == "0s"


# --- many tasks --------------------------------------------------------------------------------


def test_ten_thousand_tasks_are_grouped(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    states = "a" * 5000 + "a" * 14 + "f" * 1 + "q" * 5 + "r" * 10 + "q" * 4970
    source.show(make_map(states))
    page = open_page(server.url)
    wait_for_text(page, ".card .counts", "5,014 arrived")
    size, pitch = (
        int(page.run(f"return document.querySelector(arguments[0]).dataset.{key}", GRID))
        for key in ("groupSize", "pitch")
    )
    assert size == 20 and pitch >= 14
    assert page.run(CELL_COLOURS, GRID, 0)[0] == BLUE
    mixed = page.run(CELL_COLOURS, GRID, 250)  # 14 arrived, one failed, five queued
    assert mixed[0] == BLUE and {LIGHT_GREY, VERMILLION} <= set(mixed)
    assert {ORANGE, LIGHT_GREY} <= set(page.run(CELL_COLOURS, GRID, 251))
    page.run("const slider = document.querySelector('.task-slider'); slider.value = '249'; slider.focus()")
    press(page, ARROW_RIGHT)
    wait_for_text(page, "#tooltip", "Tasks 5,000 to 5,019: 14 arrived, 5 queued, 1 failed")
    assert page.run("return document.querySelector('.timeline').dataset.grouped") == "true"


def test_only_what_has_changed_is_updated(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    program = make_full_program()
    source.programs = [program]
    page = open_page(server.url)
    wait_for_text(page, "#workers-summary", "3 workers")
    page.run("""
        window.changes = []
        new MutationObserver(records => changes.push(...records.map(record => {
          const element = record.target.nodeType === 1 ? record.target : record.target.parentElement
          return element.closest("td, .card, #connection, #announcements")?.outerHTML.slice(0, 60) || "other"
        }))).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true })
        """)
    workers = (*program.workers[:2], replace(program.workers[2], cpu_seconds=99.0))
    source.programs = [replace(program, workers=workers)]
    wait_for_text(page, "#workers", "99.0 s")
    changes = page.run("return changes")
    assert changes and all("Processor time" in change for change in changes)


def test_a_closed_tab_leaves_nothing_on_the_server(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    page = open_page(server.url)
    wait_until(lambda: server.n_viewers == 1)
    page.reload()
    wait_for_text(page, "#connection", "Live")
    wait_until(lambda: server.n_viewers == 1)
    page.close()
    wait_until(lambda: server.n_viewers == 0)
    server.close()
    wait_until(
        lambda: (
            not {"polarmap-dashboard", "polarmap-sampling"}
            & {thread.name for thread in threading.enumerate()}
        )
    )


# --- the end -----------------------------------------------------------------------------------


def test_the_final_state_remains_when_the_server_closes(
    open_page: Callable[..., Page], server: DashboardServer, source: Source
) -> None:
    source.show(make_map("arrr"))
    page = open_page(server.url)
    wait_for_text(page, ".card .counts", "1 arrived")
    source.show(make_map("aaax", is_running=False))
    server.close()
    wait_for_text(page, "#connection", "The program has closed this page; it shows the last state")
    wait_for_text(page, ".status", "3 needed, 3 arrived, done in 2.00 s")


def test_a_lost_connection_is_shown_and_restored(
    open_page: Callable[..., Page], source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DashboardServer(source) as server:
        page = open_page(server.url)
        wait_for_text(page, "#connection", "Live")
        offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        page.command("Network.enable")
        page.command("Network.emulateNetworkConditions", offline=True, **offline)
        for viewer in list(server._viewers):
            assert server._loop is not None
            server._loop.call_soon_threadsafe(viewer.disconnect)
        wait_for_text(page, "#connection", "Connection lost, trying again")
        page.command("Network.emulateNetworkConditions", offline=False, **offline)
        wait_for_text(page, "#connection", "Live")


def test_the_page_without_its_token_is_refused(
    open_page: Callable[..., Page], server: DashboardServer
) -> None:
    page = open_page(server.url.partition("?")[0])
    assert "only be opened with the complete URL" in page.text("body")


# --- saved pages -------------------------------------------------------------------------------


def describe(page: Page) -> Sequence[str]:
    """Return the texts of the cards, the tables and the squares of a page."""
    labels = page.run(
        "return [...document.querySelectorAll('[aria-label]')].map(e => e.getAttribute('aria-label'))"
    )
    return [*list_texts(page, ".card"), *list_texts(page, "#workers tr"), *labels]


def test_a_saved_page_shows_the_same(
    open_page: Callable[..., Page], server: DashboardServer, source: Source, tmp_path: Path
) -> None:
    source.programs = [make_full_program()]
    live_page = open_page(server.url)
    wait_for_text(live_page, ".card .counts", "queued")
    path = tmp_path / "program.html"
    path.write_text(render_html(make_full_program()), encoding="utf-8")
    saved_page = open_page(path)
    wait_for_text(saved_page, "#connection", "Saved")
    assert describe(saved_page) == describe(live_page)
    squares = "return document.querySelector(arguments[0]).toDataURL()"
    assert saved_page.run(squares, GRID) == live_page.run(squares, GRID)
    assert saved_page.errors() == []
    assert [url for url in saved_page.requests() if not url.startswith(("data:", path.as_uri()))] == []


def test_a_saved_report_opens_from_a_file(open_page: Callable[..., Page], tmp_path: Path) -> None:
    report = polarmap.coded_map(
        np.negative, np.eye(8), blocks=4, executor=polarmap.testing.ReplayExecutor({0: 9.0})
    ).report
    path = tmp_path / "map with space.html"
    save_html(path, make_map_snapshot(1, "negative", report))
    page = open_page(path, width=NARROW)
    wait_for_text(page, ".card[open] .counts", "arrived")
    assert "done in" in page.text(".status") and page.errors() == []
    assert not page.run("return document.querySelector('#totals').checkVisibility()")
