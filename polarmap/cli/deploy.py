"""`polarmap deploy` and `polarmap undeploy`: the worker runtime of a backend, made without a checkout.

Lithops installs whatever numpy is newest on its worker. Arrays inside a pickled f then need not load,
so the runtime gets the versions this process runs with.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

import click

from polarmap.cli.answer import FILE, Answer, answering
from polarmap.cli.templates import config_file, shipped
from polarmap.clouds import settings
from polarmap.clouds.extras import installed, pip_install
from polarmap.clouds.limits import BACKENDS
from polarmap.clouds.runtimes import RUNTIMES
from polarmap.errors import ExecutorError, PolarmapError
from polarmap.executors.lithops_internals import end
from polarmap.executors.lithops_jobs import open_functions

# Lambda's Python below 3.12 runs on Amazon Linux 2, whose C library is older than numpy's wheels need.
LAMBDA_OLD_PYTHON, NUMPY_NEEDS_NEW_LIBC = (3, 12), (2, 3)
HERE = "localhost"  # the backend of those recipes that have nothing to build

name_argument = click.argument("name")
config_argument = click.argument("config", type=FILE, required=False)


@answering("deploy")
@name_argument
@config_argument
def deploy_(name: str, config: Path | None) -> Answer:
    """Build the worker runtime of backend NAME, and deploy it.

    With the versions that are installed here. CONFIG is your copy of `polarmap config show NAME`, filled in.
    Deploy again after each update of numpy or polarmap, and for each runtime_memory.
    """
    file = _configuration(name, config)
    if name in BACKENDS:
        _show_progress()
        runtime = build(file, name)
        data = {"name": name, "config": file, "runtime": runtime, "python": None}
        return Answer(data, f"deployed {runtime} to {name}")
    _check_interpreter(name)
    data = {"name": name, "config": file, "runtime": None, "python": sys.executable}
    return Answer(data, f"nothing to deploy: {sys.executable} can run the workers of {name}")


@answering("undeploy")
@name_argument
@config_argument
def undeploy_(name: str, config: Path | None) -> Answer:
    """Remove the worker runtime that `polarmap deploy` made.

    Buckets, roles and images that you made yourself stay: the page of the backend says how to remove them.
    """
    file = _configuration(name, config)
    if name in BACKENDS:
        _show_progress()
        runtime = remove(file, name)
        return Answer({"name": name, "config": file, "runtime": runtime}, f"removed {runtime} from {name}")
    return Answer({"name": name, "config": file, "runtime": None}, f"nothing is ever deployed to {name}")


def _configuration(name: str, given: Path | None) -> Path:
    """The file that configures a backend; ExecutorError for a name that is none, and for another's file."""
    template = config_file(name)
    settings.read_for(given or template, name if name in BACKENDS else HERE)
    return given or template


def _check_interpreter(name: str) -> None:
    """ExecutorError if this interpreter cannot be a worker on this machine."""
    wanted = {text: installed(text) for text in requirements_of(name)}
    bad = [f"{one}: {found}, {pip_install(text)}" for text, (one, found, good) in wanted.items() if not good]
    if bad:
        raise ExecutorError(f"{sys.executable} cannot run workers of {name}: {'; '.join(bad)}")


def _show_progress() -> None:
    """It takes minutes: let Lithops say on standard error what goes on."""
    logging.basicConfig(format="polarmap: %(message)s")
    logging.getLogger("lithops").setLevel(logging.INFO)


# --- what they do -----------------------------------------------------------------------------


def requirements_of(name: str) -> list[str]:
    """The packages that a worker of a recipe needs."""
    lines = map(str.strip, (shipped() / "backends" / "requirements.txt").read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")] + list(RUNTIMES[name].packages)


def frozen(wanted: Sequence[str], versions: Mapping[str, str]) -> list[str]:
    """Requirements pinned to what is installed here, where it is.

    >>> frozen(["numpy>=1.26", "azure-functions"], {"numpy": "2.2.6"})
    ['numpy==2.2.6', 'azure-functions']
    """
    names = [re.split(r"[<>=!~\[ ;]", line, maxsplit=1)[0] for line in wanted]
    return [f"{name}=={versions[name]}" if name in versions else line for name, line in zip(names, wanted)]


def build(config: Path, backend: str) -> str:
    """Build the runtime of a backend, deploy it where the configuration says; its name."""
    from lithops.version import __version__

    ours = RUNTIMES[backend]
    requirements = frozen(requirements_of(backend), check_deployable(settings.read(config)))
    with (
        _functions_of(config, f"{backend} was not deployed") as functions,
        _build_folder(backend, requirements) as folder,
        _settings_of_lithops(backend, requirements, folder),
    ):
        handler, storage = functions.compute_handler, functions.internal_storage
        runtime = handler.get_runtime_info()
        name, memory, seconds = (runtime[f"runtime_{key}"] for key in ("name", "memory", "timeout"))
        if ours.archive:
            handler.backend.build_runtime(name, "Dockerfile", [])
        handler.init()  # virtual machines: their network
        metadata = handler.deploy_runtime(name, memory, seconds)
        metadata["runtime_timeout"] = seconds
        storage.put_runtime_meta(handler.get_runtime_key(name, memory, __version__), metadata)
        if backend == "aws_lambda":
            _do_not_repeat(handler.backend, name, memory)
        return _described(name, memory, seconds)


def remove(config: Path, backend: str) -> str:
    """Remove the runtime that the configuration names, and what Lithops noted of it; its name."""
    from lithops.version import __version__

    ours = RUNTIMES[backend]
    with _functions_of(config, f"{backend} was not removed") as functions:
        handler, storage = functions.compute_handler, functions.internal_storage
        runtime = handler.get_runtime_info()
        name, memory = runtime["runtime_name"], runtime["runtime_memory"]
        if not ours.is_machine:
            handler.delete_runtime(name, memory, __version__)
        if ours.cleans is not None:
            handler.clean(all=ours.cleans)
        if not ours.is_machine:  # the note on machines is theirs: others have other names
            storage.delete_runtime_meta(handler.get_runtime_key(name, memory, __version__))
        return _described(name, memory)


def _described(name: str, memory: int | None, seconds: int | None = None) -> str:
    """A runtime with what each of its workers gets; a virtual machine says nothing of its memory.

    >>> _described("worker", 2048, 60), _described("python3", None)
    ('worker (2048 MB, 60 s)', 'python3')
    """
    parts = [f"{count} {unit}" for count, unit in ((memory, "MB"), (seconds, "s")) if count is not None]
    return f"{name} ({', '.join(parts)})" if parts else name


def check_deployable(config: Mapping[str, Any]) -> dict[str, str]:
    """Versions that a runtime is made of; ExecutorError for what this client cannot deploy there."""
    versions = {name: version(name) for name in ("lithops", "numpy", "cloudpickle", "threadpoolctl")}
    python, numpy = sys.version_info[:2], versions["numpy"]
    is_new = tuple(int(part) for part in numpy.split(".")[:2]) >= NUMPY_NEEDS_NEW_LIBC
    if settings.backend_of(config) == "aws_lambda" and python < LAMBDA_OLD_PYTHON and is_new:
        raise ExecutorError(
            f"Lambda's Python {python[0]}.{python[1]} runs on Amazon Linux 2, for which numpy {numpy} has no "
            "wheel: run the client on Python 3.12 or later, or with numpy < 2.3"
        )
    if RUNTIMES.get(settings.backend_of(config), RUNTIMES[HERE]).is_machine:
        there = set((config.get("standalone") or {}).get("extra_python_packages") or [])
        wanted = [f"{name}=={versions[name]}" for name in versions if name != "lithops"]  # it brings itself
        if not there.issuperset(wanted):
            raise ExecutorError(
                "virtual machines install what the section standalone says, which must be as here: "
                f"extra_python_packages: [{', '.join(wanted)}]"
            )
    return versions


@contextlib.contextmanager
def _functions_of(config: Path, not_done: str) -> Iterator[Any]:
    """A FunctionExecutor, ended afterwards; whatever Lithops or a cloud raises becomes an ExecutorError."""
    try:
        functions = open_functions(config)
        try:
            yield functions
        finally:
            end(functions)
    except PolarmapError:
        raise
    except Exception as error:
        raise ExecutorError(f"{not_done}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _build_folder(backend: str, requirements: Sequence[str]) -> Iterator[Path]:
    """Work in a temporary folder with what an image is made of: Lithops builds where it stands."""
    template = Template((shipped() / "backends" / "Dockerfile").read_text())
    ours, python = RUNTIMES[backend], f"{sys.version_info[0]}.{sys.version_info[1]}"
    with tempfile.TemporaryDirectory(prefix="polarmap-runtime-") as folder:
        text = template.substitute(python=python, archive=ours.archive, start=ours.start)
        (Path(folder) / "Dockerfile").write_text(text)
        (Path(folder) / "requirements.txt").write_text("\n".join(requirements) + "\n")
        with contextlib.chdir(folder):
            yield Path(folder)


@contextlib.contextmanager
def _settings_of_lithops(backend: str, requirements: Sequence[str], folder: Path) -> Iterator[None]:
    """Let Lithops make a default runtime of these packages, and put its code beside the Dockerfile.

    It would put it into the folder in which its module was imported.
    """
    ours, place = RUNTIMES[backend], "standalone" if RUNTIMES[backend].is_machine else "serverless"
    found = vars(import_module(f"lithops.{place}.backends.{backend}.config"))
    wanted: dict[str, Any] = {}
    if ours.default:
        is_list = isinstance(found[ours.default], list)
        wanted[ours.default] = list(requirements) if is_list else "\n".join(requirements) + "\n"
    if ours.archive and "FH_ZIP_LOCATION" in found:
        wanted["FH_ZIP_LOCATION"] = str(folder / ours.archive)
    theirs = {name: found[name] for name in wanted}
    found.update(wanted)
    try:
        yield
    finally:
        found.update(theirs)


def _do_not_repeat(backend: Any, name: str, memory: int) -> None:
    """Lambda repeats asynchronous calls that fail, twice, minutes later: parity makes that needless."""
    function = backend._format_function_name(name, memory)
    backend.lambda_client.put_function_event_invoke_config(FunctionName=function, MaximumRetryAttempts=0)
