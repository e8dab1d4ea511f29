"""`polarmap config`: list, show and copy the configuration templates that polarmap ships."""

from __future__ import annotations

import re
import shutil
from itertools import takewhile
from pathlib import Path

import click

from polarmap.cli.output import CommandResult, result_command
from polarmap.errors import ExecutorError


def find_templates_folder() -> Path:
    """Return the folder with the configuration templates (config/) and runtime files (backends/).

    The folder is part of an installed package. In a source checkout, it is the root of the repository.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_templates", package.parent):
        if (folder / "config").is_dir() and (folder / "backends").is_dir():
            return folder
    raise ExecutorError(
        f"config/ and backends/ are missing from {package}: install polarmap from a wheel or an sdist"
    )


def list_backends() -> list[str]:
    """Return the names of the Lithops backends that have a configuration template."""
    return sorted(path.stem for path in (find_templates_folder() / "config").glob("*.yaml"))


def find_config_template(backend: str) -> Path:
    """Return the path of the configuration template of a backend, such as "aws_lambda".

    Raises ExecutorError if there is no template with this name.
    """
    if backend not in list_backends():
        raise ExecutorError(
            f"no configuration template is named {backend!r}; choose one of: {', '.join(list_backends())}"
        )
    return find_templates_folder() / "config" / f"{backend}.yaml"


def find_backend_folder(backend: str) -> Path:
    """Return the folder with the files for building the image of a backend's workers."""
    return find_templates_folder() / "backends" / backend


@click.group("config")
def config_group() -> None:
    """List, show or copy configuration templates."""


@result_command("list")
def list_backends_command() -> CommandResult:
    """List the backends that have a configuration template."""
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
    """Print the configuration template of a backend, for you to fill in.

    Example: polarmap config show aws_lambda > my_lambda.yaml
    """
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
    """Copy the configuration template and the runtime files of a backend.

    The template is copied to FOLDER/config, and the runtime files to FOLDER/backends.
    """
    copies = [
        (find_config_template(name), folder / "config" / f"{name}.yaml"),
        (find_backend_folder(name), folder / "backends" / name),
    ]
    for _, target in copies:
        if target.exists():
            raise ExecutorError(f"{target} already exists: remove it, or choose another folder")
    for source, target in copies:
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    targets = [target for _, target in copies]
    return CommandResult({"name": name, "copied": targets}, "\n".join(map(str, targets)))


for command in (list_backends_command, show_config_command, copy_config_command):
    config_group.add_command(command)


def _read_config_template_summary(backend: str) -> str:
    """Return a one-line summary of a backend's configuration template.

    The summary is the first sentence of the comment at the top of the template.
    """
    lines = find_config_template(backend).read_text(encoding="utf-8").splitlines()
    paragraph = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.strip("# "), lines))
    return re.split(r"(?<!\.)\.(?= [A-Z]|$)", paragraph, maxsplit=1)[0]
