"""Check config/ and backends/: Lithops accepts the templates, versions are pinned, policies are minimal."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import re
import runpy
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from polarmap.clouds import limits, lithops_config
from polarmap.clouds.runtime_images import RUNTIME_IMAGES

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = sorted(path.name for path in (ROOT / "backends").iterdir() if path.is_dir())
CLOUDS = sorted(limits.BACKENDS)
POLICIES = sorted(path for name in CLOUDS for path in (ROOT / "backends" / name).glob("*.json"))
ACCESS_KEY = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN|AccountKey=\w")


def template(backend: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "config" / f"{backend}.yaml").read_text())
    return config


def filled(part: Any) -> Any:
    """Return a template with every placeholder filled in."""
    if isinstance(part, dict):
        return {key: filled(value) for key, value in part.items()}
    if isinstance(part, list):
        return [filled(value) for value in part]
    return re.sub(r"<(https?://)?[^>]*>", r"\1filled", part) if isinstance(part, str) else part


@pytest.mark.parametrize("folder", ["config", "backends"])
def test_config_and_backends_contain_no_python(folder: str) -> None:
    assert list((ROOT / folder).rglob("*.py")) == []


def test_configs_and_backends_correspond() -> None:
    assert (
        sorted(path.stem for path in (ROOT / "config").glob("*.yaml")) == BACKENDS == sorted(RUNTIME_IMAGES)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_config_uses_the_backend_or_storage_in_its_name(backend: str) -> None:
    config = template(backend)
    assert backend in (config["lithops"]["backend"], config["lithops"]["storage"])
    assert backend in config


def test_worker_requirements_equal_those_of_setup_cfg() -> None:
    lines = (ROOT / "backends" / "requirements.txt").read_text().splitlines()
    pins = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    own_pins = {project(line): line for line in install_requires()}
    assert {own_pins[project(pin)] for pin in pins} == pins
    assert {"lithops", "numpy", "cloudpickle"} <= {project(pin) for pin in pins}
    assert own_pins.keys().isdisjoint(
        project(one) for runtime in RUNTIME_IMAGES.values() for one in runtime.extra_packages
    )


def project(requirement: str) -> str:
    return re.split(r"[<>=!~\[]", requirement)[0]


def test_installed_lithops_is_in_the_pinned_series() -> None:
    lowest, below = re.fullmatch(r"lithops>=(3\.\d+),<(3\.\d+)", lithops_pin()).groups()
    assert importlib.metadata.version("lithops").rpartition(".")[0] == lowest
    assert int(below[2:]) == int(lowest[2:]) + 1


def install_requires() -> set[str]:
    setup = ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    return set(setup["options"]["install_requires"].split())


def lithops_pin() -> str:
    return next(line for line in install_requires() if line.startswith("lithops"))


# --- clouds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", CLOUDS)
def test_lithops_accepts_the_configuration_once_filled_in(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.json").write_text("{}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    config = filled(template(backend))
    before = copy.deepcopy(config)
    place = "standalone" if RUNTIME_IMAGES[backend].is_virtual_machine else "serverless"
    lithops_reads(f"{place}/backends/{backend}", config)
    storage = config["lithops"]["storage"]
    lithops_reads(f"storage/backends/{storage}", config)
    for section in {
        backend,
        "standalone",
    } & before.keys():  # Lithops must neither clamp nor rename these settings.
        for key, value in before[section].items():
            assert config[section][key] == value or key == "runtime"
    assert config[storage]["storage_bucket"]
    worker = limits.parse_worker_spec(config)
    assert worker is not None and worker.max_workers is not None


def lithops_reads(place: str, config: dict[str, Any]) -> None:
    """Run Lithops' own check of a section, without the cloud's client library that its package imports."""
    import lithops

    runpy.run_path(str(Path(lithops.__file__).parent / place / "config.py"))["load_config"](config)


@pytest.mark.parametrize("backend", CLOUDS)
def test_the_configuration_is_a_template_and_holds_no_secret(backend: str) -> None:
    missing = dict(lithops_config.find_placeholders(template(backend)))
    assert any(key.endswith("storage_bucket") for key in missing)
    secrets = [key for key in flat(template(backend)) if re.search("secret|password|_key", key)]
    assert set(secrets) <= set(missing)
    assert not ACCESS_KEY.search((ROOT / "config" / f"{backend}.yaml").read_text())


def flat(config: dict[str, Any], above: str = "") -> list[str]:
    return [
        name
        for key, value in config.items()
        for name in (flat(value, f"{above}{key}.") if isinstance(value, dict) else [f"{above}{key}"])
    ]


@pytest.mark.parametrize("backend", CLOUDS)
def test_every_cloud_readme_has_costs_limits_deployment_and_removal(backend: str) -> None:
    text = (ROOT / "backends" / backend / "README.md").read_text()
    titles = re.findall("^## (.+)$", text, flags=re.M)
    assert titles[:2] == ["Costs", "Limits"] and titles[-2:] == ["Deploy and check", "Tear down"]
    for command in ("deploy", "undeploy"):  # The commands also work from a wheel.
        assert f"polarmap {command} {backend} my_" in text
    assert len(text.splitlines()) <= 110
    named = set(re.findall(r"\]\(([\w.-]+)\)", text))
    files = {path.name for path in (ROOT / "backends" / backend).iterdir()}
    assert files - {"README.md"} == named


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_policies_parse_and_grant_no_more_than_named(path: Path) -> None:
    text = path.read_text()
    policy = json.loads(text)
    for statement in policy.get("Statement", []):
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert all("*" not in action for action in actions)
        if statement.get("Resource") == "*":
            assert all(
                re.search(":(List|Describe|GetCallerIdentity|GetAuthorizationToken)", one) for one in actions
            )
    assert not {"*", "*/write", "*/read"} & set(policy.get("Actions", []))


def test_kubernetes_permissions_are_limited_to_one_namespace() -> None:
    objects = list(yaml.safe_load_all((ROOT / "backends" / "k8s" / "rbac.yaml").read_text()))
    assert {one["kind"] for one in objects} == {"Namespace", "ServiceAccount", "Role", "RoleBinding"}
    (role,) = (one for one in objects if one["kind"] == "Role")
    words = {
        word for rule in role["rules"] for word in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
    }
    assert "*" not in words and "secrets" not in words


@pytest.mark.parametrize(
    "backend", [path.parent.name for path in sorted((ROOT / "backends").glob("*/role.yaml"))]
)
def test_google_permissions_are_listed_one_by_one(backend: str) -> None:
    role = yaml.safe_load((ROOT / "backends" / backend / "role.yaml").read_text())
    assert role["includedPermissions"] == list(dict.fromkeys(role["includedPermissions"]))
    assert all(re.fullmatch(r"[a-z]+\.[a-zA-Z]+\.[a-zA-Z]+", one) for one in role["includedPermissions"])
    assert not [one for one in role["includedPermissions"] if one.startswith(("iam.", "storage."))]


# Calls of Lithops for features that no recipe uses: machine images, spot markets, disabled options.
NOT_ASKED_FOR = {
    "ec2:AllocateAddress", "ec2:CreateNatGateway", "ec2:DeleteNatGateway", "ec2:CreateImage",
    "ec2:DeregisterImage", "ec2:RequestSpotInstances", "ec2:CancelSpotInstanceRequests",
    "ec2:DescribeSpotInstanceRequests", "ec2:DescribeSpotPriceHistory", "ecr:DeleteRepository",
}  # fmt: skip


@pytest.mark.parametrize("backend", ["aws_batch", "aws_ec2"])
def test_policies_grant_the_calls_of_lithops(backend: str) -> None:
    import lithops

    (source,) = Path(lithops.__file__).parent.glob(f"*/backends/{backend}/{backend}.py")
    calls = re.findall(r"\b(batch|ecr|ec2)_client\.([a-z_]+)\(", source.read_text())
    called = {f"{service}:{name.title().replace('_', '')}" for service, name in calls}
    called -= {"ec2:GetWaiter", "ec2:GetPaginator"}
    policy = json.loads((ROOT / "backends" / backend / "client-policy.json").read_text())
    granted = {
        action
        for one in policy["Statement"]
        for action in ([one["Action"]] if isinstance(one["Action"], str) else one["Action"])
    }
    assert called - NOT_ASKED_FOR <= granted
