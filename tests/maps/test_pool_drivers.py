"""Maps on persistent workers, from real driver processes that are started and interrupted in many ways."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pool_processes import assert_nothing_is_left, descendants, folders

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0

# The program has no `if __name__ == "__main__"`, because workers do not import the main module.
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
    y = polarmap.coded_map(product, A, blocks=6, tasks=8, timeout={PATIENCE})
    assert np.allclose(y.concatenate(), A @ x)
with open(os.environ["ANSWER"], "w") as answer:
    answer.write("right")
"""
AS_A_CELL = f"exec(compile({PROGRAM!r}, '<cell 1>', 'exec'), {{'__name__': '__main__'}})"


def close_streams(*numbers: int) -> Callable[[], None]:
    return lambda: [os.close(number) for number in numbers] and None


def enter_deleted_folder() -> None:
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")


def imports_numpy_in_no_folder(folder: Path) -> bool:
    command, there = [sys.executable, "-c", "import numpy"], folder / "there"
    there.mkdir()
    return not subprocess.run(
        command, cwd=there, preexec_fn=enter_deleted_folder, capture_output=True
    ).returncode


@pytest.mark.parametrize(
    "how",
    ["script", "standard input", "a cell", "-I", "no such TMPDIR", "folder is gone"],
)
def test_program_runs_maps_however_it_is_started(how: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    arguments = {
        "script": [str(script)],
        "standard input": ["-"],
        "a cell": ["-c", AS_A_CELL],
        "-I": ["-I", str(script)],
    }.get(how, ["-c", PROGRAM])
    before = enter_deleted_folder if how == "folder is gone" else None
    if before and not imports_numpy_in_no_folder(tmp_path):
        pytest.skip("this Python cannot import numpy itself there, as 3.12.1 and 3.13.0 cannot")
    more = {"TMPDIR": "/nowhere"} if how == "no such TMPDIR" else {}
    run(arguments, tmp_path, before, more, PROGRAM if how == "standard input" else "")


@pytest.mark.parametrize("closed", [(0, 1, 2), (0,), (1, 2)])
def test_program_without_standard_streams_runs_maps(closed: tuple[int, ...], tmp_path: Path) -> None:
    run(["-c", PROGRAM], tmp_path, close_streams(*closed), {}, None)


def run(
    arguments: list[str],
    folder: Path,
    before: Callable[[], None] | None,
    environment: dict[str, str],
    text: str | None,
) -> None:
    """Run a driver that writes its verdict into a file, and check the verdict and that no files are left."""
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

# Tasks that sleep let further tasks start, as long as there are descriptors for more workers.
y = polarmap.hedged_map(nap, [A] * 64, timeout={PATIENCE})
assert all(np.allclose(block, A @ x) for block in y)
polarmap.shutdown()
descriptors = []
try:
    while True:
        descriptors.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
try:
    polarmap.coded_map(product, A, blocks=6, tasks=8)
except ExecutorError as error:
    assert "Too many open files" in str(error)
else:
    raise AssertionError
for descriptor in descriptors:
    os.close(descriptor)
y = polarmap.coded_map(product, A, blocks=6, tasks=8, timeout={PATIENCE})
assert np.allclose(y.concatenate(), A @ x)
"""


def test_a_program_that_runs_out_of_descriptors_has_fewer_workers_or_a_clear_error(tmp_path: Path) -> None:
    run(["-c", CROWDED], tmp_path, None, {}, "")


# As on a terminal, Ctrl-C is sent to the whole process group, at any time.
INTERRUPTED = f"""
import os, signal
import numpy as np
import polarmap

A, x = np.random.default_rng(0).standard_normal((240, 8)), np.ones(8)
operator = polarmap.CodedOperator(A)

def work():
    y = polarmap.coded_map(lambda block: block @ x, A, blocks=6, tasks=8, timeout={PATIENCE})
    assert np.allclose(y.concatenate(), A @ x)
    assert np.allclose(operator @ x, A @ x)

is_over = False

def end(*_):
    global is_over
    is_over = True

signal.signal(signal.SIGUSR1, end)
signal.signal(signal.SIGINT, signal.default_int_handler)
interrupts, is_ready = 0, False
while not is_over:
    try:
        while not is_over:
            try:
                if not is_ready:
                    is_ready = True
                    print("ready", flush=True)  # interrupts may come at any time after this line
                while not is_over:
                    work()
                    if interrupts % 8 == 7:
                        polarmap.shutdown()
                        interrupts += 1
            except KeyboardInterrupt:
                interrupts += 1
    except KeyboardInterrupt:  # an interrupt between two lines, while objects are being released
        interrupts += 1
signal.signal(signal.SIGINT, signal.SIG_IGN)
work()
print("right" if interrupts else "never interrupted", flush=True)
"""


def test_maps_work_after_interrupts_at_any_time() -> None:
    stream, pause = np.random.default_rng(0), threading.Event()
    driver = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert driver.stdout is not None
    with driver:
        assert driver.stdout.readline() == "ready\n"
        processes = descendants(driver.pid)
        for _ in range(40):
            pause.wait(0.02 + float(stream.uniform(0.0, 0.1)))  # an interrupt may come at any time
            os.killpg(driver.pid, signal.SIGINT)
        pause.wait(0.2)
        processes |= descendants(driver.pid)
        driver.send_signal(signal.SIGUSR1)
        assert driver.stdout.readline() == "right\n"
        assert driver.wait(PATIENCE) == 0
    assert_nothing_is_left(driver.pid, processes)
