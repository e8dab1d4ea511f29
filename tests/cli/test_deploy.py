"""Deploying a runtime: the client's versions, and refusals before anything costs money."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from polarmap.cli import deploy
from polarmap.errors import ExecutorError

ROOT = Path(__file__).resolve().parents[2]
CLOUDS = ["aws_lambda", "azure_functions", "gcp_functions", "k8s"]


def test_workers_get_the_versions_installed_here() -> None:
    lines = (ROOT / "backends" / "gcp_functions" / "requirements.txt").read_text().splitlines()
    pinned = deploy.frozen(lines, {"numpy": "2.2.6", "lithops": "3.8.0", "cloudpickle": "3.1.0"})
    assert pinned[:3] == ["lithops==3.8.0", "numpy==2.2.6", "cloudpickle==3.1.0"]
    assert pinned[3:] == ["google-cloud-storage", "google-cloud-pubsub"]


def test_numpy_without_a_wheel_is_refused_before_it_is_built() -> None:
    with pytest.raises(ExecutorError, match=r"numpy 2\.4\.6 has no wheel: run the client on Python 3\.12"):
        deploy.check_python("aws_lambda", (3, 11), "2.4.6")
    deploy.check_python("gcp_functions", (3, 11), "2.4.6")


@pytest.mark.parametrize("backend", CLOUDS)
def test_a_template_is_refused_by_naming_what_is_missing(backend: str) -> None:
    path = f"config/{backend}.yaml"
    run = subprocess.run(
        [sys.executable, "-m", "polarmap.cli.deploy", backend, path, f"backends/{backend}"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert f"'{path}' is a template: copy it and fill in\n" in run.stderr
    assert ".storage_bucket: <" in run.stderr
