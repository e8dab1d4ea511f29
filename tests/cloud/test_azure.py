"""Check Lithops' azure_functions and azure_storage on azurite, with the handler called as by Azure's host.

Azure's command line cannot be installed here, so the method that calls it to create the app is replaced.
Lithops hard-codes Azure's addresses, which both sides rewrite to azurite's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from emulators import (
    INSTANCES,
    VENVS,
    Image,
    deployed_mapped_and_removed,
    drops_its_connections,
    filled_in,
    listens,
    product_despite,
    running,
    system_tool,
)
from servers import S3Server, free_ports

from polarmap.cli import deploy
from polarmap.testing import Fault

pytest.importorskip("azure.storage.queue", reason="the cloud-test extra installs Azure's client libraries")

AZURITE = "azurite@3.35.0"
ACCOUNT, CONTAINER, HOSTS = "devstoreaccount1", "polarmap-test", 8
# The key of azurite's documented default account.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

# Run at the start of every process, to replace Azure's addresses by azurite's.
REWRITE = """
def rewrite():
    from azure.storage.blob import BlobServiceClient
    from azure.storage.queue import QueueServiceClient
    for client, kind, port in ((BlobServiceClient, "blob", {blob}), (QueueServiceClient, "queue", {queue})):
        def init(self, account_url, credential=None, original=client.__init__, kind=kind, port=port, **more):
            here = f"http://127.0.0.1:{{port}}/{account}"
            url = account_url.replace(f"https://{account}.{{kind}}.core.windows.net", here)
            original(self, url, credential, **more)
        client.__init__ = init
"""


class Azurite(NamedTuple):
    blob: int
    queue: int

    @property
    def connection(self) -> str:
        base = f"http://127.0.0.1:{{}}/{ACCOUNT}"
        return (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint={base.format(self.blob)};QueueEndpoint={base.format(self.queue)};"
        )


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    node, npm = system_tool("node", "nodejs"), system_tool("npm", "npm")
    program = VENVS / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "azurite.js"
    if not program.exists():
        program.parents[4].mkdir(parents=True, exist_ok=True)
        install = [npm, "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(VENVS / "azurite")]
        if subprocess.run([*install, AZURITE], capture_output=True).returncode:
            pytest.skip(f"npm cannot install {AZURITE}")
    folder = tmp_path_factory.mktemp("azurite")
    ports = free_ports(3)
    command: list[Any] = [node, program, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    for name, port in zip(("blob", "queue", "table"), ports):
        command += [f"--{name}Host", "127.0.0.1", f"--{name}Port", port]
    command += ["--location", folder]
    with running(command, folder / "log", lambda: all(map(listens, ports))):
        yield Azurite(*ports[:2])


class App:
    """The app that `az functionapp` would create: the published folder, run by several instances."""

    def __init__(self, azurite: Azurite, folder: Path, stack: ExitStack) -> None:
        self.azurite, self.folder, self._stack = azurite, folder, stack
        self.source = folder / "app"

    def create(self, backend: Any, runtime_name: str, memory: int, timeout: int) -> None:
        """Replace AzureFunctionAppBackend._create_function."""
        from lithops.serverless.backends.azure_functions import config

        name = backend._format_function_name(runtime_name)
        shutil.copytree(Path(config.BUILD_DIR) / name, self.source)
        for kind in (config.IN_QUEUE, config.OUT_QUEUE):
            backend._ensure_queue(backend._format_queue_name(name, kind))
        begin = (self.folder / "rewrite.py").read_text() + "\nimport sys; sys.path[:0] = [sys.argv[1] + "
        begin += "'/.python_packages/lib/site-packages']; rewrite()\nimport runpy; sys.argv[:1] = []\n"
        host = Path(__file__).with_name("azure_host.py")
        begin += f"sys.argv.insert(0, {str(host)!r}); runpy.run_path({str(host)!r}, run_name='__main__')"
        for number in range(HOSTS):
            home = self.folder / f"instance{number}"
            home.mkdir()
            env = {"TMPDIR": str(home), "HOME": str(home), "PYTHONPATH": ""}
            # -S excludes the client's packages, so that only the app's own are used.
            command = [sys.executable, "-S", "-c", begin, self.source, self.azurite.connection]
            self._stack.enter_context(running(command, home / "log", env=env, cwd=home))


@pytest.fixture(scope="module")
def deployed(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Build the runtime like `make runtime`, and provide config/azure_functions.yaml with values."""
    from azure.storage.blob import BlobServiceClient
    from azure.storage.queue import QueueServiceClient
    from lithops.serverless.backends.azure_functions.azure_functions import AzureFunctionAppBackend

    BlobServiceClient.from_connection_string(azurite.connection).create_container(CONTAINER)
    folder = tmp_path_factory.mktemp("azure")
    path = filled_in(
        "azure_functions",
        folder,
        azure={"resource_group": "polarmap", "region": "eastus"},
        azure_storage={
            "storage_bucket": CONTAINER, "storage_account_name": ACCOUNT, "storage_account_key": KEY
        },
    )  # fmt: skip
    text = REWRITE.format(blob=azurite.blob, queue=azurite.queue, account=ACCOUNT)
    (folder / "rewrite.py").write_text(text)
    space: dict[str, Any] = {}
    exec(text, space)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for client in (BlobServiceClient, QueueServiceClient):
            patch.setattr(client, "__init__", client.__init__)  # Restored at the end.
        space["rewrite"]()
        app = App(azurite, folder, stack)
        patch.setattr(AzureFunctionAppBackend, "_create_function", lambda *rest: app.create(*rest))
        deploy.build_runtime(path, "azure_functions")
        yield path


def test_container_apps_take_messages_from_a_queue(
    azurite: Azurite, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The app is what Lithops requests from `az`: replicas of the image with the queue in the environment.
    deployed_mapped_and_removed(
        "azure_containers", partial(container_apps, azurite), s3_server, tmp_path, monkeypatch
    )


def container_apps(azurite: Azurite, image: Image, patch: pytest.MonkeyPatch) -> None:
    from azure.storage.queue import QueueServiceClient
    from lithops.serverless.backends.azure_containers import azure_containers as module

    def az(self: Any, command: str, **_: Any) -> str:
        if "containerapp create" in command:
            spec = json.loads(Path(module.config.CA_JSON_LOCATION).read_text())["properties"]["template"]
            (container,) = spec["containers"]
            assert container["image"] == "registry/user/polarmap-worker:1"
            env = {one["name"]: one.get("value", azurite.connection) for one in container["env"]}
            for _ in range(min(INSTANCES, spec["scale"]["maxReplicas"])):
                image.start(**env)
        elif "containerapp delete" in command:
            image.removed.append("app")
        elif "containerapp show" in command:
            raise RuntimeError("there is no such app")
        return "here"

    queues = QueueServiceClient.from_connection_string(azurite.connection)
    patch.setattr(module, "QueueServiceClient", lambda **_: queues)
    patch.setattr(module.AzureContainerAppBackend, "_run_az_command", az)


def test_the_build_has_the_versions_of_this_process(deployed: Path) -> None:
    packages = deployed.parent / "app" / ".python_packages" / "lib" / "site-packages"
    assert (packages / f"numpy-{version('numpy')}.dist-info").is_dir()
    assert (packages / "lithops" / "version.py").is_file()
    assert not (packages / "polarmap").exists()


def test_a_small_map_does_not_wait_for_sleeping_workers(deployed: Path) -> None:
    report = str(product_despite({1: Fault("sleep", 600.0)}, deployed, tasks=7))
    assert "lithops/azure_functions" in report and "abandoned tasks" in report
    assert "cost at list prices: $" in report


def test_a_worker_drops_the_connections_that_it_inherits(deployed: Path, azurite: Azurite) -> None:
    drops_its_connections(deployed, azurite.blob)


def test_dead_workers_are_decoded(deployed: Path, azurite: Azurite) -> None:
    from azure.storage.blob import ContainerClient

    product_despite({1: Fault("exit", attempts=9), 4: Fault("kill", attempts=9)}, deployed)
    with ContainerClient.from_connection_string(azurite.connection, CONTAINER) as client:
        assert [name for name in client.list_blob_names() if name.startswith("polarmap/")] == []
