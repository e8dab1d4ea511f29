"""`polarmap config`: the configuration and worker runtime of each backend, as shipped with the package."""

from __future__ import annotations

import re
import shutil
from itertools import takewhile
from pathlib import Path

import click

from polarmap.cli.answer import Answer, answering
from polarmap.errors import ExecutorError


def shipped() -> Path:
    """The folder that holds config/ and backends/: in the package, or around it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_templates", package.parent):
        if (folder / "config").is_dir() and (folder / "backends").is_dir():
            return folder
    raise ExecutorError(f"{package} came without config/ and backends/: install a wheel or sdist of polarmap")


def names() -> list[str]:
    """Every backend there is a configuration for."""
    return sorted(path.stem for path in (shipped() / "config").glob("*.yaml"))


def config_file(name: str) -> Path:
    """The configuration of a backend; ExecutorError for a name that is none."""
    if name not in names():
        raise ExecutorError(f"there is no configuration {name!r}; there are: {', '.join(names())}")
    return shipped() / "config" / f"{name}.yaml"


def backend_folder(name: str) -> Path:
    """What builds the worker runtime of a backend."""
    return shipped() / "backends" / name


@click.group()
def config() -> None:
    """List, show or copy the configurations that polarmap ships."""


@answering("list")
def list_() -> Answer:
    """List the backends there is a configuration for."""
    rows = [(name, _purpose(name)) for name in names()]
    found = [
        {"name": name, "purpose": purpose, "config": config_file(name), "backend": backend_folder(name)}
        for name, purpose in rows
    ]
    lines = click.HelpFormatter()
    lines.write_dl(rows)
    return Answer({"configurations": found}, lines.getvalue().rstrip("\n"))


@answering("show")
@click.argument("name")
def show(name: str) -> Answer:
    """Print the configuration of a backend: polarmap config show aws_lambda > my_lambda.yaml"""
    file = config_file(name)
    text = file.read_text(encoding="utf-8")
    folder = backend_folder(name)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    data = {"name": name, "config": file, "text": text, "backend": folder, "files": files}
    return Answer(data, text.rstrip("\n"))


@answering("copy")
@click.argument("name")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".")
def copy(name: str, folder: Path) -> Answer:
    """Copy configuration and worker runtime of a backend to FOLDER/config and FOLDER/backends."""
    pairs = [
        (config_file(name), folder / "config" / f"{name}.yaml"),
        (backend_folder(name), folder / "backends" / name),
    ]
    for _, target in pairs:
        if target.exists():
            raise ExecutorError(f"{target} exists already; remove it, or name another folder")
    for source, target in pairs:
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    targets = [target for _, target in pairs]
    return Answer({"name": name, "copied": targets}, "\n".join(map(str, targets)))


for command in (list_, show, copy):
    config.add_command(command)


def _purpose(name: str) -> str:
    """The first sentence of the comment that a configuration begins with."""
    lines = config_file(name).read_text(encoding="utf-8").splitlines()
    paragraph = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.strip("# "), lines))
    return re.split(r"(?<!\.)\.(?= [A-Z]|$)", paragraph, maxsplit=1)[0]
