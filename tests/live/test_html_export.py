from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from math import inf, nan
from pathlib import Path

import numpy as np

import polarmap
from polarmap.live.html_export import SnapshotEncoder, read_page_file, render_html, save_html
from polarmap.live.snapshots import (
    FailureSnapshot,
    IterationSnapshot,
    MapSnapshot,
    ProgramSnapshot,
    WorkerSnapshot,
    make_map_snapshot,
)
from polarmap.testing import ReplayExecutor

NASTY_TEXT = "</script><script>alert(1)</script><!-- & \u2028 ' \" \\ é"


def make_map(map_id: int = 1, is_running: bool = False, **values: object) -> MapSnapshot:
    fields = {"submitted": (0.0, 0.0), "started": (0.1, None), "ended": (0.2, None), **values}
    return MapSnapshot(map_id, "f", "code", "pool", 2, 1, 1, 1, 0.5, is_running, "aq", **fields)  # type: ignore[arg-type]


def make_program(*maps: MapSnapshot, **values: object) -> ProgramSnapshot:
    return ProgramSnapshot(7, "fit.py", "laptop", 0.0, maps=maps, **values)  # type: ignore[arg-type]


def read_saved_program(text: str) -> ProgramSnapshot:
    """Return the program that is stored in an HTML file."""
    match = re.search(r'<script type="application/json" id="saved-snapshots">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    (fields,) = json.loads(match[1])
    return ProgramSnapshot.from_json(json.dumps(fields))


class Elements(HTMLParser):
    """Collects the elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def test_the_file_contains_the_snapshot() -> None:
    program = make_program(make_map(), make_map(2, is_running=True))
    assert read_saved_program(render_html(program)) == program


def test_the_file_needs_no_other_file() -> None:
    elements = Elements(render_html(make_program(make_map()))).elements
    links = [
        value for _, attributes in elements for name, value in attributes.items() if name in ("src", "href")
    ]
    assert all(link is not None and link.startswith(("data:", "#")) for link in links)
    policies = [attributes["content"] for tag, attributes in elements if "http-equiv" in attributes]
    assert len(policies) == 1 and str(policies[0]).startswith("default-src 'none'")


def test_texts_cannot_end_the_script() -> None:
    program = make_program(make_map(failures=(FailureSnapshot(0, NASTY_TEXT, NASTY_TEXT),), error=NASTY_TEXT))
    text = render_html(program)
    n_scripts = render_html(make_program(make_map())).count("<script")
    assert text.count("<script") == n_scripts and "alert(1)</script>" not in text
    assert read_saved_program(text) == program


def test_page_files_do_not_contain_what_would_end_an_inline_script() -> None:
    assert "</script" not in read_page_file("dashboard.js") and "</style" not in read_page_file(
        "dashboard.css"
    )


def test_a_report_is_saved(tmp_path: Path) -> None:
    report = polarmap.coded_map(np.negative, np.eye(8), blocks=4, executor=ReplayExecutor({2: 9.0})).report
    snapshot = make_map_snapshot(3, "negative", report)
    path = tmp_path / "map.html"
    save_html(path, snapshot)
    assert read_saved_program(path.read_text(encoding="utf-8")).maps == (snapshot,)
    save_html(str(path), make_map())
    assert read_saved_program(path.read_text(encoding="utf-8")).maps == (make_map(),)


def test_programs_are_encoded_as_in_snapshots() -> None:
    workers = (WorkerSnapshot("pool", 0, None, "", "idle", None, 0.5),)
    iterations = (IterationSnapshot("Ridge", 3, 0.5, None, 0.01, 6, 1.0, True),)
    programs = [make_program(make_map(), workers=workers, iterations=iterations), make_program()]
    encoded = json.loads(SnapshotEncoder().encode(programs))
    assert encoded == [json.loads(program.to_json()) for program in programs]


def test_numbers_that_are_not_finite_are_null() -> None:
    iterations = (IterationSnapshot("Ridge", 3, inf, nan, 0.01, 6, 1.0, True),)
    (program,) = json.loads(SnapshotEncoder().encode([make_program(iterations=iterations)]))
    assert program["iterations"][0]["objective"] is program["iterations"][0]["gradient_norm"] is None


def test_finished_maps_are_encoded_once() -> None:
    encoder = SnapshotEncoder()
    finished_map, running_map = make_map(1), make_map(2, is_running=True)
    first = encoder.encode([make_program(finished_map, running_map)])
    assert [known for known, _ in encoder._texts_by_id.values()] == [finished_map]
    assert encoder.encode([make_program(finished_map, running_map)]) == first
    # A map that is no longer part of the snapshot is dropped.
    encoder.encode([make_program(make_map(3))])
    assert [known.map_id for known, _ in encoder._texts_by_id.values()] == [3]
