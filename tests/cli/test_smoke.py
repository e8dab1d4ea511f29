"""One small coded map through a configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from polarmap.cli import smoke

ROOT = Path(__file__).resolve().parents[2]
CLOUDS = ["aws_lambda", "azure_functions", "gcp_functions", "k8s"]


@pytest.mark.parametrize("backend", CLOUDS)
def test_a_template_is_refused_by_naming_what_is_missing(backend: str) -> None:
    path = f"config/{backend}.yaml"
    run = subprocess.run(
        [sys.executable, "-m", "polarmap.cli.smoke", backend, path],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert f"'{path}' is a template: copy it and fill in\n" in run.stderr
    assert ".storage_bucket: <" in run.stderr


def test_smoke_runs_a_coded_map_with_a_sleeping_worker(tmp_path: Path) -> None:
    report = smoke.smoke(str(ROOT / "config" / "localhost.yaml"), "localhost", timeout=60)
    assert "abandoned: 1" in report and "lithops/localhost" in report
