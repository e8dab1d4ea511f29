"""Check that Lithops builds each worker image from the recipe's and Lithops' own requirements."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml
from container_images import docker_that_copies, unpacked

from polarmap.cli import deploy
from polarmap.clouds.limits import BACKENDS
from polarmap.clouds.runtime_images import RUNTIME_IMAGES

ROOT = Path(__file__).resolve().parents[2]
IMAGES = sorted(name for name, runtime in RUNTIME_IMAGES.items() if runtime.lithops_archive)


@pytest.fixture
def built(tmp_path: Path) -> Iterator[Path]:
    with docker_that_copies(tmp_path) as folder:
        yield folder


def backend_of_lithops(name: str, folder: Path) -> Any:
    """Return Lithops' backend, prepared for building only, without contacting a cloud."""
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
def test_an_image_has_the_code_and_packages_it_needs(
    name: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backend = backend_of_lithops(name, tmp_path)
    wanted = deploy.read_requirements(name)
    with (
        deploy._make_build_folder(name, wanted) as folder,
        deploy._patch_lithops_defaults(name, wanted, folder),
    ):
        backend.build_runtime("polarmap-worker:latest", "Dockerfile", [])
    text = (built / "Dockerfile").read_text()
    assert text.startswith("#") and f"FROM python:{sys.version_info[0]}.{sys.version_info[1]}-slim\n" in text
    copied = [line.split()[1] for line in text.splitlines() if line.startswith("COPY")]
    assert all((built / file).is_file() for file in copied) and len(copied) == 2
    assert (built / "requirements.txt").read_text().split() == wanted
    assert not list(tmp_path.glob("*.zip"))
    app, command = unpacked(built)
    script = command.split()[-1].partition(":")[0].removesuffix(".py")
    source = (app / f"{script}.py").read_text()
    assert (":proxy" not in command) or "proxy = flask.Flask" in source


@pytest.mark.parametrize("name", IMAGES)
def test_imports_of_an_entry_point_are_in_its_image(name: str) -> None:
    import lithops

    source = Path(lithops.__file__).parent / "serverless" / "backends" / name / "entry_point.py"
    imported = set(
        re.findall(r"^(?:from|import) (flask|azure\.storage\.\w+)", source.read_text(), flags=re.M)
    )
    assert {one.replace(".", "-") for one in imported} <= set(RUNTIME_IMAGES[name].extra_packages)


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_the_kind_of_each_backend_agrees_with_lithops(name: str) -> None:
    from lithops.constants import SERVERLESS_BACKENDS, STANDALONE_BACKENDS

    assert name in (STANDALONE_BACKENDS if RUNTIME_IMAGES[name].is_virtual_machine else SERVERLESS_BACKENDS)
    config = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    assert ("runtime" in config[name]) == bool(RUNTIME_IMAGES[name].lithops_archive)
