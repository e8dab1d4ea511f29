"""Check Lithops configurations that are templates, invalid, or need a missing library."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import polarmap
from polarmap.cli import deploy
from polarmap.clouds import lithops_config
from polarmap.errors import ExecutorError

ROOT = Path(__file__).resolve().parents[2]


def test_coded_map_refuses_a_template_too() -> None:
    with pytest.raises(
        ExecutorError, match=r"(?s)is a template. Copy it, and fill in.*aws_lambda\.execution_role: <arn"
    ):
        polarmap.coded_map(len, [[1.0], [2.0]], executor=ROOT / "config" / "aws_lambda.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "the Lithops configuration .* does not exist"),
        ("lithops: [", "is not YAML"),
        ("- lithops", "is not a Lithops configuration, which is a mapping"),
        ("Lithops: {backend: k8s}", "Lithops ignores the section 'Lithops': name it 'lithops'"),
        ("lithops: {backend: k8s}", "is for 'k8s', not for 'aws_lambda'"),
        ("lithops: aws_lambda", "the section 'lithops' must be a mapping, not a str"),
        ("aws_lambda: [secret]", "the section 'aws_lambda' must be a mapping, not a list$"),
        ("lithops: {storage: minio}\nminio: key", "the section 'minio' must be a mapping"),
        (
            "aws_lambda: {vpc: {subnets: [a, <subnet>]}}",
            r"\n  aws_lambda\.vpc\.subnets\.1: <subnet>",
        ),
    ],
)
def test_unusable_configurations(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ExecutorError, match=message):
        lithops_config.read_config_for_backend(path, "aws_lambda")


def test_a_configuration_that_names_no_backend_is_for_lambda(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    assert lithops_config.read_config_for_backend(tmp_path / "config.yaml", "aws_lambda") == {}


@pytest.mark.parametrize(
    ("backend", "storage", "wanted"),
    [
        ("code_engine", "ibm_cos", ["ibm"]),
        ("code_engine", "aws_s3", ["ibm", "aws"]),
        ("gcp_cloudrun", "gcp_storage", ["gcp"]),
        ("azure_vms", "azure_storage", ["azure"]),
        ("localhost", "aws_s3", ["aws"]),
        ("oracle_f", "aws_s3", []),  # polarmap does not know the client library of this backend.
    ],
)
def test_the_hint_names_the_extras_of_backend_and_storage(
    backend: str, storage: str, wanted: list[str]
) -> None:
    config = {"lithops": {"backend": backend, "storage": storage}}
    hint = lithops_config.make_missing_client_hint(
        config, ModuleNotFoundError("No module named 'some_client'")
    )
    assert [one for one in ("ibm", "aws", "gcp", "azure") if f"lithops[{one}]" in hint] == wanted


def test_a_missing_client_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "k8s.yaml"
    path.write_text("lithops: {backend: k8s, storage: localhost}\nk8s: {runtime: a/b/c}\n")
    # The import fails as if the package were not installed.
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(ExecutorError, match=r"kubernetes.*pip install .*'lithops\[kubernetes\]<3\.9,>=3\.8'"):
        polarmap.coded_map(len, [[1.0], [2.0]], executor=path)
    with pytest.raises(ExecutorError, match=r"kubernetes.*pip install .*'lithops\[kubernetes\]<3\.9,>=3\.8'"):
        deploy.build_runtime(path, "k8s")
