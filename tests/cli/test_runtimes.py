"""`polarmap deploy` and `polarmap undeploy`: for clouds by Lithops, here by looking at this interpreter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command_lines import ROOT, Run

from polarmap.cli import runtimes
from polarmap.clouds.limits import BACKENDS

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

    def deploy(*arguments: object) -> str:
        called.append(arguments)
        return "worker (1769 MB, 60 s)"

    monkeypatch.setattr(runtimes.runtimes, "deploy", deploy)
    ran = polarmap("deploy", "aws_lambda", config)
    assert (ran.code, ran.out) == (0, "deployed worker (1769 MB, 60 s) to aws_lambda\n")
    assert called == [(str(config), "aws_lambda", ROOT / "backends" / "aws_lambda")]
    assert polarmap("deploy", "aws_lambda", config, "--json").json["runtime"] == "worker (1769 MB, 60 s)"


def test_undeploy_removes_what_was_deployed(
    polarmap: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes.runtimes, "undeploy", lambda file, name: f"worker of {file}")
    ran = polarmap("undeploy", "aws_lambda", config)
    assert (ran.code, ran.out) == (0, f"removed worker of {config} from aws_lambda\n")


@pytest.mark.parametrize("command", ["deploy", "undeploy"])
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mars", FILLED_IN, "there is no configuration 'mars'; there are: aws_lambda"),
        ("k8s", FILLED_IN, "is for 'aws_lambda', not for 'k8s'"),
        ("localhost", FILLED_IN, "is for 'aws_lambda', not for 'localhost'"),
        *[(name, None, f"{name}.yaml' is a template: copy it and fill in ") for name in BACKENDS],
        ("minio", None, "is a template: copy it and fill in minio.endpoint"),
    ],
)
def test_what_does_not_fit_is_refused(
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
