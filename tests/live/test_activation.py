"""How a program becomes visible, and how it stays invisible without any cost."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import polarmap
from polarmap import Pool
from polarmap.errors import CodeError
from polarmap.live import activation
from polarmap.testing import ReplayExecutor

MAP = "import polarmap, sys; polarmap.hedged_map(abs, [1], progress=False)\n"


def run_program(text: str, **environment: str) -> str:
    """Run a Python program in a new process, and return what it printed."""
    environment = {**os.environ, **environment}
    command = [sys.executable, "-c", text]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(("value", "is_visible"), [("", False), ("0", False), ("1", True)])
def test_environment_variable_makes_a_program_visible(value: str, is_visible: bool) -> None:
    text = f"{MAP}print(polarmap.live.activation.active_hub is not None, 'polarmap.live.hub' in sys.modules)"
    assert run_program(text, POLARMAP_LIVE=value) == f"{is_visible} {is_visible}\n"


def test_activations_are_counted() -> None:
    hub = activation.activate()
    assert activation.activate() is hub
    activation.deactivate()
    assert activation.active_hub is hub
    activation.deactivate()
    assert activation.active_hub is None


def test_activation_until_exit_happens_once() -> None:
    text = f"""{MAP}
from polarmap.live import activation
hub = activation.activate_until_exit()
assert activation.activate_until_exit() is hub
activation.activate()
activation.deactivate()
assert activation.active_hub is hub
print("visible")
"""
    assert run_program(text) == "visible\n"


def test_dashboard_shows_the_program_while_it_is_open() -> None:
    with polarmap.dashboard() as url:
        assert url.startswith("http://127.0.0.1:") and "?token=" in url
        assert activation.active_hub is not None
        with urllib.request.urlopen(url, timeout=30.0) as page:
            assert "polarmap" in page.read().decode()
        without_token = url.partition("?")[0]
        with pytest.raises(urllib.error.HTTPError, match="403") as refused:
            urllib.request.urlopen(without_token, timeout=30.0)
        refused.value.close()
    assert activation.active_hub is None
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=30.0)


@pytest.mark.parametrize("port", [-1, 65_536, "80", 1.5])
def test_invalid_port_is_refused(port: object) -> None:
    with (
        pytest.raises(CodeError, match="must be an integer between 0 and 65,535, got"),
        polarmap.dashboard(port),
    ):  # type: ignore[arg-type]
        pass
    assert activation.active_hub is None


def test_pool_has_a_dashboard_until_it_is_closed(capsys: pytest.CaptureFixture[str]) -> None:
    with Pool(workers=1, dashboard=True) as pool:
        url = pool.dashboard_url
        assert url is not None and f"the dashboard of this program is at {url}" in capsys.readouterr().err
        with urllib.request.urlopen(url, timeout=30.0) as page:
            assert page.status == 200
    assert pool.dashboard_url is None and activation.active_hub is None


def test_invalid_dashboard_is_refused() -> None:
    with pytest.raises(CodeError, match="dashboard must be True or False, not 'yes'"):
        Pool(dashboard="yes")  # type: ignore[arg-type]


def test_invalid_progress_is_refused() -> None:
    with pytest.raises(CodeError, match="progress must be True, False, 'live' or None, not 'dead'"):
        polarmap.hedged_map(abs, [1], progress="dead")  # type: ignore[arg-type]


def test_report_is_saved_as_a_page(tmp_path: Path) -> None:
    report = polarmap.coded_map(np.sum, np.ones(12), blocks=3, tasks=5, executor=ReplayExecutor()).report
    report.save_html(tmp_path / "map.html")
    page = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert '"needed":3' in page and "http://" not in page.replace("http://www.w3.org", "")
