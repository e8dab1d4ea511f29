"""Check Lithops' own aws_lambda backend on ministack: deploy, run, lose workers, delete.

Two parts of Lithops are replaced. `AWSLambdaBackend.invoke` posts to lambda.<region>.amazonaws.com and
ignores AWS_ENDPOINT_URL. The function that builds a layer may take 120 s, and boto3 calls it again after 60
s: on a busy machine, several calls would write to one folder, since the emulator's functions share a file
system.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import lithops
import numpy as np
import pytest
from emulators import VENVS, A, filled_in, measured_there, product_despite, running, tool_venv
from servers import free_ports

import polarmap
from polarmap.cli import deploy
from polarmap.errors import ExecutorError
from polarmap.testing import Fault

MINISTACK = "ministack==1.5.33"
BUCKET = "polarmap-test"
BUILD_SECONDS = 500  # Seconds that pip may take for the layer.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start ministack, set the environment for it, and provide its address."""
    tools = tool_venv("ministack", MINISTACK, "boto3")  # Every Lambda runtime has boto3.
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
        "PIP_CACHE_DIR": str(VENVS / "pip-cache"),
        "PIP_NO_COMPILE": "1",
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
    """Provide config/aws_lambda.yaml with values as from a user."""
    import boto3

    boto3.client("s3").create_bucket(Bucket=BUCKET)
    return filled_in(
        "aws_lambda",
        tmp_path_factory.mktemp("aws"),
        aws_lambda={"execution_role": "arn:aws:iam::000000000000:role/lithops"},
        aws_s3={"storage_bucket": BUCKET},
        aws={"region": "us-east-1"},
    )


class Redirected:
    """A botocore session that sends requests for Lambda to another address."""

    def __init__(self, session: Any, address: str) -> None:
        self._session, self._address = session, address

    def send(self, request: Any) -> Any:
        request.url = re.sub(r"^https://lambda\.[\w-]+\.amazonaws\.com", self._address, request.url)
        return self._session.send(request)


def patiently(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `BaseClient._make_api_call` that gives the layer-building function more time."""

    def patient(client: Any, operation: str, parameters: dict[str, Any]) -> Any:
        if operation == "CreateFunction" and "layer_builder" in parameters["FunctionName"]:
            parameters = {**parameters, "Timeout": BUILD_SECONDS}
        return call(client, operation, parameters)

    return patient


@pytest.fixture(scope="module")
def deployed(cloud: str, config: Path) -> Iterator[Path]:
    """Deploy the runtime like `polarmap deploy`, provide the configuration, and undeploy at the end."""
    from botocore.client import BaseClient
    from botocore.config import Config
    from lithops.serverless.backends.aws_lambda import aws_lambda

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Config.OPTION_DEFAULTS, "read_timeout", BUILD_SECONDS)
        patch.setattr(BaseClient, "_make_api_call", patiently(BaseClient._make_api_call))
        session = aws_lambda.URLLib3Session
        patch.setattr(aws_lambda, "URLLib3Session", lambda: Redirected(session(), cloud))
        # This machine does not run Amazon Linux 2.
        patch.setattr(deploy, "MIN_LAMBDA_PYTHON_WITH_NEW_LIBC", (3, 0))
        description = deploy.build_runtime(config, "aws_lambda")
        assert "(1769 MB, 180 s)" in description
        yield config
        assert len(runtimes(config)) == 1
        # After a slow response, boto3 repeats the deletion and fails.
        with contextlib.suppress(ExecutorError):
            deploy.remove_runtime(config, "aws_lambda")
        assert runtimes(config) == []


def runtimes(config: Path) -> list[Any]:
    """Return Lithops' deployed functions."""
    with lithops.FunctionExecutor(config_file=str(config), log_level=None) as executor:
        return list(executor.compute_handler.list_runtimes())


def keys() -> list[str]:
    import boto3

    listing = boto3.client("s3").list_objects_v2(Bucket=BUCKET)
    return [entry["Key"] for entry in listing.get("Contents", [])]


def test_the_layer_holds_the_versions_of_this_process(deployed: Path) -> None:
    import boto3

    client = boto3.client("lambda")
    (function,) = client.list_functions()["Functions"]
    assert function["MemorySize"] == 1769
    retries = client.get_function_event_invoke_config(FunctionName=function["FunctionName"])
    assert retries["MaximumRetryAttempts"] == 0
    answer = client.invoke(FunctionName=function["FunctionName"], Payload=json.dumps({"get_metadata": {}}))
    metadata = json.loads(answer["Payload"].read())
    assert metadata["lithops_version"] == lithops.__version__
    assert metadata["python_version"] == f"{sys.version_info[0]}.{sys.version_info[1]}"


def test_a_small_map_does_not_wait_for_sleeping_workers(deployed: Path) -> None:
    report = str(product_despite({1: Fault("sleep", 600.0)}, deployed, tasks=7))
    assert "lithops/aws_lambda" in report and "abandoned tasks" in report
    assert "cost at list prices: $" in report


def test_run_times_are_measured_on_the_cloud(deployed: Path, tmp_path: Path) -> None:
    assert "4 tasks of 0.05 s on lithops/aws_lambda, in a first map" in measured_there(deployed, tmp_path)


def test_sleeping_and_killed_workers_are_decoded(deployed: Path) -> None:
    faults = {1: Fault("sleep", 600), 4: Fault("kill", attempts=9)}  # The sleep is longer than the timeout.
    report = product_despite(faults, deployed, timeout=170)
    assert report.tasks[1].state == "abandoned"
    assert [key for key in keys() if key.startswith("polarmap/")] == []


def test_an_executor_of_the_caller_and_its_exceptions(deployed: Path) -> None:
    ones = np.ones(300)

    def broken(block: np.ndarray) -> np.ndarray:
        raise ValueError("no such column")

    with lithops.FunctionExecutor(config_file=str(deployed), log_level=None) as executor:
        options = {"blocks": 4, "tasks": 6, "executor": executor, "timeout": 120}
        y = polarmap.coded_map(lambda block: block @ ones, A, **options)
        np.testing.assert_allclose(y.concatenate(), A @ ones, rtol=1e-9, atol=1e-9)
        with pytest.raises(ValueError, match="no such column"):
            polarmap.coded_map(broken, A, retries=0, **options)
