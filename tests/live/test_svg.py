"""Check static SVG of maps and programs: what it shows, that it is well-formed, and that it stays small."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

import polarmap
from polarmap.live import svg
from polarmap.live.snapshots import (
    STATE_LETTERS,
    ExecutorSnapshot,
    FailureSnapshot,
    IterationSnapshot,
    MapSnapshot,
    ProgramSnapshot,
    WorkerSnapshot,
    make_map_snapshot,
)
from polarmap.live.svg import render_map_svg, render_program_svg
from polarmap.live.task_groups import STATE_COLORS
from polarmap.plot import figure_style
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

NAMESPACE = "{http://www.w3.org/2000/svg}"
MAX_BYTES = 60_000

RUNNING = MapSnapshot(
    *(3, "<f> & g", "rotation code", "processes", 8, 6, 6, 1, 1.0, True, "aRqfhscx"),
    submitted=(0.0, 0.0, 0.0, 0.0, None, 0.0, 0.0, 0.0),
    started=(0.1, 0.2, None, 0.3, None, 0.2, None, 0.5),
    ended=(0.6, None, None, None, None, 0.9, None, None),
    failures=(FailureSnapshot(3, 'bad <b> & "q"\x00\ud800\n', "node-7"),),
    n_failed_tasks=2,
)


def program_of(*maps: MapSnapshot) -> ProgramSnapshot:
    return ProgramSnapshot(7, "fit.py", "node-1", 0.0, maps=maps)


def real_map() -> MapSnapshot:
    """Return the snapshot of a map in which a worker was lost and another was late."""
    executor = FaultyExecutor(ReplayExecutor({3: 60.0}), {1: Fault("kill", attempts=9)})
    A = np.arange(48.0).reshape(24, 2)
    result = polarmap.coded_map(np.negative, A, blocks=6, tasks=8, executor=executor, progress=False)
    return make_map_snapshot(1, "negative", result.report)


def large_map(n: int) -> MapSnapshot:
    """Return a map in which states, late tasks and decoded blocks alternate, which takes the most space."""
    letters = "".join(STATE_LETTERS.values())
    letters += letters.upper()
    return replace(
        RUNNING,
        n=n,
        k=n,
        states=(letters * n)[:n],
        submitted=tuple(0.001 * (task % 97) for task in range(n)),
        started=tuple(0.1 + 0.003 * (task % 97) for task in range(n)),
        ended=tuple(0.4 + 0.007 * (task % 31) if task % 2 else None for task in range(n)),
        decoded_blocks=tuple(range(0, n, 3)),
        sufficed_at=0.9,
        failures=(FailureSnapshot(3, "&" * 500, "&" * 500),) * 5,
        error="&" * 500,
    )


def parsed(text: str) -> ElementTree.Element:
    assert "\x00" not in text
    text.encode()
    return ElementTree.fromstring(text)


def texts_of(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{NAMESPACE}text")]


def test_a_map_shows_its_status_legend_timeline_and_failures() -> None:
    snapshot = real_map()
    text = render_map_svg(snapshot)
    root = parsed(text)
    texts = texts_of(root)
    assert "map 1: negative" in texts
    assert snapshot.status_text in texts
    assert any(line.startswith("results sufficed after") for line in texts)
    assert "1 failed" in texts
    assert any(line.startswith("task 1: ") for line in texts)
    assert figure_style.BLUE in text
    assert figure_style.GREEN in text
    assert svg._QUEUED_STROKE not in text  # ReplayExecutor starts all tasks at once.


def test_queued_and_running_tasks_look_different() -> None:
    root = parsed(render_map_svg(RUNNING))
    paths = [path for path in root.iter(f"{NAMESPACE}path") if "H" in path.attrib["d"]]
    queued = [path for path in paths if path.attrib.get("stroke-opacity")]
    assert len(queued) == 1
    assert queued[0].attrib["d"].count("M") == 7
    assert {path.attrib["stroke"] for path in paths} > {figure_style.BLUE, figure_style.ORANGE}


def test_a_screen_reader_gets_a_title_and_a_description() -> None:
    root = parsed(render_map_svg(RUNNING))
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == "map 3, <f> & g: 6 needed, 1 arrived"
    title, description = root.find(f"{NAMESPACE}title"), root.find(f"{NAMESPACE}desc")
    assert title is not None
    assert title.text == root.attrib["aria-label"]
    assert description is not None
    assert description.text is not None
    assert description.text.startswith("map 3: <f> & g. 8 tasks: 1 arrived, 1 running, 1 queued")


def test_text_is_escaped_and_has_no_control_characters() -> None:
    texts = texts_of(parsed(render_map_svg(RUNNING)))
    assert "map 3: <f> & g" in texts
    assert 'task 3 on node-7: bad <b> & "q"' in texts
    assert "1 more task has failed" in texts


@pytest.mark.parametrize("n", [0, 1, 24, 152, 153, 571, 1000, 1001, 10_000, 65_536])
def test_the_size_is_limited_for_any_number_of_tasks(n: int) -> None:
    text = render_map_svg(large_map(n))
    parsed(text)
    assert len(text.encode()) <= MAX_BYTES
    program_text = render_program_svg(program_of(*[large_map(n)] * 8))
    parsed(program_text)
    assert len(program_text.encode()) <= MAX_BYTES


@pytest.mark.parametrize("n", [1, 24, 153, 1000, 10_000])
def test_everything_is_inside_the_view_box(n: int) -> None:
    root = parsed(render_map_svg(large_map(n)))
    width, height = (float(root.attrib[name]) for name in ("width", "height"))
    for path in root.iter(f"{NAMESPACE}path"):
        for x, y in re.findall(r"M([\d.]+) ([\d.]+)", path.attrib["d"]):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height
    for text in root.iter(f"{NAMESPACE}text"):
        assert 0 <= float(text.attrib["x"]) <= width
        assert 0 <= float(text.attrib["y"]) <= height


def test_contrast_of_text_is_sufficient_on_both_backgrounds() -> None:
    dark = dict(re.findall(r"\.polarmap-(\w+)\{\w+:(#\w+)\}", svg.DARK_STYLE))
    assert contrast(figure_style.TEXT_COLOR, "#ffffff") >= 7
    assert contrast(svg.SECONDARY_COLOR, "#ffffff") >= 4.5
    assert contrast(dark["text"], dark["card"]) >= 7
    assert contrast(dark["note"], dark["card"]) >= 4.5
    for state in ("arrived", "running", "failed"):
        assert contrast(STATE_COLORS[state], dark["card"]) >= 3


def contrast(color: str, background: str) -> float:
    """Return the contrast ratio of two colours as WCAG defines it."""
    light, dark = sorted((luminance(color), luminance(background)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[first : first + 2], 16) / 255 for first in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


def test_a_program_shows_fits_running_maps_and_workers() -> None:
    fit = IterationSnapshot("Lasso", 3, None, None, None, 12, 0.1, True)
    workers = tuple(WorkerSnapshot("pool", number, None, "", "idle", None, 1.0) for number in range(20))
    finished = replace(RUNNING, map_id=1, is_running=False)
    calls = ExecutorSnapshot("Executor 1", "processes", 200, 120, 4, 1)
    program = replace(program_of(finished, RUNNING), iterations=(fit,), workers=workers, executors=(calls,))
    texts = texts_of(parsed(render_program_svg(program)))
    assert "Lasso: step 3, 12 products" in texts
    assert "Executor 1: 120 of 200 calls done, 4 running, 1 failed" in texts
    assert "map 3: <f> & g" in texts
    assert not any(line.startswith("map 1") for line in texts)
    assert "20 workers: 20 idle" in texts
    assert "and 4 more" in texts


def test_an_empty_program_says_so() -> None:
    assert "No map has started." in texts_of(parsed(render_program_svg(program_of())))
