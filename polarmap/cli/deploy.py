"""Build and deploy a worker runtime with the client's own versions, and remove it again.

`polarmap deploy NAME CONFIG` and `polarmap undeploy NAME CONFIG` call it.

Lithops installs whatever numpy is newest on its worker. Arrays inside a pickled f then need not load,
so the runtime gets the versions this process runs with.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from polarmap.clouds import settings
from polarmap.errors import ExecutorError, PolarmapError
from polarmap.executors.lithops_internals import end
from polarmap.executors.lithops_jobs import open_functions

# Lambda's Python below 3.12 runs on Amazon Linux 2, whose C library is older than numpy's wheels need.
LAMBDA_OLD_PYTHON, NUMPY_NEEDS_NEW_LIBC = (3, 12), (2, 3)


def requirements_of(recipe: Path) -> list[str]:
    """The packages that a worker of a recipe needs."""
    lines = map(str.strip, (recipe / "requirements.txt").read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def frozen(wanted: Sequence[str], installed: Mapping[str, str]) -> list[str]:
    """Requirements pinned to what is installed here, where it is.

    >>> frozen(["numpy>=1.26", "azure-functions"], {"numpy": "2.2.6"})
    ['numpy==2.2.6', 'azure-functions']
    """
    names = [re.split(r"[<>=!~\[ ;]", line, maxsplit=1)[0] for line in wanted]
    return [f"{name}=={installed[name]}" if name in installed else line for name, line in zip(names, wanted)]


def deploy(config_file: str, backend: str, recipe: Path) -> str:
    """Build the runtime of `recipe`, deploy it where the configuration says; its name."""
    installed = check_deployable(settings.read(config_file))
    requirements = frozen(requirements_of(recipe), installed)
    with (
        _functions_of(config_file, f"{backend} was not deployed") as functions,
        _build_folder(recipe, requirements),
        _own_requirements(backend, requirements),
    ):
        return _publish(functions, backend)


def undeploy(config_file: str, backend: str) -> str:
    """Remove the runtime that the configuration names, and what Lithops noted of it; its name."""
    with _functions_of(config_file, f"{backend} was not removed") as functions:
        return _remove(functions, backend)


def check_deployable(config: Mapping[str, Any]) -> dict[str, str]:
    """Versions that a runtime is made of; ExecutorError for what this client cannot deploy there."""
    installed = {name: version(name) for name in ("lithops", "numpy", "cloudpickle", "threadpoolctl")}
    python, numpy = sys.version_info[:2], installed["numpy"]
    is_new = tuple(int(part) for part in numpy.split(".")[:2]) >= NUMPY_NEEDS_NEW_LIBC
    if settings.backend_of(config) == "aws_lambda" and python < LAMBDA_OLD_PYTHON and is_new:
        raise ExecutorError(
            f"Lambda's Python {python[0]}.{python[1]} runs on Amazon Linux 2, for which numpy {numpy} has no "
            "wheel: run the client on Python 3.12 or later, or with numpy < 2.3"
        )
    return installed


@contextlib.contextmanager
def _functions_of(config_file: str, not_done: str) -> Iterator[Any]:
    """A FunctionExecutor, ended afterwards; whatever Lithops or a cloud raises becomes an ExecutorError."""
    try:
        functions = open_functions(config_file)
        try:
            yield functions
        finally:
            end(functions)
    except PolarmapError:
        raise
    except Exception as error:
        raise ExecutorError(f"{not_done}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _build_folder(recipe: Path, requirements: Sequence[str]) -> Iterator[None]:
    """Work in a temporary folder with the recipe's files: Lithops builds where it stands."""
    with tempfile.TemporaryDirectory(prefix="polarmap-runtime-") as folder:
        for file in recipe.iterdir():
            shutil.copy(file, folder)
        (Path(folder) / "requirements.txt").write_text("\n".join(requirements) + "\n")
        with contextlib.chdir(folder):
            yield


def _publish(functions: Any, backend: str) -> str:
    from lithops.version import __version__

    handler, storage = functions.compute_handler, functions.internal_storage
    runtime = handler.get_runtime_info()
    name, memory, seconds = (runtime[f"runtime_{key}"] for key in ("name", "memory", "timeout"))
    if backend == "k8s":
        python = f"--build-arg PYTHON={sys.version_info[0]}.{sys.version_info[1]}"
        handler.backend.build_runtime(name, "Dockerfile", [python])
    metadata = handler.deploy_runtime(name, memory, seconds)
    metadata["runtime_timeout"] = seconds
    storage.put_runtime_meta(handler.get_runtime_key(name, memory, __version__), metadata)
    if backend == "aws_lambda":
        _do_not_repeat(handler.backend, name, memory)
    return f"{name} ({memory} MB, {seconds} s)"


def _remove(functions: Any, backend: str) -> str:
    from lithops.version import __version__

    handler, storage = functions.compute_handler, functions.internal_storage
    runtime = handler.get_runtime_info()
    name, memory = runtime["runtime_name"], runtime["runtime_memory"]
    handler.delete_runtime(name, memory, __version__)
    if backend == "k8s":  # where a runtime is an image, which is the user's, and jobs
        handler.clean(all=True)
    storage.delete_runtime_meta(handler.get_runtime_key(name, memory, __version__))
    return f"{name} ({memory} MB)"


@contextlib.contextmanager
def _own_requirements(backend: str, requirements: Sequence[str]) -> Iterator[None]:
    """Let Lithops' default runtime of this backend be made of these packages."""
    from importlib import import_module

    module = import_module(f"lithops.serverless.backends.{backend}.config")
    name = {"aws_lambda": "DEFAULT_REQUIREMENTS"}.get(backend, "REQUIREMENTS_FILE")
    theirs = getattr(module, name, None)
    if theirs is None:
        yield
        return
    setattr(module, name, list(requirements) if isinstance(theirs, list) else "\n".join(requirements) + "\n")
    try:
        yield
    finally:
        setattr(module, name, theirs)


def _do_not_repeat(backend: Any, name: str, memory: int) -> None:
    """Lambda repeats asynchronous calls that fail, twice, minutes later: parity makes that needless."""
    function = backend._format_function_name(name, memory)
    backend.lambda_client.put_function_event_invoke_config(FunctionName=function, MaximumRetryAttempts=0)
