"""Build worker images without Docker: a fake docker copies the build folder of Lithops."""

from __future__ import annotations

import importlib.util
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import MagicMock, patch

import pytest

# Client modules, which are replaced by mocks if not installed, since no test contacts a cloud.
CLIENTS = (
    "kubernetes", "kubernetes.config", "kubernetes.client", "kubernetes.client.rest",
    "httplib2", "google", "google.auth", "google.oauth2", "google.oauth2.id_token",
    "google.auth.transport", "google.auth.transport.requests", "google_auth_httplib2", "googleapiclient",
    "googleapiclient.discovery", "googleapiclient.errors", "azure", "azure.storage", "azure.storage.queue",
    "ibm_cloud_sdk_core", "ibm_code_engine_sdk", "ibm_code_engine_sdk.code_engine_v2",
)  # fmt: skip
DOCKER = '#!/bin/sh\nif [ "$1" = build ]; then cp -r . "$BUILT"; fi\n'


@contextmanager
def docker_that_copies(folder: Path) -> Iterator[Path]:
    """Yield the folder to which a fake docker copies the files that Docker would build the image from."""
    docker = folder / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER)
    docker.chmod(docker.stat().st_mode | stat.S_IXUSR)
    with pytest.MonkeyPatch.context() as context:
        context.setenv("PATH", f"{docker.parent}:/usr/bin:/bin")
        context.setenv("BUILT", str(folder / "built"))
        lacking = {name.partition(".")[0] for name in CLIENTS if not is_there(name)}
        absent = [name for name in CLIENTS if name.partition(".")[0] in lacking]
        with patch.dict(sys.modules, {name: MagicMock() for name in absent}):
            yield folder / "built"


def is_there(name: str) -> bool:
    """Return whether a module is installed. A namespace package such as `google` may be installed in part."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def unpacked(built: Path) -> tuple[Path, str]:
    """Return the folder of an image's programs, and the command that it runs."""
    (archive,) = built.glob("lithops*.zip")
    shutil.unpack_archive(archive, built / "app", "zip")
    return built / "app", re.findall("^CMD (.+)$", (built / "Dockerfile").read_text(), flags=re.M)[-1]
