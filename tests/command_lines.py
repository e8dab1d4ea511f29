"""Commands to run in this process and as processes, and their results."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTION = ["--distribution", "exponential:1,0.1", "--stragglers", "0.02", "5"]
COMMAND = [sys.executable, "-m", "polarmap"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
INTERRUPTED = b"polarmap: interrupted; nothing was left running"


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, parsed as a single standard JSON document."""
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


Run = Callable[..., Ran]
