"""Check the published files: the sdist, the wheel made from it, and both installed in a new environment.

Nothing is downloaded: builds use the installed setuptools, and the new environment sees the packages of this
environment, but not this checkout.
"""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_string
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from page_needs import extras, packages_of
from release_check.archives import copy_checkout

import polarmap

ROOT = Path(__file__).resolve().parents[1]
CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the checkout to a folder with a space in its name, so that building leaves nothing in the
    original.
    """
    return copy_checkout(tmp_path_factory.mktemp("with space") / "source")


@pytest.fixture(scope="module")
def built(source: Path) -> Path:
    """Build the sdist, and the wheel from the sdist; return their folder."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", source / "dist", cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


class Environment:
    """A new virtual environment that uses the packages of this environment."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.scripts, self.python = folder / "bin", folder / "bin" / "python"
        site = run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
        # A path file only adds a folder to the search path: path files inside that folder, as used by
        # editable installs, are not read.
        (Path(site.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.folder = folder

    def install(self, *arguments: object) -> None:
        pip = [sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check"]
        run(
            *pip,
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--ignore-installed",
            *arguments,
            cwd=self.folder,
        )

    def polarmap(self, *arguments: object) -> Any:
        return json.loads(run(self.scripts / "polarmap", *arguments, "--json", cwd=self.folder))

    def where(self) -> Path:
        return Path(
            run(self.python, "-c", "import polarmap; print(polarmap.__file__)", cwd=self.folder).strip()
        )


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("environment"))
    environment.install(wheel)
    return environment


def shipped() -> set[str]:
    """Return the relative paths of all files of config/ and backends/."""
    paths = [path for folder in ("config", "backends") for path in (ROOT / folder).rglob("*")]
    return {str(path.relative_to(ROOT)) for path in paths if path.is_file()}


def test_the_wheel_contains_only_the_package_and_templates(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {name for name in names if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "polarmap").rglob("*.py")}
    data = {"polarmap/py.typed", "polarmap/planning/training_trace.txt"}
    data |= {f"polarmap/live/page/{path.name}" for path in (ROOT / "polarmap" / "live" / "page").iterdir()}
    assert package == modules | data | {f"polarmap/_templates/{name}" for name in shipped()}


def test_the_sdist_contains_the_files_that_tests_need(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"setup.py", "setup.cfg", "Makefile", "LICENSE", "README.md", "tests/conftest.py", ".ci/run"}
    assert wanted | shipped() <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith(".venv")]


def test_the_metadata_is_complete(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_string(archive.read(name).decode())
    assert metadata["License"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    required = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert len(required) <= 7, f"the base install is small, not {required}"
    extras = {"aws", "gcp", "azure", "k8s", "fast", "plot", "storage", "linalg", "glm", "docs", "test", "dev"}
    extras |= {"convex", "ibm", "live", "opentelemetry", "xarray"}
    assert extras <= set(metadata.get_all("Provides-Extra", []))


def test_the_description_renders(built: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir(), cwd=built)


def test_an_installed_wheel_brings_its_configurations(installed: Environment, tmp_path: Path) -> None:
    assert installed.where().is_relative_to(installed.folder)
    configurations = installed.polarmap("config", "list")["configurations"]
    assert {one["name"] for one in configurations} == {path.stem for path in (ROOT / "config").glob("*.yaml")}
    shown = installed.polarmap("config", "show", "aws_lambda")
    assert installed.folder in Path(shown["config"]).parents
    assert shown["text"] == (ROOT / "config" / "aws_lambda.yaml").read_text()
    assert {f"backends/aws_lambda/{file}" for file in shown["files"]} <= shipped()


def test_an_installed_wheel_deploys_without_make(installed: Environment, tmp_path: Path) -> None:
    ready = installed.polarmap("deploy", "localhost")
    assert Path(ready["python"]).parent == installed.scripts
    # Without an account, the recipe is found and Lithops reports the missing cluster.
    config = tmp_path / "k8s.yaml"
    config.write_text("lithops: {backend: k8s, storage: localhost}\nk8s: {runtime: here/worker}\n")
    command = [installed.scripts / "polarmap", "deploy", "k8s", config, "--json"]
    refused = subprocess.run(command, cwd=tmp_path, env=CLEAN, capture_output=True, text=True)
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["error"]["type"] == "ExecutorError"
    assert "Traceback" not in refused.stderr


def test_an_installed_wheel_runs_maps(installed: Environment) -> None:
    report = installed.polarmap("doctor")
    assert report["ok"]
    assert str(installed.folder) in next(
        one["detail"] for one in report["checks"] if one["name"] == "polarmap"
    )


def test_an_editable_install_finds_its_configurations(
    source: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    environment = Environment(tmp_path_factory.mktemp("editable"))
    environment.install("--no-build-isolation", "--editable", source)
    assert environment.where().is_relative_to(source)
    shown = environment.polarmap("config", "show", "localhost")
    assert Path(shown["config"]) == source / "config" / "localhost.yaml"


def test_the_conda_recipe_agrees_with_setup_cfg() -> None:
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    needed = {one for one in settings["options"]["install_requires"].lower().split("\n") if one}
    stated = {one.replace(" ", "") for one in recipe["requirements"]["run"]}
    assert stated == {*needed, "python" + settings["options"]["python_requires"]}
    assert recipe["context"]["version"] == settings["metadata"]["version"]
    [command] = [one for one in settings["options.entry_points"]["console_scripts"].split("\n") if one]
    assert recipe["build"]["python"]["entry_points"] == [command]


def test_make_test_needs_only_the_packages_of_the_extra_test() -> None:
    others = set[str]().union(*map(packages_of, extras())) - packages_of("test") - packages_of(None)
    ignored = re.findall(r"--ignore-glob=(\S+)", (ROOT / "setup.cfg").read_text())
    paths = [
        path
        for path in sorted(ROOT.glob("tests/**/*.py"))
        if not any(fnmatch(str(path), pattern) for pattern in ignored)
    ]
    needed = {
        (str(path.relative_to(ROOT)), name)
        for path in paths
        for statement in ast.parse(path.read_text()).body
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for name in [alias.name for alias in statement.names] + [getattr(statement, "module", None) or ""]
        if name.partition(".")[0] in others
    }
    assert "selenium" in others and needed == set()


def test_the_version_is_the_same_in_all_files() -> None:
    version = polarmap.__version__
    assert f"version = {version}\n" in (ROOT / "setup.cfg").read_text()
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest[1] == version
