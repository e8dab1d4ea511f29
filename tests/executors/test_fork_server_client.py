"""The driver's client of the fork server, and the environment of the workers that the server starts."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_processes import check
from predicates import assert_only_asks

import polarmap
from polarmap import Pool, hedged_map
from polarmap.errors import ExecutorError
from polarmap.executors import fork_server_client, local_workers
from polarmap.executors.fork_server_client import ForkServerClient
from polarmap.worker.messages import PROTOCOL_VERSION
from polarmap.worker.polling import POLLIN, wait_until_ready


def test_socket_of_a_worker_buffers_the_largest_inline_function() -> None:
    driver_socket, worker_socket = fork_server_client.make_worker_socket_pair()
    with driver_socket, worker_socket:
        message = bytes(fork_server_client.MAX_INLINE_FUNCTION_BYTES + (1 << 14))
        assert driver_socket.send(message, socket.MSG_DONTWAIT) == len(message)


def on_a_new_worker(f: Callable[[], Any]) -> Any:
    """Return the result of f on a worker of a new pool."""
    with Pool(workers=1) as pool:
        [result] = hedged_map(lambda part: f(), np.zeros(1), blocks=1, executor=pool)
    return result[0]


def test_worker_imports_only_the_modules_that_tasks_need() -> None:
    def others() -> Any:
        parts = [name.split(".")[:2] for name in sys.modules if name.startswith("polarmap.")]
        return [float(sum(part[1] not in ("worker", "lazy_names") for part in parts))]

    assert on_a_new_worker(others) == 0.0


@pytest.mark.parametrize(
    "program",
    [
        "result = polarmap.encode.__module__ == 'polarmap.arrays.encoding'",
        "from polarmap.codes import PolarCode; result = PolarCode(8, 6).n == 8",
        "from polarmap import *; result = 'coded_map' in vars()",
        # Access to the version imports the whole package. Modules imported before must stay usable.
        """
import polarmap.linalg.operands, polarmap.worker.segments
result = polarmap.__version__ and polarmap.linalg.operands.TransposedView and polarmap.worker.segments.Segment
""",
    ],
)
def test_functions_can_use_all_of_polarmap(program: str) -> None:
    def run() -> Any:
        names: dict[str, Any] = {"polarmap": polarmap}
        exec(program, names)
        return [float(bool(names["result"]))]

    assert on_a_new_worker(run) == 1.0


def test_interpreter_that_does_not_serve_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    server = ForkServerClient(1, [], [])
    server._process.wait(30.0)
    with pytest.raises(ExecutorError, match="/bin/false ended with code 1"):
        server.check_started()
    server.after_fork()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ExecutorError, match="/nowhere/python cannot be started"):
        ForkServerClient(1, [], [])


@pytest.mark.parametrize("fork", [True, False])
def test_local_workers_of_another_version_raise_one_clear_error(
    fork: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # The versions differ if polarmap is upgraded while a notebook runs.
    monkeypatch.setattr(fork_server_client, "PROTOCOL_VERSION", PROTOCOL_VERSION + 1)
    with Pool(fork=fork) as pool, pytest.raises(ExecutorError, match="Restart this process"):
        check(pool)
    assert f"its driver has version {PROTOCOL_VERSION + 1} of polarmap's protocol" in capfd.readouterr().err


def test_is_alive_has_no_side_effects() -> None:
    server = ForkServerClient(1, [], [])
    try:
        wait_until_ready([server._control_socket], POLLIN, 60.0)
        assert_only_asks(server, server.is_alive)
        assert server.is_alive()
        # The first byte of the server must still be unread.
        assert wait_until_ready([server._control_socket], POLLIN, 0.0)
        server.check_started()
        assert server._is_ready
    finally:
        server.close()
    assert server.is_alive() is False


@pytest.mark.parametrize("blocked", [[], [signal.SIGALRM]])
def test_slow_imports_raise_one_clear_error(
    blocked: list[signal.Signals], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "endless.py").write_text("import time; time.sleep(600)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fork_server_client, "INTERPRETER_START_SECONDS", 1)
    monkeypatch.setattr(local_workers, "find_referenced_modules", lambda *_: ["endless"])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        with Pool() as pool, pytest.raises(ExecutorError, match="took more than 1 s"):
            hedged_map(np.sum, [np.ones(5)], executor=pool, timeout=30)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_server_killed_before_it_is_ready_is_restarted() -> None:
    # Only a killed server is restarted. Restarting one that exits by itself would not help.
    x = np.ones(5)
    with Pool(workers=2) as pool:
        workers: Any = pool._executor._open_resources().worker_pool
        lease = workers.open_allocation(lambda: None)
        workers.acquire_worker(lease, 1)
        first = workers._starter._process
        first.kill()
        first.wait(30.0)
        workers.acquire_worker(lease, 1)
        assert workers._starter._process.pid != first.pid
        workers.close()
        workers.close_allocation(lease)
        [result] = hedged_map(lambda block: float(block.sum()), [x], executor=pool)
    assert result == 5.0
