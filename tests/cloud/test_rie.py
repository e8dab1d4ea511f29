"""Run the zip that Lithops uploads under Amazon's own Lambda runtime: aws-lambda-rie and awslambdaric.

AWS ships the runtime interface emulator for trying functions locally. It serves one call at a time and only
synchronously, so calls wait in a queue here and are acknowledged immediately. Storage is SeaweedFS, used by
unmodified aws_s3.
"""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

import pytest
from emulators import filled_in, listens, product_despite, running, tool_venv
from servers import BUCKET, KEY, SECRET, S3Server, free_ports

from polarmap.cli import deploy
from polarmap.testing import Fault

SAM = "aws-sam-cli==1.170.0"  # The wheel contains aws-lambda-rie.
RUNTIME = "awslambdaric==4.2.2"


class Function:
    """A Lambda function with its answers and a queue of asynchronous calls."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/2015-03-31/functions/function/invocations"
        self._calls: Queue[bytes | None] = Queue()
        self.answers: list[Any] = []
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def call(self, payload: bytes) -> Any:
        with urlopen(Request(self._url, data=payload, method="POST"), timeout=60) as answer:
            return json.loads(answer.read())

    def send(self, request: Any) -> Any:
        """Replace the send method of Lithops' session: queue an asynchronous call."""
        self._calls.put(request.body if isinstance(request.body, bytes) else request.body.encode())
        return SimpleNamespace(status_code=202, headers={"x-amzn-RequestId": "1"}, text="")

    def _work(self) -> None:
        while (payload := self._calls.get()) is not None:
            self.answers.append(self.call(payload))

    def close(self) -> None:
        self._calls.put(None)
        self._thread.join(60)


@pytest.fixture(scope="module")
def function(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    """Start Lithops' handler from a folder, with a layer of the recipe's requirements."""
    from lithops.serverless.backends.aws_lambda.aws_lambda import AWSLambdaBackend

    sam = tool_venv("aws-sam-cli", "--no-deps", SAM).parent
    emulator = next(sam.rglob("samcli/local/rapid/aws-lambda-rie-x86_64"))
    wanted = deploy.read_requirements("aws_lambda")
    installed = {name: version(name) for name in ("lithops", "numpy", "cloudpickle")}
    tools = tool_venv("lambda-layer", RUNTIME, "boto3", *deploy.pin_requirements(wanted, installed))
    folder = tmp_path_factory.mktemp("rie")
    task = folder / "task"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        zipfile.ZipFile(io.BytesIO(AWSLambdaBackend._create_handler_bin())).extractall(task)
    port, inner = free_ports(2)
    env = {
        **credentials(s3_server), "PYTHONPATH": "", "TMPDIR": str(folder), "HOME": str(folder),
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769", "AWS_LAMBDA_FUNCTION_TIMEOUT": "180",
        "LAMBDA_TASK_ROOT": str(task),
    }  # fmt: skip
    command = [
        emulator, "--runtime-interface-emulator-address", f"127.0.0.1:{port}",
        "--runtime-api-address", f"127.0.0.1:{inner}",
        tools / "python", "-m", "awslambdaric", "entry_point.lambda_handler",
    ]  # fmt: skip
    emulator.chmod(0o755)
    with running(command, folder / "log", lambda: listens(port), env, task):
        one = Function(port)
        yield one
        one.close()


def credentials(server: S3Server) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": server.endpoint,
    }


@pytest.fixture
def config(function: Function, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide config/aws_lambda.yaml for the function, which counts as deployed."""
    from lithops.serverless.backends.aws_lambda import aws_lambda

    for name, value in credentials(s3_server).items():
        monkeypatch.setenv(name, value)
    metadata = function.call(json.dumps({"get_metadata": {}}).encode())
    monkeypatch.setattr(aws_lambda, "URLLib3Session", lambda: function)
    monkeypatch.setattr(aws_lambda.AWSLambdaBackend, "deploy_runtime", lambda *_, **__: dict(metadata))
    role = "arn:aws:iam::000000000000:role/worker"
    return filled_in(
        "aws_lambda",
        tmp_path,
        aws={"region": "us-east-1"},
        aws_lambda={"execution_role": role, "account_id": "0", "user_id": "AAAA"},
        aws_s3={"storage_bucket": BUCKET},
    )


def test_the_runtime_answers_with_the_versions_of_this_process(function: Function) -> None:
    import lithops

    metadata = function.call(json.dumps({"get_metadata": {}}).encode())
    assert metadata["lithops_version"] == lithops.__version__
    assert ["numpy", True] in metadata["preinstalls"]
    assert not [name for name, _ in metadata["preinstalls"] if name == "polarmap"]


def test_a_coded_map_with_a_worker_that_is_killed(function: Function, config: Path) -> None:
    report = product_despite({1: Fault("kill", attempts=9)}, config, blocks=3, tasks=4)
    assert report.executor == "lithops/aws_lambda"
    assert {"Execution": "Finished"} in function.answers
