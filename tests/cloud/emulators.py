"""Servers and tools of the cloud tests: installed separately, started on loopback, stopped by process id.

The checks that all clouds share are here, too: a filled-in configuration, and a product with dead workers.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from click.testing import CliRunner
from container_images import docker_that_copies, unpacked
from servers import BUCKET, KEY, SECRET, S3Server

import polarmap
from polarmap.cli import deploy
from polarmap.cli.doctor import doctor_command
from polarmap.cli.measure import measure_command
from polarmap.executors.lithops_invocations import open_lithops_storage
from polarmap.testing import Fault, FaultyExecutor
from polarmap.types import Report
from polarmap.worker.segments import drop_inherited_connections

ROOT = Path(__file__).resolve().parents[2]
VENVS = Path(os.environ.get("POLARMAP_CLOUD_VENVS", ROOT / ".venv" / "cloud"))
PATIENCE = 90.0
INSTANCES = 4  # Processes of an image.

A = np.random.default_rng(0).standard_normal((720, 300))
WIDE = np.random.default_rng(1).standard_normal((300, 120))


def tool_venv(name: str, *requirements: str) -> Path:
    """Return the bin folder of a virtual environment with these packages, created once and kept.

    Emulators pin versions that would conflict with the client. Skip the test if packages cannot be installed.
    """
    folder = VENVS / name
    stamp = folder / "requirements"
    if not stamp.exists() or stamp.read_text().split() != list(requirements):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        done = subprocess.run(
            [*pip, "--disable-pip-version-check", *requirements], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"cannot install {', '.join(requirements)}: {done.stderr.strip()[-300:]}")
        stamp.write_text("\n".join(requirements))
    return folder / "bin"


def system_tool(name: str, package: str) -> str:
    """Return the path of a program of this system. Skip the test if its Debian package is not installed."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install --no-install-recommends {package})")
    return path


def debian_folder(package: str, needed: str) -> Path:
    """Return the folder into which a Debian package was unpacked, without being installed.

    This needs apt, but no root rights and no package lists. Skip the test if the package cannot be
    downloaded.

    Parameters
    ----------
    needed : str
        A pattern of the names of packages to unpack, among `package` and all its dependencies.
    """
    folder = VENVS / package
    root, stamp, state = folder / "root", folder / "unpacked", folder / "apt"
    if stamp.exists():
        return root
    shutil.rmtree(folder, ignore_errors=True)
    (state / "lists" / "partial").mkdir(parents=True)
    root.mkdir()
    options = [f"Dir::State={state}", f"Dir::Cache={state}", "Dir::State::status=/dev/null"]
    options += [f"APT::Sandbox::User={getpass.getuser()}"]
    apt = ["apt-get", *(f"--option={one}" for one in options)]
    try:
        _output([*apt, "update"], state)
        plan = _output([*apt, "install", "--simulate", "--no-install-recommends", package], state)
        names = re.findall(rf"^Inst ({needed}) ", plan, re.MULTILINE)
        _output([*apt, "download", *names], state)
        for file in state.glob("*.deb"):
            _output(["dpkg-deb", "--extract", str(file), str(root)], state)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, "stderr", "") or error).strip()[-300:]
        pytest.skip(f"cannot download {package} (Debian: apt-get install {package}): {reason}")
    shutil.rmtree(state)
    stamp.touch()
    return root


def _output(command: Sequence[str], folder: Path) -> str:
    """Return the output of a command run in a folder. Raise CalledProcessError if it fails."""
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    ready: Callable[[], bool] = lambda: True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a new process group and yield it once `ready()`; kill the group at the end."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})}, cwd=cwd, start_new_session=True,
        )  # fmt: skip
        try:
            wait_until(ready, process, log)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Poll until `ready()` is true. Fail the test if the process ends or PATIENCE seconds pass."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        assert time.monotonic() < deadline, f"no answer in {PATIENCE:g} s; see {log}"
        time.sleep(0.05)


def listens(port: int) -> bool:
    """Return whether a server accepts connections on this port."""
    with socket.socket() as one:
        one.settimeout(0.5)
        return one.connect_ex(("127.0.0.1", port)) == 0


def filled_in(name: str, folder: Path, **sections: dict[str, Any]) -> Path:
    """Copy a configuration of config/ with these values, as a user would fill it in."""
    settings = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    for section, values in sections.items():
        settings[section] |= values
    settings["lithops"]["monitoring_interval"] = 0.05
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def product_despite(faults: Mapping[int, Fault], config: Path, **options: Any) -> Report:
    """Check a coded product with these faults, which decodes the faulty tasks; return its report.

    There are as many faulty workers as parity blocks: with more parity, a block that is merely late, as on a
    busy machine, might be decoded instead.
    """
    options = {"blocks": 6, "tasks": 8, "timeout": 300, "verify": False} | options
    assert options["tasks"] - options["blocks"] == len(faults)
    y = polarmap.coded_map(lambda block: block @ WIDE, A, executor=FaultyExecutor(config, faults), **options)
    np.testing.assert_allclose(y.concatenate(), A @ WIDE, rtol=1e-9, atol=1e-9)
    assert y.report.recovered == tuple(faults)
    return y.report


def drops_its_connections(config: Path, port: int) -> None:
    """Assert that a worker closes the connections it inherits to the storage on this port."""
    own = psutil.Process().net_connections
    earlier = {one.laddr for one in own("tcp")}

    def opened() -> set[Any]:
        return {one.laddr for one in own("tcp") if one.raddr and one.raddr.port == port} - earlier

    storage = open_lithops_storage(config)
    storage.list_keys(storage.bucket, "polarmap/")
    inherited = opened()
    drop_inherited_connections(storage)
    assert inherited and not inherited & opened()
    storage.list_keys(storage.bucket, "polarmap/")


def measured_there(config: Path, folder: Path) -> str:
    """Run `polarmap measure`, check that `polarmap plan` accepts its file, and return its output."""
    file = folder / "times.json"
    options = ["--tasks", "4", "--seconds", "0.05", "--timeout", "120", "--out", str(file)]
    ran = CliRunner().invoke(measure_command, [str(config), *options])
    assert ran.exit_code == 0, ran.output
    times = json.loads(file.read_text())
    assert all(len(times[name]) == 4 and min(times[name]) > 0.01 for name in ("cold", "warm"))
    assert polarmap.plan(3, file, max_workers=6).n >= 3
    return str(ran.output)


class Image:
    """A built image, and the processes that run it."""

    def __init__(self, name: str, folder: Path, stack: contextlib.ExitStack) -> None:
        self.name, self.folder, self._stack = name, folder, stack
        self.ran: list[subprocess.Popen[bytes]] = []
        self.removed: list[str] = []

    def start(self, ready: Callable[[], bool] = lambda: True, **env: str) -> subprocess.Popen[bytes]:
        built = self.folder / "built"
        app, command = unpacked(built) if not (built / "app").exists() else (built / "app", self.command)
        self.command = command
        packages = (built / "requirements.txt").read_text().split()
        tools = tool_venv(f"image-{self.name}", *packages, "boto3")
        program, *arguments = command.split()
        home = self.folder / f"home-{len(self.ran)}"
        home.mkdir()
        env |= {"PYTHONPATH": "", "HOME": str(home), "TMPDIR": str(home)}
        context = running([tools / program, *arguments], home / "log", ready, env, app)
        self.ran.append(self._stack.enter_context(context))
        return self.ran[-1]


def filled_in_for_image(name: str, folder: Path, server: S3Server) -> Path:
    """Return the recipe's configuration with a storage on this machine."""
    key = folder / "key.json"
    key.write_text("{}")
    config = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    text = json.dumps(config).replace(
        "<registry/user/polarmap-worker:tag>", "registry/user/polarmap-worker:1"
    )
    for placeholder in {part.split(">")[0] for part in text.split("<")[1:]}:
        text = text.replace(f"<{placeholder}>", "filled")
    config = json.loads(text)
    config["lithops"] |= {"storage": "minio", "monitoring_interval": 0.05}
    config["minio"] = {
        "endpoint": server.endpoint, "storage_bucket": BUCKET, "access_key_id": KEY,
        "secret_access_key": SECRET,
    }  # fmt: skip
    config[name] |= {"account_id": "0", "user_id": "AAAA", "credentials_path": str(key)}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def deployed_mapped_and_removed(
    name: str,
    cloud: Callable[[Image, pytest.MonkeyPatch], None],
    server: S3Server,
    folder: Path,
    patch: pytest.MonkeyPatch,
) -> None:
    """Deploy an image, run a map with a killed worker on it, and remove the image again."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(docker_that_copies(folder))
        image = Image(name, folder, stack)
        cloud(image, patch)
        config = filled_in_for_image(name, folder, server)
        assert "MB" in deploy.build_runtime(config, name)
        report = product_despite({1: Fault("kill", attempts=9)}, config, blocks=3, tasks=4)
        assert report.executor == f"lithops/{name}"
        assert len(image.ran) >= INSTANCES
        examined = CliRunner().invoke(doctor_command, ["--config", str(config), "--timeout", "100"])
        assert examined.exit_code == 0, examined.output
        deploy.remove_runtime(config, name)
        assert image.removed
    assert not [one for one in image.ran if one.poll() is None]
