"""`polarmap deploy` and `polarmap undeploy`: the worker runtime of a backend, without a checkout."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from polarmap.cli import deploy as runtimes
from polarmap.cli.answer import FILE, Answer, answering
from polarmap.cli.doctor import requirement
from polarmap.cli.templates import backend_folder, config_file
from polarmap.clouds import settings
from polarmap.clouds.limits import BACKENDS
from polarmap.errors import ExecutorError

HERE = "localhost"  # the backend of those recipes that have nothing to build

name_argument = click.argument("name")
config_argument = click.argument("config", type=FILE, required=False)


@answering("deploy")
@name_argument
@config_argument
def deploy_(name: str, config: Path | None) -> Answer:
    """Build the worker runtime of backend NAME with the versions installed here, and deploy it.

    CONFIG is your copy of `polarmap config show NAME`, filled in. Deploy again after each update of numpy or
    polarmap, and for each runtime_memory.
    """
    file = _configuration(name, config)
    if name in BACKENDS:
        _show_progress()
        runtime = runtimes.deploy(str(file), name, backend_folder(name))
        data = {"name": name, "config": file, "runtime": runtime, "python": None}
        return Answer(data, f"deployed {runtime} to {name}")
    _check_interpreter(name)
    data = {"name": name, "config": file, "runtime": None, "python": sys.executable}
    return Answer(data, f"nothing to deploy: {sys.executable} can run the workers of {name}")


@answering("undeploy")
@name_argument
@config_argument
def undeploy_(name: str, config: Path | None) -> Answer:
    """Remove the worker runtime that `polarmap deploy NAME CONFIG` made.

    Buckets, roles and images that you made yourself stay: the page of the backend says how to remove them.
    """
    file = _configuration(name, config)
    if name in BACKENDS:
        _show_progress()
        runtime = runtimes.undeploy(str(file), name)
        return Answer({"name": name, "config": file, "runtime": runtime}, f"removed {runtime} from {name}")
    return Answer({"name": name, "config": file, "runtime": None}, f"nothing is ever deployed to {name}")


def _configuration(name: str, given: Path | None) -> Path:
    """The file that configures a backend; ExecutorError for a name that is none, and for another's file."""
    shipped = config_file(name)
    settings.read_for(given or shipped, name if name in BACKENDS else HERE)
    return given or shipped


def _check_interpreter(name: str) -> None:
    """ExecutorError if this interpreter cannot be a worker on this machine."""
    checks = map(requirement, runtimes.requirements_of(backend_folder(name)))
    bad = [check for check in checks if check.state == "bad"]
    if bad:
        lacking = "; ".join(f"{check.name}: {check.found}, {check.advice}" for check in bad)
        raise ExecutorError(f"{sys.executable} cannot run workers of {name}: {lacking}")


def _show_progress() -> None:
    """It takes minutes: let Lithops say on standard error what goes on."""
    logging.basicConfig(format="polarmap: %(message)s")
    logging.getLogger("lithops").setLevel(logging.INFO)
