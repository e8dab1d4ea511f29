"""`polarmap config`: the configuration and worker runtime of each backend, as shipped with the
package.
"""

from __future__ import annotations

import re
import shutil
from itertools import takewhile
from pathlib import Path

import click

from polarmap.cli.output import CommandResult, result_command
from polarmap.errors import ExecutorError


def find_templates_folder() -> Path:
    """The folder that holds config/ and backends/: in the package, or around it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_templates", package.parent):
        if (folder / "config").is_dir() and (folder / "backends").is_dir():
            return folder
    raise ExecutorError(f"{package} came without config/ and backends/: install a wheel or sdist of polarmap")


def list_backends() -> list[str]:
    """Every backend there is a configuration for."""
    return sorted(path.stem for path in (find_templates_folder() / "config").glob("*.yaml"))


def find_config_template(backend: str) -> Path:
    """The configuration of a backend; ExecutorError for a name that is none."""
    if backend not in list_backends():
        raise ExecutorError(f"there is no configuration {backend!r}; there are: {', '.join(list_backends())}")
    return find_templates_folder() / "config" / f"{backend}.yaml"


def find_backend_folder(backend: str) -> Path:
    """What builds the worker runtime of a backend."""
    return find_templates_folder() / "backends" / backend


@click.group("config")
def config_group() -> None:
    """List, show or copy the configurations that polarmap ships."""


@result_command("list")
def list_backends_command() -> CommandResult:
    """List the backends there is a configuration for."""
    purposes = [(name, _read_config_template_summary(name)) for name in list_backends()]
    configurations = [
        {
            "name": name,
            "purpose": purpose,
            "config": find_config_template(name),
            "backend": find_backend_folder(name),
        }
        for name, purpose in purposes
    ]
    formatter = click.HelpFormatter()
    formatter.write_dl(purposes)
    return CommandResult({"configurations": configurations}, formatter.getvalue().rstrip("\n"))


@result_command("show")
@click.argument("name")
def show_config_command(name: str) -> CommandResult:
    """Print the configuration of a backend: polarmap config show aws_lambda > my_lambda.yaml"""
    template_path = find_config_template(name)
    text = template_path.read_text(encoding="utf-8")
    folder = find_backend_folder(name)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    data = {"name": name, "config": template_path, "text": text, "backend": folder, "files": files}
    return CommandResult(data, text.rstrip("\n"))


@result_command("copy")
@click.argument("name")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".")
def copy_config_command(name: str, folder: Path) -> CommandResult:
    """Copy configuration and worker runtime of a backend to FOLDER/config and FOLDER/backends."""
    copies = [
        (find_config_template(name), folder / "config" / f"{name}.yaml"),
        (find_backend_folder(name), folder / "backends" / name),
    ]
    for _, target in copies:
        if target.exists():
            raise ExecutorError(f"{target} exists already; remove it, or name another folder")
    for source, target in copies:
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    targets = [target for _, target in copies]
    return CommandResult({"name": name, "copied": targets}, "\n".join(map(str, targets)))


for command in (list_backends_command, show_config_command, copy_config_command):
    config_group.add_command(command)


def _read_config_template_summary(backend: str) -> str:
    """The first sentence of the comment that a configuration begins with."""
    lines = find_config_template(backend).read_text(encoding="utf-8").splitlines()
    paragraph = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.strip("# "), lines))
    return re.split(r"(?<!\.)\.(?= [A-Z]|$)", paragraph, maxsplit=1)[0]
