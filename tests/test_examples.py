"""The examples run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ARGUMENTS = {
    "matvec.py": ["2000", "48", "4"],  # smaller, and a shorter wait for the uncoded map
    "adversarial.py": ["2"],  # digits, of eight
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs_and_is_short(example):
    assert len(example.read_text().splitlines()) < 50
    done = subprocess.run(
        [sys.executable, str(example), *ARGUMENTS.get(example.name, [])],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout
