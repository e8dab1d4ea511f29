"""Check that a runtime is deployed with the client's versions, and refused before anything costs money."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from command_lines import Run
from lithops.serverless.backends.aws_lambda import config as aws
from lithops.standalone.utils import install_script_kwargs_from_config

from polarmap.cli import deploy
from polarmap.clouds.limits import BACKENDS
from polarmap.clouds.runtime_images import RUNTIME_IMAGES
from polarmap.errors import ExecutorError


def test_workers_get_the_versions_installed_here() -> None:
    wanted = deploy.read_requirements("gcp_functions")
    installed = {"numpy": "2.2.6", "lithops": "3.8.0", "cloudpickle": "3.1.0", "threadpoolctl": "3.8.0"}
    pinned = deploy.pin_requirements(wanted, installed)
    assert pinned[:4] == ["lithops==3.8.0", "numpy==2.2.6", "cloudpickle==3.1.0", "threadpoolctl==3.8.0"]
    assert pinned[4:] == ["google-cloud-storage", "google-cloud-pubsub"]


class Handler:
    """A fake of Lithops' compute handler that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.backend = SimpleNamespace(
            _format_function_name=lambda name, memory: f"{name}_{memory}",
            lambda_client=SimpleNamespace(
                put_function_event_invoke_config=lambda **asked: self.calls.append(("retries", asked))
            ),
        )

    def init(self) -> None:
        self.calls.append(("init",))

    def get_runtime_info(self) -> dict[str, Any]:
        return {"runtime_name": "worker", "runtime_memory": 1769, "runtime_timeout": 60}

    def get_runtime_key(self, name: str, memory: int, version: str) -> str:
        return f"{name}/{memory}/{version}"

    def deploy_runtime(self, *arguments: Any) -> dict[str, Any]:
        in_folder = Path("requirements.txt").read_text().split()
        self.calls.append((("deploy_runtime", *arguments), in_folder, aws.DEFAULT_REQUIREMENTS))
        return {}

    def put_runtime_meta(self, *arguments: Any) -> None:
        self.calls.append(("put_runtime_meta", *arguments))

    def delete_runtime(self, *arguments: Any) -> None:
        self.calls.append(("delete_runtime", *arguments))

    def clean(self, **options: Any) -> None:
        self.calls.append(("clean", options))

    def delete_runtime_meta(self, key: str) -> None:
        self.calls.append(("delete_runtime_meta", key))


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Handler:
    """Provide the fake that Lithops' executors of any configuration use."""
    fake = Handler()

    functions = SimpleNamespace(compute_handler=fake, internal_storage=fake)
    monkeypatch.setattr(deploy, "open_function_executor", lambda file: functions)
    monkeypatch.setattr(deploy, "close_function_executor", lambda functions: fake.calls.append(("end",)))
    return fake


def filled_in(folder: Path, backend: str) -> Path:
    file = folder / "cloud.yaml"
    file.write_text(f"lithops: {{backend: {backend}, storage: aws_s3}}\n")
    return file


@pytest.mark.parametrize(
    "backend", [name for name in BACKENDS if not RUNTIME_IMAGES[name].is_virtual_machine]
)
def test_undeploy_removes_only_the_deployed_runtime(handler: Handler, tmp_path: Path, backend: str) -> None:
    version = importlib.metadata.version("lithops")
    description = deploy.remove_runtime(filled_in(tmp_path, backend), backend)
    assert description == "worker (1769 MB)"
    # For code_engine, it would delete the project, too.
    everything = {"k8s": True, "aws_batch": True, "code_engine": False}
    jobs = [("clean", {"all": everything[backend]})] if backend in everything else []
    assert handler.calls == [
        ("delete_runtime", "worker", 1769, version),
        *jobs,
        ("delete_runtime_meta", f"worker/1769/{version}"),
        ("end",),
    ]


def test_builds_pin_the_installed_versions(
    handler: Handler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Lithops builds in the current folder, from its own default requirements.
    lithops_own = aws.DEFAULT_REQUIREMENTS
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(deploy, "MIN_LAMBDA_PYTHON_WITH_NEW_LIBC", (3, 0))
    filled_in(tmp_path, "aws_lambda")
    description = deploy.build_runtime(Path("cloud.yaml"), "aws_lambda")
    assert description == "worker (1769 MB, 60 s)"
    begun, (built, in_folder, of_lithops), *rest = handler.calls
    assert begun == ("init",)
    assert built == ("deploy_runtime", "worker", 1769, 60)
    assert f"numpy=={importlib.metadata.version('numpy')}" in in_folder
    assert of_lithops == in_folder
    key = f"worker/1769/{importlib.metadata.version('lithops')}"
    assert rest == [
        ("put_runtime_meta", key, {"runtime_timeout": 60}),
        ("retries", {"FunctionName": "worker_1769", "MaximumRetryAttempts": 0}),
        ("end",),
    ]
    assert (aws.DEFAULT_REQUIREMENTS, Path.cwd()) == (lithops_own, tmp_path)


def test_machines_are_removed_with_their_network(handler: Handler, tmp_path: Path) -> None:
    def none(*_: Any) -> None:
        raise AttributeError("Lithops' handler of machines has none")

    handler.delete_runtime = none  # type: ignore[method-assign]
    deploy.remove_runtime(filled_in(tmp_path, "azure_vms"), "azure_vms")
    assert handler.calls == [("clean", {"all": True}), ("end",)]


def test_an_error_of_the_cloud_is_one_line(handler: Handler, tmp_path: Path) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("no lambda:DeleteFunction")

    handler.delete_runtime = refuse  # type: ignore[method-assign]
    with pytest.raises(ExecutorError, match="aws_lambda was not removed: PermissionError: no lambda:Delete"):
        deploy.remove_runtime(filled_in(tmp_path, "aws_lambda"), "aws_lambda")
    assert handler.calls == [("end",)]


def test_undeployable_configurations_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"lithops": {"backend": "aws_lambda"}}
    monkeypatch.setattr(sys, "version_info", (3, 11, 0, "final", 0))
    monkeypatch.setattr(deploy, "version", lambda name: "2.4.6")
    with pytest.raises(
        ExecutorError, match=r"numpy 2\.4\.6 has no wheel: run polarmap here with Python 3\.12"
    ):
        deploy.check_deployable_config(config)
    assert deploy.check_deployable_config({"lithops": {"backend": "k8s"}})["numpy"] == "2.4.6"


def test_machines_must_install_the_installed_versions(handler: Handler, tmp_path: Path) -> None:
    file = filled_in(tmp_path, "aws_ec2")
    with pytest.raises(ExecutorError, match=r"installed here: extra_python_packages: \[numpy==") as refused:
        deploy.build_runtime(file, "aws_ec2")
    assert handler.calls == []
    file.write_text(
        f"{file.read_text()}standalone: {{{str(refused.value).partition('installed here: ')[2]}}}\n"
    )
    assert "numpy==" in install_script_kwargs_from_config(yaml.safe_load(file.read_text())["standalone"]).get(
        "extra_python_packages", ""
    )
    deploy.build_runtime(file, "aws_ec2")
    assert [call[0] for call in handler.calls][:2] == [("init"), (("deploy_runtime", "worker", 1769, 60))]


FILLED_IN = "lithops: {backend: aws_lambda, storage: aws_s3}\n"
HERE = "lithops: {backend: localhost, storage: minio}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "my.yaml"
    file.write_text(FILLED_IN)
    return file


def test_deploy_builds_the_recipe_of_the_package(
    polarmap: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def build(*arguments: object) -> str:
        called.append(arguments)
        return "worker (1769 MB, 60 s)"

    monkeypatch.setattr(deploy, "build_runtime", build)
    ran = polarmap("deploy", "aws_lambda", config)
    assert (ran.code, ran.out) == (0, "deployed worker (1769 MB, 60 s) to aws_lambda\n")
    assert called == [(config, "aws_lambda")]
    assert polarmap("deploy", "aws_lambda", config, "--json").json["runtime"] == "worker (1769 MB, 60 s)"


def test_undeploy_removes_what_was_deployed(
    polarmap: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "remove_runtime", lambda file, name: f"worker of {file}")
    ran = polarmap("undeploy", "aws_lambda", config)
    assert (ran.code, ran.out) == (0, f"removed worker of {config} from aws_lambda\n")


@pytest.mark.parametrize("command", ["deploy", "undeploy"])
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "mars",
            FILLED_IN,
            "no configuration template is named 'mars'; choose one of: aws_batch, aws_ec2, aws_lambda, ",
        ),
        ("k8s", FILLED_IN, "is for 'aws_lambda', not for 'k8s'"),
        ("localhost", FILLED_IN, "is for 'aws_lambda', not for 'localhost'"),
        *[
            (name, None, f"{name}.yaml' is a template. Copy it, and fill in these settings: ")
            for name in BACKENDS
        ],
        ("minio", None, "is a template. Copy it, and fill in these settings: minio.endpoint"),
    ],
)
def test_configurations_of_another_backend_are_rejected(
    polarmap: Run, config: Path, command: str, name: str, text: str | None, message: str
) -> None:
    ran = polarmap(command, name, *([] if text is None else [config]))
    assert (ran.code, ran.out) == (1, "")
    assert message in ran.err


def test_nothing_is_deployed_to_this_machine(polarmap: Run, config: Path) -> None:
    ran = polarmap("deploy", "localhost")
    assert ran.out == f"nothing to deploy: {sys.executable} can run the workers of localhost\n"
    config.write_text(HERE)
    assert polarmap("deploy", "minio", config).code == 0
    assert polarmap("undeploy", "minio", config).out == "nothing is ever deployed to minio\n"


def test_an_interpreter_that_lacks_a_package_is_refused(
    polarmap: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"lithops": "3.7.0"}.get(name, "99"))
    ran = polarmap("deploy", "localhost")
    assert ran.code == 1
    assert f"{sys.executable} cannot run workers of localhost: lithops: 3.7.0, polarmap needs" in ran.err
    assert ">=3.8" in ran.err
