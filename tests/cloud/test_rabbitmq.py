"""Check several hosts: Lithops' singularity backend behind RabbitMQ, with plain processes as workers.

A killed worker loses its task without any report: for Lithops the call never ends, for a coded map it is an
erasure.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from emulators import WIDE, A, debian_folder, listens, running
from servers import Server, free_ports

import polarmap

WORKERS = 8
SYSTEM_PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"])


def linked_programs(folder: Path) -> tuple[Path, Path]:
    """Return the folders with the programs of Erlang and of RabbitMQ, installed or downloaded.

    Both are reached through a link, since they cannot start from a path with a space, and since Debian's
    `erl` works only in its installed place.
    """
    is_installed = shutil.which("rabbitmq-server", path=SYSTEM_PATH) is not None
    root = folder / "root"
    root.symlink_to("/" if is_installed else debian_folder("rabbitmq-server", r"(?:erlang|rabbitmq)-\S+"))
    program_folders = [*root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin")]
    erlang = [*root.glob("usr/lib/erlang/erts-*/bin")]
    if not program_folders or not erlang:
        pytest.skip("RabbitMQ is installed, but not in /usr/lib/rabbitmq, where Debian has its programs")
    erl = folder / "bin" / "erl"
    erl.parent.mkdir()
    erl.write_text(
        f"#!/bin/sh\nexport ROOTDIR={root}/usr/lib/erlang BINDIR={erlang[0]} EMU=beam PROGNAME=erl\n"
        'exec "$BINDIR/erlexec" "$@"\n'
    )
    erl.chmod(0o755)
    return erl.parent, program_folders[0]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start RabbitMQ on loopback, with all its files in a temporary folder."""
    folder = tmp_path_factory.mktemp("rabbit")
    erlang, programs = linked_programs(folder)
    port, mapper, distribution = free_ports(3)
    loopback = "{inet_dist_use_interface,{127,0,0,1}}"
    (folder / "advanced.config").write_text(f"[{{kernel, [{loopback}]}}].\n")
    env = {
        "HOME": str(folder),
        "PATH": os.pathsep.join([str(erlang), os.environ["PATH"]]),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(mapper),
        "RABBITMQ_NODENAME": f"polarmap{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "logs"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_CONFIG_FILE": str(folder / "none"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
    }
    with (
        running(
            [folder / "root/usr/bin/epmd", "-address", "127.0.0.1", "-port", mapper],
            folder / "epmd.log",
            lambda: listens(mapper),
        ),
        running([programs / "rabbitmq-server"], folder / "log", lambda: takes_messages(port), env, folder),
    ):
        yield f"amqp://guest:guest@127.0.0.1:{port}/%2F"


def takes_messages(port: int) -> bool:
    import pika

    try:
        pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port)).close()
    except Exception:
        return False
    return True


class Host:
    """A process that stands for a machine and takes tasks from the queue, one at a time."""

    def __init__(self, process: Any, folder: Path) -> None:
        self.process, self.folder = process, folder

    def kill(self) -> None:
        """Kill the process with all its children."""
        os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture
def hosts(broker: str, tmp_path: Path) -> Iterator[list[Host]]:
    """Start machines with separate home and temporary folders, which share only the storage."""
    import lithops

    entry = Path(lithops.__file__).parent / "serverless" / "backends" / "singularity" / "entry_point.py"
    # The entry point runs cpu_count() tasks at a time; with 1, a worker has a single task.
    run = f"import os, runpy, sys; os.cpu_count = lambda: 1; sys.argv = ['w', {broker!r}]; "
    run += f"runpy.run_path({str(entry)!r}, run_name='__main__')"
    with ExitStack() as stack:
        machines = []
        for number in range(WORKERS):
            folder = tmp_path / f"host{number}"
            (folder / "tmp").mkdir(parents=True)
            env = {"TMPDIR": str(folder / "tmp"), "HOME": str(folder)}
            process = stack.enter_context(
                running([sys.executable, "-c", run], folder / "log", env=env, cwd=folder)
            )
            machines.append(Host(process, folder))
        yield machines


@pytest.fixture
def config(broker: str, s3_server: Server, hosts: list[Host], tmp_path: Path) -> Path:
    settings = {
        "lithops": {"backend": "singularity", "storage": "minio", "monitoring_interval": 0.05},
        "singularity": {"runtime": "plain-process", "worker_processes": 1, "max_workers": WORKERS},
        "rabbitmq": {"amqp_url": broker},
        **yaml.safe_load(s3_server.section()),
    }
    path = tmp_path / "hosts.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_the_work_is_spread_over_the_hosts(config: Path, hosts: list[Host]) -> None:
    y = polarmap.coded_map(lambda block: block @ WIDE, A, blocks=6, tasks=8, executor=config, timeout=60)
    np.testing.assert_allclose(y.concatenate(), A @ WIDE, rtol=1e-9, atol=1e-9)
    assert y.report.executor == "lithops/singularity"


def test_a_host_that_dies_is_an_erasure(config: Path, hosts: list[Host], tmp_path: Path) -> None:
    # Two tasks reveal the machine they run on, which is then killed, so that they never report again.
    marks = tmp_path / "marks"
    marks.mkdir()

    def f(block: np.ndarray) -> np.ndarray:
        if block[0, 0] in doomed:
            (marks / str(os.getppid())).touch()
            while True:
                time.sleep(60)
        return block @ WIDE

    doomed = {A[120, 0], A[480, 0]}
    killer = threading.Thread(target=kill_marked, args=(marks, hosts, 2))
    killer.start()
    y = polarmap.coded_map(f, A, blocks=6, tasks=8, executor=config, timeout=60, verify=False)
    killer.join()
    np.testing.assert_allclose(y.concatenate(), A @ WIDE, rtol=1e-9, atol=1e-9)
    assert y.report.recovered == (1, 4)
    assert [y.report.tasks[task].state for task in (1, 4)] == ["abandoned", "abandoned"]


def kill_marked(marks: Path, hosts: list[Host], count: int) -> None:
    """Kill the machines whose process has left a mark."""
    deadline = time.monotonic() + 60
    while len(marked := {int(path.name) for path in marks.iterdir()}) < count:
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)
    for host in hosts:
        if host.process.pid in marked:
            host.kill()


def test_a_map_without_any_host_left_times_out(config: Path, hosts: list[Host]) -> None:
    polarmap.coded_map(np.sum, A, blocks=6, tasks=8, executor=config, timeout=60)
    for host in hosts:
        host.kill()
    with pytest.raises(polarmap.errors.CodedTimeoutError, match="0 of 6 needed results arrived within 2 s"):
        polarmap.coded_map(np.sum, A, blocks=6, tasks=8, executor=config, timeout=2)
