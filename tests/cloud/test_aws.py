"""Lithops' own aws_lambda backend against ministack: deploy, run, lose workers, delete.

Nothing of Lithops is replaced but one host name: `AWSLambdaBackend.invoke` posts to
lambda.<region>.amazonaws.com whatever AWS_ENDPOINT_URL says.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import yaml
from servers import ROOT, free_ports, running, tool_venv

import polarmap
from polarmap import Fault, FaultyExecutor

MINISTACK = "ministack==1.5.33"
BUCKET = "polarmap-test"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}
A = np.random.default_rng(0).standard_normal((720, 300))
WIDE = np.random.default_rng(1).standard_normal((300, 120))


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """ministack's address, in this process's environment too."""
    tools = tool_venv("ministack", MINISTACK, "boto3")  # as in every Lambda
    folder = tmp_path_factory.mktemp("ministack")
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    env = {
        **CREDENTIALS,
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "TMPDIR": str(folder),
    }
    with (
        running([tools / "ministack"], folder / "log", lambda: answers(address), env, folder),
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": address}.items():
            patch.setenv(name, value)
        yield address


def answers(address: str) -> bool:
    try:
        return urlopen(f"{address}/_ministack/health", timeout=1).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def config(cloud: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config/aws_lambda.yaml as a user fills it in."""
    import boto3

    boto3.client("s3").create_bucket(Bucket=BUCKET)
    settings = yaml.safe_load((ROOT / "config" / "aws_lambda.yaml").read_text())
    settings["aws_lambda"]["execution_role"] = "arn:aws:iam::000000000000:role/lithops"
    settings["aws_s3"]["storage_bucket"] = BUCKET
    settings["aws"]["region"] = "us-east-1"
    settings["lithops"]["monitoring_interval"] = 0.05
    path = tmp_path_factory.mktemp("aws") / "aws_lambda.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


class Redirected:
    """A botocore session that sends what is meant for one host to another."""

    def __init__(self, session: Any, host: str, address: str) -> None:
        self._session, self._host, self._address = session, f"https://{host}", address

    def send(self, request: Any) -> Any:
        request.url = request.url.replace(self._host, self._address)
        return self._session.send(request)


@pytest.fixture(scope="module")
def functions(cloud: str, config: Path) -> Iterator[Any]:
    """A FunctionExecutor of the user, its runtime deployed by the first call and deleted at the end."""
    import lithops

    with lithops.FunctionExecutor(config_file=str(config), log_level=None) as executor:
        backend = executor.compute_handler.backend
        backend.session = Redirected(backend.session, backend.host, cloud)
        yield executor
    backend.clean()
    assert backend.list_runtimes() == []


def keys() -> list[str]:
    import boto3

    listing = boto3.client("s3").list_objects_v2(Bucket=BUCKET)
    return [entry["Key"] for entry in listing.get("Contents", [])]


def test_deploy_then_map_without_and_with_misfortunes(functions: Any) -> None:
    """The first call deploys; then sleepers and a killed worker cost nothing but their own blocks."""
    first = polarmap.coded_map(
        lambda block: block @ WIDE, A, blocks=6, workers=8, executor=functions, timeout=300
    )
    np.testing.assert_allclose(first.concatenate(), A @ WIDE, rtol=1e-9, atol=1e-9)
    faults = {1: Fault("sleep", 60), 4: Fault("kill", attempts=9)}
    began = time.monotonic()
    second = polarmap.coded_map(
        lambda block: block @ WIDE, A, blocks=6, workers=8, timeout=120, verify=False,
        executor=FaultyExecutor(functions, faults),
    )  # fmt: skip
    assert time.monotonic() - began < 50
    np.testing.assert_allclose(second.concatenate(), A @ WIDE, rtol=1e-9, atol=1e-9)
    assert second.report.recovered == (1, 4)
    assert second.report.tasks[1].state == "abandoned"
    assert [key for key in keys() if key.startswith("polarmap/")] == []


def test_small_results_and_exceptions(functions: Any) -> None:
    ones = np.ones(300)
    y = polarmap.coded_map(
        lambda block: block @ ones, A, blocks=4, workers=6, executor=functions, timeout=120
    )
    np.testing.assert_allclose(y.concatenate(), A @ ones, rtol=1e-9, atol=1e-9)

    def broken(block: np.ndarray) -> np.ndarray:
        raise ValueError("no such column")

    with pytest.raises(polarmap.errors.NotDecodableError, match="no such column"):
        polarmap.coded_map(broken, A, blocks=4, workers=6, executor=functions, timeout=120, retries=0)
