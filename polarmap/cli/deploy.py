"""`polarmap deploy` and `polarmap undeploy`: build and remove the worker runtime of a backend.

By default, Lithops installs the newest numpy on its workers, which may be unable to unpickle arrays that an
older numpy has pickled here. The runtime is therefore built with the package versions that are installed on
this machine.
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

from polarmap.cli.config import find_config_template, find_templates_folder
from polarmap.cli.output import EXISTING_FILE, CommandResult, result_command
from polarmap.clouds import lithops_config
from polarmap.clouds.limits import BACKENDS
from polarmap.clouds.runtime_images import RUNTIME_IMAGES
from polarmap.errors import ExecutorError, PolarmapError
from polarmap.executors.lithops_internals import close_function_executor
from polarmap.executors.lithops_invocations import open_function_executor
from polarmap.optional import compare_installed_version, format_pip_install_command

# On AWS Lambda, Python 3.11 and earlier run on Amazon Linux 2. The C library of this system is too old for
# the wheels of numpy 2.3 and later.
MIN_LAMBDA_PYTHON_WITH_NEW_LIBC, MIN_NUMPY_NEEDING_NEW_LIBC = (3, 12), (2, 3)
LOCAL_BACKEND = "localhost"  # the Lithops backend that runs workers on this machine

name_argument = click.argument("name")
config_argument = click.argument("config", type=EXISTING_FILE, required=False)


@result_command("deploy")
@name_argument
@config_argument
def deploy_command(name: str, config: Path | None) -> CommandResult:
    """Build and deploy the worker runtime of backend NAME.

    The runtime is the image that workers run in. It contains the same package versions as this environment.
    CONFIG is your copy of the template that `polarmap config show NAME` prints, with your settings. Deploy
    again whenever you update numpy or polarmap, and for each value of runtime_memory that you use.
    """
    config_path = _resolve_config_path(name, config)
    if name in BACKENDS:
        _enable_lithops_logging()
        runtime = build_runtime(config_path, name)
        data = {"name": name, "config": config_path, "runtime": runtime, "python": None}
        return CommandResult(data, f"deployed {runtime} to {name}")
    _check_local_interpreter(name)
    data = {"name": name, "config": config_path, "runtime": None, "python": sys.executable}
    return CommandResult(data, f"nothing to deploy: {sys.executable} can run the workers of {name}")


@result_command("undeploy")
@name_argument
@config_argument
def undeploy_command(name: str, config: Path | None) -> CommandResult:
    """Remove the worker runtime that `polarmap deploy` built.

    Buckets, roles and images that you created yourself are not removed. The backend's documentation explains
    how to remove them.
    """
    config_path = _resolve_config_path(name, config)
    if name in BACKENDS:
        _enable_lithops_logging()
        runtime = remove_runtime(config_path, name)
        return CommandResult(
            {"name": name, "config": config_path, "runtime": runtime}, f"removed {runtime} from {name}"
        )
    return CommandResult(
        {"name": name, "config": config_path, "runtime": None}, f"nothing is ever deployed to {name}"
    )


def _resolve_config_path(backend: str, config_path: Path | None) -> Path:
    """Return `config_path`, or the path of the backend's template if it is None.

    Raises ExecutorError if the backend is unknown, or if the file is invalid or configures another backend.
    """
    template = find_config_template(backend)
    lithops_config.read_config_for_backend(
        config_path or template, backend if backend in BACKENDS else LOCAL_BACKEND
    )
    return config_path or template


def _check_local_interpreter(backend: str) -> None:
    """Check that this Python environment has the packages that workers need, in suitable versions.

    Raises ExecutorError if a package is missing, or if its version is unsuitable.
    """
    checked_requirements = {
        requirement: compare_installed_version(requirement) for requirement in read_requirements(backend)
    }
    problems = [
        f"{package}: {installed_version}, {format_pip_install_command(requirement)}"
        for requirement, (package, installed_version, is_satisfied) in checked_requirements.items()
        if not is_satisfied
    ]
    if problems:
        raise ExecutorError(f"{sys.executable} cannot run workers of {backend}: {'; '.join(problems)}")


def _enable_lithops_logging() -> None:
    """Show log messages from Lithops on standard error, because building a runtime takes minutes."""
    logging.basicConfig(format="polarmap: %(message)s")
    logging.getLogger("lithops").setLevel(logging.INFO)


# --- building and removing -----------------------------------------------------------------------------


def read_requirements(backend: str) -> list[str]:
    """Return the pip requirements of the packages that a backend's workers need."""
    path = find_templates_folder() / "backends" / "requirements.txt"
    lines = map(str.strip, path.read_text().splitlines())
    requirements = [line for line in lines if line and not line.startswith("#")]
    return requirements + list(RUNTIME_IMAGES[backend].extra_packages)


def pin_requirements(requirements: Sequence[str], installed_versions: Mapping[str, str]) -> list[str]:
    """Pin pip requirements to the versions that are installed here.

    Requirements for packages that are not installed are returned unchanged.

    >>> pin_requirements(["numpy>=1.26", "azure-functions"], {"numpy": "2.2.6"})
    ['numpy==2.2.6', 'azure-functions']
    """
    names = [re.split(r"[<>=!~\[ ;]", line, maxsplit=1)[0] for line in requirements]
    return [
        f"{name}=={installed_versions[name]}" if name in installed_versions else line
        for name, line in zip(names, requirements)
    ]


def build_runtime(config_path: Path, backend: str) -> str:
    """Build and deploy the image for a backend's workers, and return a one-line description of it.

    Raises ExecutorError if building or deploying fails.
    """
    from lithops.version import __version__

    runtime_image = RUNTIME_IMAGES[backend]
    installed_versions = check_deployable_config(lithops_config.read_config(config_path))
    requirements = pin_requirements(read_requirements(backend), installed_versions)
    with (
        _open_lithops_executor(config_path, f"{backend} was not deployed") as function_executor,
        _make_build_folder(backend, requirements) as build_folder,
        _patch_lithops_defaults(backend, requirements, build_folder),
    ):
        compute_handler, storage = function_executor.compute_handler, function_executor.internal_storage
        runtime_info = compute_handler.get_runtime_info()
        runtime_name, memory_mb, timeout_seconds = (
            runtime_info[f"runtime_{field}"] for field in ("name", "memory", "timeout")
        )
        if runtime_image.lithops_archive:
            compute_handler.backend.build_runtime(runtime_name, "Dockerfile", [])
        compute_handler.init()  # For virtual machines, this creates their network.
        metadata = compute_handler.deploy_runtime(runtime_name, memory_mb, timeout_seconds)
        metadata["runtime_timeout"] = timeout_seconds
        runtime_key = compute_handler.get_runtime_key(runtime_name, memory_mb, __version__)
        storage.put_runtime_meta(runtime_key, metadata)
        if backend == "aws_lambda":
            _disable_lambda_retries(compute_handler.backend, runtime_name, memory_mb)
        return _format_runtime(runtime_name, memory_mb, timeout_seconds)


def remove_runtime(config_path: Path, backend: str) -> str:
    """Remove the deployed image for a backend's workers, and return a one-line description of it.

    Raises ExecutorError if removing fails.
    """
    from lithops.version import __version__

    runtime_image = RUNTIME_IMAGES[backend]
    with _open_lithops_executor(config_path, f"{backend} was not removed") as function_executor:
        compute_handler, storage = function_executor.compute_handler, function_executor.internal_storage
        runtime_info = compute_handler.get_runtime_info()
        runtime_name, memory_mb = runtime_info["runtime_name"], runtime_info["runtime_memory"]
        if not runtime_image.is_virtual_machine:
            compute_handler.delete_runtime(runtime_name, memory_mb, __version__)
        if runtime_image.clean_all is not None:
            compute_handler.clean(all=runtime_image.clean_all)
        # This record is not used for virtual machines: Lithops itself stores and deletes their metadata.
        if not runtime_image.is_virtual_machine:
            storage.delete_runtime_meta(compute_handler.get_runtime_key(runtime_name, memory_mb, __version__))
        return _format_runtime(runtime_name, memory_mb)


def _format_runtime(runtime_name: str, memory_mb: int | None, timeout_seconds: int | None = None) -> str:
    """Return the name of a runtime, followed by the memory and time limit of its workers if they are known.

    >>> _format_runtime("worker", 2048, 60), _format_runtime("python3", None)
    ('worker (2048 MB, 60 s)', 'python3')
    """
    parts = [
        f"{quantity} {unit}"
        for quantity, unit in ((memory_mb, "MB"), (timeout_seconds, "s"))
        if quantity is not None
    ]
    return f"{runtime_name} ({', '.join(parts)})" if parts else runtime_name


def check_deployable_config(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the package versions to install on workers, which are those installed here.

    Raises ExecutorError if workers cannot install these versions. On AWS Lambda, this is the case if there is
    no suitable numpy wheel. On virtual machines, it is the case if the configuration does not list the
    versions.
    """
    versions = {name: version(name) for name in ("lithops", "numpy", "cloudpickle", "threadpoolctl")}
    python_version, numpy_version = sys.version_info[:2], versions["numpy"]
    needs_new_libc = tuple(int(part) for part in numpy_version.split(".")[:2]) >= MIN_NUMPY_NEEDING_NEW_LIBC
    backend = lithops_config.get_backend_name(config)
    has_old_libc = backend == "aws_lambda" and python_version < MIN_LAMBDA_PYTHON_WITH_NEW_LIBC
    if has_old_libc and needs_new_libc:
        raise ExecutorError(
            f"Lambda's Python {python_version[0]}.{python_version[1]} runs on Amazon Linux 2, "
            f"for which numpy {numpy_version} has no "
            "wheel: run polarmap here with Python 3.12 or later, or with numpy < 2.3"
        )
    if RUNTIME_IMAGES.get(backend, RUNTIME_IMAGES[LOCAL_BACKEND]).is_virtual_machine:
        configured_packages = set((config.get("standalone") or {}).get("extra_python_packages") or [])
        # Lithops need not be listed, because it installs itself on virtual machines.
        required_packages = [f"{name}=={versions[name]}" for name in versions if name != "lithops"]
        if not configured_packages.issuperset(required_packages):
            raise ExecutorError(
                "virtual machines install the packages that the section standalone of the configuration "
                "lists. Set them to the versions installed here: "
                f"extra_python_packages: [{', '.join(required_packages)}]"
            )
    return versions


@contextlib.contextmanager
def _open_lithops_executor(config_path: Path, error_prefix: str) -> Iterator[Any]:
    """Open a Lithops FunctionExecutor for the duration of a `with` block, and close it afterwards.

    Any exception from Lithops or the cloud is raised as an ExecutorError whose message begins with
    `error_prefix`.
    """
    try:
        function_executor = open_function_executor(config_path)
        try:
            yield function_executor
        finally:
            close_function_executor(function_executor)
    except PolarmapError:
        raise
    except Exception as error:
        raise ExecutorError(f"{error_prefix}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _make_build_folder(backend: str, requirements: Sequence[str]) -> Iterator[Path]:
    """Create a temporary folder with a Dockerfile and requirements.txt, and make it the working directory.

    Lithops builds images in the working directory. On exit, the previous working directory is restored, and
    the folder is deleted.
    """
    template = Template((find_templates_folder() / "backends" / "Dockerfile").read_text())
    runtime_image, python_version = RUNTIME_IMAGES[backend], f"{sys.version_info[0]}.{sys.version_info[1]}"
    with tempfile.TemporaryDirectory(prefix="polarmap-runtime-") as folder:
        dockerfile = template.substitute(
            python=python_version, archive=runtime_image.lithops_archive, start=runtime_image.entrypoint
        )
        (Path(folder) / "Dockerfile").write_text(dockerfile)
        (Path(folder) / "requirements.txt").write_text("\n".join(requirements) + "\n")
        with contextlib.chdir(folder):
            yield Path(folder)


@contextlib.contextmanager
def _patch_lithops_defaults(backend: str, requirements: Sequence[str], build_folder: Path) -> Iterator[None]:
    """Make Lithops install `requirements` on workers, by patching its settings within a `with` block.

    The settings are restored on exit. Inside the block, Lithops also writes the archive of its own code to
    `build_folder`. Otherwise, it would write to the directory that was current when Lithops was imported.
    """
    runtime_image = RUNTIME_IMAGES[backend]
    compute_mode = "standalone" if runtime_image.is_virtual_machine else "serverless"
    lithops_settings = vars(import_module(f"lithops.{compute_mode}.backends.{backend}.config"))
    overrides: dict[str, Any] = {}
    if runtime_image.lithops_default_name:
        is_list = isinstance(lithops_settings[runtime_image.lithops_default_name], list)
        overrides[runtime_image.lithops_default_name] = (
            list(requirements) if is_list else "\n".join(requirements) + "\n"
        )
    if runtime_image.lithops_archive and "FH_ZIP_LOCATION" in lithops_settings:
        overrides["FH_ZIP_LOCATION"] = str(build_folder / runtime_image.lithops_archive)
    original_settings = {name: lithops_settings[name] for name in overrides}
    lithops_settings.update(overrides)
    try:
        yield
    finally:
        lithops_settings.update(original_settings)


def _disable_lambda_retries(lambda_backend: Any, runtime_name: str, memory_mb: int) -> None:
    """Configure AWS Lambda not to retry failed calls of the worker function.

    By default, Lambda retries failed asynchronous calls twice, after minutes. These retries come too late to
    be useful, because the results of parity tasks replace the results of failed tasks.
    """
    function_name = lambda_backend._format_function_name(runtime_name, memory_mb)
    lambda_backend.lambda_client.put_function_event_invoke_config(
        FunctionName=function_name, MaximumRetryAttempts=0
    )
