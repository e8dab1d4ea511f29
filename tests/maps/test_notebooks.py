"""Reports, figures and progress bars as the output of notebook cells, which a real kernel executes.

One kernel runs all cells because it takes a second to start. Each test checks the output of one cell.
"""

from __future__ import annotations

import base64
import struct
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

SETUP = """
import sys, threading
import numpy as np, polarmap, polarmap.driver.observers
polarmap.driver.observers.NOTEBOOK_DELAY_SECONDS = 60.0  # a map here is short, however busy the machine is
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
executor = FaultyExecutor(ReplayExecutor({3: 60.0}), {1: Fault("kill", attempts=9)})
A = np.arange(48.0).reshape(24, 2)
y = polarmap.coded_map(np.negative, A, blocks=6, tasks=8, executor=executor)
plan = polarmap.plan(8, [1.0, 1.1, 1.2, 5.0])
polarmap.driver.observers.NOTEBOOK_DELAY_SECONDS = 0.0
"""
CELLS = {
    "setup": SETUP,
    "report": "y.report",
    "figure": "y.report.plot()",
    "frontier": "plan.plot()",
    "plan": "plan",
    "result": "y",
    "no pyplot": "'matplotlib.pyplot' in sys.modules",
    "bar": "polarmap.coded_map(np.negative, A, blocks=6, tasks=8, executor=ReplayExecutor());",
    "no bar": "polarmap.coded_map(np.negative, A, executor=ReplayExecutor(), progress=False);",
    "pyplot": "import matplotlib.pyplot\ny.report.plot()",
}

Output = dict[str, Any]


@pytest.fixture(scope="module")
def outputs() -> dict[str, list[Output]]:
    """Return the outputs of each cell by its name."""
    return outputs_of(CELLS)


def outputs_of(sources: dict[str, str]) -> dict[str, list[Output]]:
    cells = [
        nbformat.v4.new_code_cell(source, id=f"cell-{place}") for place, source in enumerate(sources.values())
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    return {name: cell.outputs for name, cell in zip(sources, notebook.cells)}


def shown(outputs: list[Output]) -> dict[str, str]:
    """Return the only output of a cell as a dict from MIME types to data."""
    [output] = outputs
    return dict(output["data"])


def size_of(png: str) -> tuple[int, int]:
    """Return the width and height in the header of a PNG image, given in base64."""
    data = base64.b64decode(png)
    assert data.startswith(b"\x89PNG")
    return struct.unpack(">II", data[16:24])


def test_maps_print_nothing(outputs: dict[str, list[Output]]) -> None:
    assert outputs["setup"] == []


def test_report_shows_text_and_a_small_timeline(outputs: dict[str, list[Output]]) -> None:
    shown_report = shown(outputs["report"])
    assert shown_report["text/html"].count("<rect") == 8
    assert "of 8 results were enough" in shown_report["text/html"]
    assert len(shown_report["text/plain"].splitlines()) <= 10


@pytest.mark.parametrize("name", ["figure", "frontier"])
def test_a_figure_is_shown_without_a_magic(name: str, outputs: dict[str, list[Output]]) -> None:
    width, height = size_of(shown(outputs[name])["image/png"])
    assert width > height > 200
    assert shown(outputs["no pyplot"])["text/plain"] == "False"


def test_figure_is_shown_once_if_pyplot_is_imported(outputs: dict[str, list[Output]]) -> None:
    assert size_of(shown(outputs["pyplot"])["image/png"])[0] > 200


@pytest.mark.parametrize("name", ["plan", "result"])
def test_plans_and_results_are_short(name: str, outputs: dict[str, list[Output]]) -> None:
    text = shown(outputs[name])["text/plain"]
    assert len(text.splitlines()) <= 10
    assert max(map(len, text.splitlines())) <= 110


def test_progress_bar_is_a_widget(outputs: dict[str, list[Output]]) -> None:
    displays = [output for output in outputs["bar"] if output["output_type"] == "display_data"]
    assert [
        list(output["data"])
        for output in displays
        if "application/vnd.jupyter.widget-view+json" in output["data"]
    ]
    assert not [output for output in outputs["bar"] if output["output_type"] == "stream"]


def test_progress_bar_can_be_turned_off(outputs: dict[str, list[Output]]) -> None:
    assert outputs["no bar"] == []


WITHOUT_WIDGETS = {
    "setup": """
import sys
sys.modules["ipywidgets"] = None  # as if it were not installed
import numpy as np, polarmap, polarmap.driver.observers
polarmap.driver.observers.NOTEBOOK_DELAY_SECONDS = 0.0
from concurrent.futures import ThreadPoolExecutor
def f(block):
    import time
    time.sleep(0.2)
    return block
""",
    "bar": """
with ThreadPoolExecutor(2) as pool:
    polarmap.coded_map(f, np.eye(24), blocks=24, tasks=32, executor=pool);
""",
    "stripes": """
from polarmap.driver.events import EventStream, JobContext
job = JobContext(EventStream([polarmap.driver.observers.ProgressBar(True)]))
with job.track_encoding_progress(30) as show:
    for done in range(1, 31):
        f(None)
        show(done)
""",
}


def test_progress_bar_without_widgets_prints_at_most_one_line() -> None:
    # The bar changes about thirty times, and a notebook keeps every printed line.
    outputs = outputs_of(WITHOUT_WIDGETS)
    assert outputs["setup"] == []
    for name, ends in (("bar", ""), ("stripes", "30/30 stripes")):
        assert [output["output_type"] for output in outputs[name]] == ["display_data"]
        text = outputs[name][0]["data"]["text/plain"]
        assert len(text.splitlines()) <= 1
        assert ends in text
    assert outputs["bar"][0]["data"]["text/plain"] == ""
