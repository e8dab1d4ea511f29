"""Drivers of every kind: however a program is run, its maps find workers."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pool_processes import folders

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0

# There is no `if __name__ == "__main__"` in it: workers do not import what started them.
PROGRAM = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
import polarmap

A, x = np.arange(48.0).reshape(12, 4), np.ones(4)

def product(block):
    for descriptor in (1, 2):
        os.write(descriptor, b"heard\\n")
    return block @ x

for _ in range(2):
    y = polarmap.coded_map(product, A, blocks=6, workers=8, timeout={PATIENCE})
    assert np.allclose(y.concatenate(), A @ x)
with open(os.environ["ANSWER"], "w") as answer:
    answer.write("right")
"""
AS_A_CELL = f"exec(compile({PROGRAM!r}, '<cell 1>', 'exec'), {{'__name__': '__main__'}})"


def close_streams(*numbers: int) -> Callable[[], None]:
    return lambda: [os.close(number) for number in numbers] and None


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def gone() -> None:
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")


@pytest.mark.parametrize(
    "how",
    ["-c", "script", "standard input", "a cell", "-I", "few descriptors", "no such TMPDIR", "folder is gone"],
)
def test_a_program_maps_however_it_is_run(how: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    arguments = {
        "script": [str(script)],
        "standard input": ["-"],
        "a cell": ["-c", AS_A_CELL],
        "-I": ["-I", str(script)],
    }.get(how, ["-c", PROGRAM])
    before = {"few descriptors": few_descriptors, "folder is gone": gone}.get(how)
    more = {"TMPDIR": "/nowhere"} if how == "no such TMPDIR" else {}
    run(arguments, tmp_path, before, more, PROGRAM if how == "standard input" else "")


@pytest.mark.parametrize("closed", [(0, 1, 2), (0,), (1,), (2,), (0, 1), (1, 2)])
def test_a_program_without_standard_streams_maps(closed: tuple[int, ...], tmp_path: Path) -> None:
    run(["-c", PROGRAM], tmp_path, close_streams(*closed), {}, None)


def run(
    arguments: list[str],
    folder: Path,
    before: Callable[[], None] | None,
    environment: dict[str, str],
    text: str | None,
) -> None:
    """A program that writes whether it was right; nothing of it is left."""
    driver = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "ANSWER": str(folder / "answer"), **environment},
        preexec_fn=before,
        stdin=None if text is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _, errors = driver.communicate(text, timeout=PATIENCE)
    assert driver.returncode == 0, errors
    assert (folder / "answer").read_text() == "right"
    assert not folders(driver.pid)


CROWDED = f"""
import resource, time
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
from polarmap.errors import ExecutorError
{PROGRAM}
def nap(block):
    time.sleep(0.2)
    return block @ x

# Tasks that sleep let others start, as long as there are descriptors for more workers.
y = polarmap.hedged_map(nap, [A] * 64, timeout={PATIENCE})
assert all(np.allclose(one, A @ x) for one in y)
polarmap.shutdown()
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
try:
    polarmap.coded_map(product, A, blocks=6, workers=8)
except ExecutorError as error:
    assert "Too many open files" in str(error)
else:
    raise AssertionError
for one in held:
    os.close(one)
y = polarmap.coded_map(product, A, blocks=6, workers=8, timeout={PATIENCE})
assert np.allclose(y.concatenate(), A @ x)
"""


def test_a_program_that_runs_out_of_descriptors_has_fewer_workers_or_a_clear_error(tmp_path: Path) -> None:
    run(["-c", CROWDED], tmp_path, None, {}, "")
