"""What the folders beside the package hold: configurations and recipes of clouds."""

from __future__ import annotations

import importlib.metadata
import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = sorted(path.name for path in (ROOT / "backends").iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", ["config", "backends"])
def test_no_python_beside_the_package(folder: str) -> None:
    assert list((ROOT / folder).rglob("*.py")) == []


def test_every_config_has_its_backend_and_every_backend_its_config() -> None:
    assert sorted(path.stem for path in (ROOT / "config").glob("*.yaml")) == BACKENDS


@pytest.mark.parametrize("backend", BACKENDS)
def test_config_names_the_backend_or_storage_it_is_called_after(backend: str) -> None:
    config = yaml.safe_load((ROOT / "config" / f"{backend}.yaml").read_text())
    assert backend in (config["lithops"]["backend"], config["lithops"]["storage"])
    assert backend in config


@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_pins_what_the_package_pins(backend: str) -> None:
    """What setup.cfg requires stands here in the same words; what a cloud needs beside it may."""
    lines = (ROOT / "backends" / backend / "requirements.txt").read_text().splitlines()
    pins = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    ours = {project(line): line for line in install_requires()}
    assert {ours.get(project(pin), pin) for pin in pins} == pins
    assert lithops_pin() in pins
    assert {"numpy", "cloudpickle"} <= {project(pin) for pin in pins}


def project(requirement: str) -> str:
    return re.split(r"[<>=!~\[]", requirement)[0]


def test_installed_lithops_is_of_the_series_whose_inside_we_know() -> None:
    lowest, below = re.fullmatch(r"lithops>=(3\.\d+),<(3\.\d+)", lithops_pin()).groups()
    assert importlib.metadata.version("lithops").rpartition(".")[0] == lowest
    assert int(below[2:]) == int(lowest[2:]) + 1


def install_requires() -> set[str]:
    setup = ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    return set(setup["options"]["install_requires"].split())


def lithops_pin() -> str:
    return next(line for line in install_requires() if line.startswith("lithops"))
