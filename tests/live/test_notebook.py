"""Run live views in a real Jupyter kernel, and check what the saved notebook contains."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import nbformat
import pytest
from nbclient import NotebookClient

from polarmap.live.notebook import make_mime_bundle
from polarmap.live.snapshots import IterationSnapshot, MapSnapshot, ProgramSnapshot

SETUP = """
import threading
from dataclasses import replace
from polarmap.live.notebook import NotebookView
from polarmap.live.snapshots import MapSnapshot, ProgramSnapshot

old = MapSnapshot(1, "old", "code", "pool", 4, 3, 3, 3, 0.2, False, "aaac")
new = MapSnapshot(2, "negative", "code", "pool", 4, 3, 3, 2, 0.1, True, "aarq")
done = replace(new, states="aaac", n_arrived=3, is_running=False, elapsed_seconds=0.5)

class Source:
    def __init__(self, *maps):
        self.n_calls, self.has_called = 0, threading.Semaphore(0)
        self.maps = maps

    def __call__(self, is_final=False):
        self.n_calls += 1
        self.has_called.release()
        return ProgramSnapshot(7, "fit.py", "node", 0.0, maps=self.maps)

    def wait_for_calls(self, count):
        for _ in range(count):
            assert self.has_called.acquire(timeout=60)

def count_views():
    return sum(thread.name == "polarmap-view" for thread in threading.enumerate())
"""
CELLS = {
    "setup": SETUP,
    "running": """
source = Source(old)
view = NotebookView(source)
view.start()
source.maps = old, new
source.wait_for_calls(4)
source.maps = old, done
view.close()
""",
    "closed": "view.close(), count_views()",
    "nothing": "view = NotebookView(Source(old)); view.start(); view.close()",
    "failing": """
class FailingSource(Source):
    def __call__(self, is_final=False):
        if not is_final:
            self.has_called.release()
            raise ValueError("no snapshot")
        return super().__call__()

source = FailingSource(new)
view = NotebookView(source)
view.start()
source.wait_for_calls(2)
view.close()
""",
    "ends itself": """
source = Source(new)
view = NotebookView(source, has_ended=lambda snapshot: not snapshot.maps[0].is_running)
view.start()
source.maps = done,
view._refresher._thread.join(60)
print(count_views())
""",
    "everything": "view = NotebookView(Source(old), shows_all=True); view.start(); view.close()",
}

Output = dict[str, Any]


@pytest.fixture(scope="module")
def notebook() -> Any:
    cells = [nbformat.v4.new_code_cell(source, id=name.replace(" ", "-")) for name, source in CELLS.items()]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return notebook


@pytest.fixture(scope="module")
def outputs(notebook: Any) -> dict[str, list[Output]]:
    """Return the outputs of each cell by its name."""
    return {name: cell.outputs for name, cell in zip(CELLS, notebook.cells)}


def displayed(output: Output) -> tuple[str, str]:
    """Return the representations of a view: the SVG and the text."""
    assert output["output_type"] == "display_data"
    assert set(output["data"]) == {"image/svg+xml", "text/plain"}
    ElementTree.fromstring(output["data"]["image/svg+xml"])
    return output["data"]["image/svg+xml"], output["data"]["text/plain"]


def test_a_closed_view_leaves_one_output_with_the_final_state(outputs: dict[str, list[Output]]) -> None:
    (output,) = outputs["running"]
    svg, text = displayed(output)
    assert text == "map 2, negative: 3 needed, 3 arrived, done in 0.50 s"
    assert text in svg
    assert "map 2: negative" in svg
    assert "map 1" not in svg


def test_closing_twice_does_nothing_and_leaves_no_thread(outputs: dict[str, list[Output]]) -> None:
    assert outputs["closed"][0]["data"]["text/plain"] == "(None, 0)"


def test_maps_that_had_finished_before_are_shown_only_on_request(outputs: dict[str, list[Output]]) -> None:
    assert outputs["nothing"] == []
    assert displayed(outputs["everything"][0])[1] == "map 1, old: 3 needed, 3 arrived, done in 0.20 s"


def test_an_exception_in_a_view_is_not_raised_into_the_program(outputs: dict[str, list[Output]]) -> None:
    (output,) = outputs["failing"]
    assert displayed(output)[1] == "map 2, negative: 3 needed, 2 arrived"


def test_a_view_can_end_itself(outputs: dict[str, list[Output]]) -> None:
    printed = [output["text"] for output in outputs["ends itself"] if output["output_type"] == "stream"]
    shown = [output for output in outputs["ends itself"] if output["output_type"] == "display_data"]
    assert printed == ["0\n"]
    assert [displayed(output)[1] for output in shown] == [
        "map 2, negative: 3 needed, 3 arrived, done in 0.50 s"
    ]


def test_an_exported_page_shows_the_final_state(notebook: Any) -> None:
    nbconvert = pytest.importorskip("nbconvert")
    page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    assert "done in 0.50 s" in page or "data:image/svg+xml" in page


def test_text_of_a_program_is_one_line() -> None:
    iteration = IterationSnapshot("Lasso", 3, 0.5, 1e-3, 0.01, 12, 0.1, True)
    one_map = MapSnapshot(2, "f\nf", "code", "pool", 4, 3, 3, 2, 0.1, True, "aarq")
    program = ProgramSnapshot(7, "fit.py", "node", 0.0, maps=(one_map,), iterations=(iteration,))
    assert make_mime_bundle(program)["text/plain"].count("\n") == 0
