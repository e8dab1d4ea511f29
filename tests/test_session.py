"""Check the test suite itself: everything a session has started ends with the session."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pool_processes import runs, until

TESTS = Path(__file__).resolve().parent

DIES = """
import os, pathlib, signal

def test_it(redis_server, s3_server, tmp_path):
    numbers = [server.process.pid for server in (redis_server, s3_server)]
    pathlib.Path({noted!r}).write_text(" ".join(map(str, [os.getpid(), *numbers])))
    os.kill(os.getpid(), signal.{signal})
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """Provide a short temporary directory for a session within this one."""
    folder = Path(os.environ["TMPDIR"]).parent / "s"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def session(place: Path, text: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a session with this one test."""
    shutil.copy(TESTS / "conftest.py", place)
    (place / "test_it.py").write_text(text)
    (place / "tmp").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    without = [word for name in ("cacheprovider", "zarr", "valkey") for word in ("-p", f"no:{name}")]
    given = ["-q", *without, "--rootdir", str(place), str(place / "test_it.py"), *arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *given],
        env={**environment, "TMPDIR": str(place / "tmp"), "PYTHONPATH": str(TESTS)},
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# Both signals end Python without exit handlers.
@pytest.mark.parametrize(
    ("ending", "processes"),
    [("SIGKILL", ()), ("SIGTERM", ("-n", "1", "--maxfail", "1"))],
    ids=["alone", "xdist"],
)
def test_nothing_is_left_of_a_session_that_dies(place: Path, ending: str, processes: tuple[str, ...]) -> None:
    numbers_file = place / "numbers"
    with session(place, DIES.format(noted=str(numbers_file), signal=ending), *processes) as run:
        out, _ = run.communicate(timeout=100)
    assert numbers_file.exists(), out
    numbers = [int(number) for number in numbers_file.read_text().split()]
    assert until(lambda: not any(map(runs, numbers)), 60.0)
    assert until(lambda: os.listdir(place / "tmp") == [], 60.0)
