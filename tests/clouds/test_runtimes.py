"""What workers run in: that Lithops builds each image of what the recipe and Lithops itself bring."""

from __future__ import annotations

import re
import shutil
import stat
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import yaml

from polarmap.cli import deploy
from polarmap.clouds.limits import BACKENDS
from polarmap.clouds.runtimes import RUNTIMES

ROOT = Path(__file__).resolve().parents[2]
IMAGES = sorted(name for name, runtime in RUNTIMES.items() if runtime.archive)
# Modules of clients that are not installed here, of which building takes nothing.
CLIENTS = (
    "kubernetes", "kubernetes.config", "kubernetes.client", "kubernetes.client.rest",
    "httplib2", "google", "google.auth", "google.oauth2", "google.oauth2.id_token",
    "google.auth.transport", "google.auth.transport.requests", "google_auth_httplib2", "googleapiclient",
    "googleapiclient.discovery", "googleapiclient.errors", "azure", "azure.storage", "azure.storage.queue",
    "ibm_cloud_sdk_core", "ibm_code_engine_sdk", "ibm_code_engine_sdk.code_engine_v2",
)  # fmt: skip
DOCKER = '#!/bin/sh\nif [ "$1" = build ]; then cp -r . "$BUILT"; fi\n'


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a docker of ours leaves what Docker would have been given to build of."""
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER)
    docker.chmod(docker.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{docker.parent}:/usr/bin:/bin")
    monkeypatch.setenv("BUILT", str(tmp_path / "built"))
    with patch.dict(sys.modules, {name: MagicMock() for name in CLIENTS}):
        yield tmp_path / "built"


def backend_of_lithops(name: str, folder: Path) -> Any:
    """Lithops' own, as far as building goes: it has asked no cloud anything."""
    module = import_module(f"lithops.serverless.backends.{name}")
    backend = object.__new__(module.ServerlessBackend)
    key = folder / "key.json"
    key.write_text("{}")
    vars(backend).update(k8s_config={}, cr_config={}, ac_config={}, config={})
    vars(backend).update(account_id="1", region="here", package="lithops_v380_abcd", project_name="project")
    vars(backend).update(credentials_path=str(key), ecr_client=MagicMock(), _ar_resource=MagicMock())
    ecr_answer = {"ResponseMetadata": {"HTTPStatusCode": 200}, "authorizationData": []}
    ecr_answer["authorizationData"] = [{"authorizationToken": "QVdTOnRva2Vu"}]
    backend.ecr_client.get_authorization_token.return_value = ecr_answer
    backend._resolve_runtime_arch = lambda: "amd64"
    backend._ensure_artifact_registry_upload_permission = lambda image: None
    return backend


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_has_lithops_code_and_our_packages(
    name: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the Dockerfile copies is there, wherever Lithops' module was imported."""
    monkeypatch.chdir(tmp_path)
    backend = backend_of_lithops(name, tmp_path)
    wanted = deploy.requirements_of(name)
    with (
        deploy._build_folder(name, wanted) as folder,
        deploy._settings_of_lithops(name, wanted, folder),
    ):
        backend.build_runtime("polarmap-worker:latest", "Dockerfile", [])
    text = (built / "Dockerfile").read_text()
    assert text.startswith("#") and f"FROM python:{sys.version_info[0]}.{sys.version_info[1]}-slim\n" in text
    copied = [line.split()[1] for line in text.splitlines() if line.startswith("COPY")]
    assert all((built / file).is_file() for file in copied) and len(copied) == 2
    assert (built / "requirements.txt").read_text().split() == wanted
    assert not list(tmp_path.glob("*.zip"))
    shutil.unpack_archive(built / RUNTIMES[name].archive, built / "app", "zip")
    command = re.findall("^CMD (.+)$", text, flags=re.M)[-1]
    script = command.split()[-1].partition(":")[0].removesuffix(".py")
    source = (built / "app" / f"{script}.py").read_text()
    assert (":proxy" not in command) or "proxy = flask.Flask" in source


@pytest.mark.parametrize("name", IMAGES)
def test_what_an_entry_point_imports_is_in_its_image(name: str) -> None:
    import lithops

    source = Path(lithops.__file__).parent / "serverless" / "backends" / name / "entry_point.py"
    imported = set(
        re.findall(r"^(?:from|import) (flask|azure\.storage\.\w+)", source.read_text(), flags=re.M)
    )
    assert {one.replace(".", "-") for one in imported} <= set(RUNTIMES[name].packages)


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_lithops_calls_the_backend_as_the_table_does(name: str) -> None:
    from lithops.constants import SERVERLESS_BACKENDS, STANDALONE_BACKENDS

    assert name in (STANDALONE_BACKENDS if RUNTIMES[name].is_machine else SERVERLESS_BACKENDS)
    config = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    assert ("runtime" in config[name]) == bool(RUNTIMES[name].archive)
