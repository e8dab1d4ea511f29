"""Check the commands that install the requirements of an extra, taken from polarmap's metadata."""

from __future__ import annotations

import importlib.metadata
from configparser import ConfigParser
from pathlib import Path

import pytest

from polarmap.optional import (
    compare_installed_version,
    format_extras_install_command,
    list_requirements,
    require_extra,
)

ROOT = Path(__file__).parents[1]


def test_requirements_of_extras_equal_setup_cfg() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    plain = setup["options.extras_require"]
    assert [one.replace(" ", "") for one in list_requirements("plot")] == plain["plot"].split()
    assert set(list_requirements("glm")) == {*list_requirements("linalg"), "scikit-learn>=1.6"}
    assert list_requirements("no such extra") == []


def test_the_install_command_lists_each_requirement_once() -> None:
    command = format_extras_install_command("glm", "linalg")
    assert command.count("scipy") == 1
    assert "polarmap" not in command


def test_the_install_command_of_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    assert format_extras_install_command("aws", "k8s") == "pip install '.[aws,k8s]' in a checkout of polarmap"


def test_the_import_error_names_the_user_and_the_missing_package() -> None:
    says = pytest.raises(ImportError, match=r"^maps needs one thing: pip install 'scipy>=")
    with says as caught, require_extra("maps", "one thing", "linalg"):
        import no_such_package  # noqa: F401
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(ModuleNotFoundError, match="polarmap"), require_extra("maps", "one", "linalg"):
        import polarmap.no_such_module  # noqa: F401


@pytest.mark.parametrize(
    ("there", "will_do"), [("3.7.9", False), ("3.8.0", True), ("3.8.10", True), ("3.9.0", False)]
)
def test_installed_versions_are_compared_with_both_bounds(
    there: str, will_do: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: there)
    found = there if will_do else f"{there}, polarmap needs <3.9,>=3.8"
    assert compare_installed_version("lithops<3.9,>=3.8") == ("lithops", found, will_do)
