"""Every benchmark starts from a checkout, with nothing on its path that pytest puts there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import benchmarks
from benchmarks.__main__ import OTHERS, SPEED

FOLDER = Path(benchmarks.__file__).parent


def test_every_benchmark_is_found_and_loads() -> None:
    modules = [path.relative_to(FOLDER.parent).with_suffix("") for path in sorted(FOLDER.rglob("*.py"))]
    names = [".".join(module.parts) for module in modules if module.name != "__init__"]
    assert {f"benchmarks.{subject}" for subject in SPEED + OTHERS} < set(names)
    command = [sys.executable, "-c", f"import {', '.join(names)}"]
    run = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
