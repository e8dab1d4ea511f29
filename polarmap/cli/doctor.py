"""`polarmap doctor`: check the installation and a configuration, and run small coded maps."""

from __future__ import annotations

import importlib.util
import operator
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click
import numpy as np

from polarmap import Pool, __version__, coded_map
from polarmap.cli.deploy import check_deployable_config
from polarmap.cli.output import EXISTING_FILE, CommandResult, format_error_message, result_command
from polarmap.clouds import lithops_config
from polarmap.errors import ExecutorError, PolarmapError, StorageError
from polarmap.executors.persistent_executor import DEFAULT_BLOCK_CACHE_BYTES
from polarmap.executors.temp_folders import SHARED_MEMORY_ROOT, get_temp_root
from polarmap.optional import (
    compare_installed_version,
    format_extras_install_command,
    format_pip_install_command,
    list_requirements,
)
from polarmap.storage.bucket import ObjectStore
from polarmap.types import CodedResult
from polarmap.worker.environment import count_available_cores

TESTED_PYTHONS = ((3, 11), (3, 14))
N_BLOCKS, N_TASKS = 4, 6
# The sample data are integers, so the coded map must return exactly the matrix-vector product.
SAMPLE_MATRIX = np.arange(8 * N_BLOCKS * 3).reshape(8 * N_BLOCKS, 3)
SAMPLE_VECTOR = np.array([1, -2, 3])
N_LATER_MAPS = 10
# Maximum seconds for the first map and for later maps. Slower maps are reported with advice. On an idle core,
# maps take a fraction of this time.
SLOW_FIRST_MAP_SECONDS, SLOW_LATER_MAP_SECONDS = 3.0, 0.03
MIN_FREE_BYTES = 1 << 30  # 1 GiB: with less free space in the temporary folder, the user gets a note.
OPTIONAL_PACKAGES = {
    "numba": ("fast", "codes with n over about 100 are encoded slower"),
    "scipy": ("linalg", "no operators and estimators"),
    "matplotlib": ("plot", "no figures"),
}
LITHOPS_CONFIG_VARIABLES = ("LITHOPS_CONFIG", "LITHOPS_CONFIG_FILE")


class CheckResult(NamedTuple):
    """The result of one check of `polarmap doctor`.

    Attributes
    ----------
    name : str
        What was checked.
    state : str
        "ok", "note" (it works, but could be better) or "bad".
    detail : str
        What the check found.
    advice : str
        What to do about it; empty if there is nothing to do.
    """

    name: str
    state: str
    detail: str
    advice: str = ""

    def __str__(self) -> str:
        advice_line = f"\n      {self.advice}" if self.advice else ""
        return f"{self.state:<4}  {self.name}: {self.detail}{advice_line}"


@result_command("doctor")
@click.option(
    "--config",
    type=EXISTING_FILE,
    help="A Lithops YAML file to check. By default, the workers on this machine are checked.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=120.0,
    show_default=True,
    help="Seconds after which a coded map is given up.",
)
def doctor_command(config: Path | None, timeout: float) -> CommandResult:
    """Check that polarmap works here.

    The checks cover the installed packages, this machine or a Lithops configuration, and small coded maps.
    The last check measures how long maps take on persistent workers, which stay alive between maps.
    """
    checks = [
        *_check_installation(),
        *(_check_this_machine() if config is None else _check_configuration(config)),
    ]
    if all(check.state != "bad" for check in checks):
        checks += _check_storage_and_maps(config, timeout)
    failed_checks = [check for check in checks if check.state == "bad"]
    verdict = (
        f"{len(failed_checks)} of {len(checks)} checks failed" if failed_checks else "polarmap works here"
    )
    lines = [*map(str, checks), verdict]
    return CommandResult(
        {"ok": not failed_checks, "version": __version__, "checks": checks},
        "\n".join(lines),
        ok=not failed_checks,
    )


# --- installation -----------------------------------------------------------------------------


def _check_installation() -> Iterator[CheckResult]:
    python_version = sys.version_info[:2]
    is_tested = TESTED_PYTHONS[0] <= python_version <= TESTED_PYTHONS[1]
    yield CheckResult(
        "Python",
        "ok" if is_tested else "note",
        f"{platform.python_version()} at {sys.executable}",
        "" if is_tested else "polarmap is tested on Python 3.11 to 3.14",
    )
    yield CheckResult("polarmap", "ok", f"{__version__} at {Path(__file__).resolve().parents[1]}")
    for requirement in list_requirements():
        name, installed_version, is_satisfied = compare_installed_version(requirement)
        yield (
            CheckResult(name, "ok", installed_version)
            if is_satisfied
            else CheckResult(name, "bad", installed_version, format_pip_install_command(requirement))
        )
    for name, (extra, consequence) in OPTIONAL_PACKAGES.items():
        if importlib.util.find_spec(name) is None:
            yield CheckResult(
                name, "note", f"not installed: {consequence}", format_extras_install_command(extra)
            )


# --- configuration ----------------------------------------------------------------------------


def _check_this_machine() -> Iterator[CheckResult]:
    """Check the free space for data blocks on this machine, where maps run by default.

    Also yield a note for each Lithops configuration file found, because these files have no effect on maps
    without `executor=`.
    """
    yield CheckResult("configuration", "ok", "none given: workers on this machine")
    for config_path in _find_lithops_configs():
        yield CheckResult(
            "Lithops",
            "note",
            f"{config_path} is not used by executor=None",
            f"examine it with polarmap doctor --config {config_path}, use it with "
            f"executor={str(config_path)!r}",
        )
    yield _check_free_space("temporary folder", get_temp_root(), MIN_FREE_BYTES, "make room, or set TMPDIR")
    if os.path.isdir(SHARED_MEMORY_ROOT):
        advice = "blocks that do not fit go to disk; give a container more with docker run --shm-size=2g"
        yield _check_free_space("shared memory", SHARED_MEMORY_ROOT, DEFAULT_BLOCK_CACHE_BYTES, advice)


def _check_free_space(check_name: str, folder: str, min_bytes: int, advice: str) -> CheckResult:
    """Check that a folder for data blocks has at least `min_bytes` bytes of free space."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes >= min_bytes:
        return CheckResult(check_name, "ok", f"{folder}, {free_bytes / 1e9:.1f} GB free")
    detail = f"{folder}, only {free_bytes / 1e9:.1f} GB free; blocks may take {min_bytes / 1e9:.1f} GB"
    return CheckResult(check_name, "note", detail, advice)


def _find_lithops_configs() -> list[Path]:
    """Return the configuration files on this machine that Lithops would read by default."""
    configured_values = [os.environ[name] for name in LITHOPS_CONFIG_VARIABLES if os.environ.get(name)]
    candidates = [Path(name) for name in configured_values if not name.lstrip().startswith("{")]
    candidates += [Path(".lithops_config"), Path.home() / ".lithops" / "config"]
    return [candidate for candidate in candidates if candidate.is_file()]


def _check_configuration(config_path: Path) -> Iterator[CheckResult]:
    try:
        config = lithops_config.read_config(config_path)
    except ExecutorError as error:
        yield CheckResult(
            "configuration", "bad", format_error_message(error), "polarmap config show NAME prints a template"
        )
        return
    lithops_section = config.get("lithops") or {}
    names_backend = "backend" in lithops_section
    storage = lithops_section.get("storage", "chosen by Lithops")
    yield CheckResult(
        "configuration",
        "ok" if names_backend else "note",
        f"{config_path}: {lithops_config.get_backend_name(config)}, storage {storage}",
        "" if names_backend else "it names no backend, so Lithops uses aws_lambda",
    )
    if storage != "localhost" and "monitoring_interval" not in lithops_section:
        detail = "not set, so Lithops polls for results every 2 s"
        yield CheckResult(
            "monitoring_interval", "note", detail, "add monitoring_interval: 0.3 to the section lithops:"
        )
    try:
        check_deployable_config(config)
    except ExecutorError as error:
        yield CheckResult(
            "worker runtime",
            "bad",
            format_error_message(error),
            "polarmap deploy would fail for the same reason",
        )


# --- live checks -------------------------------------------------------------------------------------


def _check_storage_and_maps(config: Path | None, timeout: float) -> Iterator[CheckResult]:
    """Check the configured storage, and then run small coded maps.

    Stops at the first check that is not "ok".
    """
    if config is not None:
        yield (check := _check_storage(config))
        if check.state == "bad":
            return
    for check_name, run_check in (
        ("coded map", _check_coded_map),
        ("persistent workers", _check_persistent_workers),
    ):
        try:
            check = run_check(config, timeout)
        except PolarmapError as error:
            check = CheckResult(check_name, "bad", f"{type(error).__name__}: {format_error_message(error)}")
        yield check
        if check.state != "ok":
            return


def _check_storage(config: Path) -> CheckResult:
    """Check that the configured storage works, by writing, reading and deleting an object."""
    from polarmap.executors.lithops_internals import close_function_executor
    from polarmap.executors.lithops_invocations import open_function_executor, open_lithops_storage

    try:
        function_executor = open_function_executor(config)
    except ExecutorError as error:
        return CheckResult("Lithops", "bad", format_error_message(error), "check that you are logged in")
    key, data = f"polarmap/jobs/{uuid.uuid4().hex}/probe", os.urandom(1024)
    try:
        store = ObjectStore(open_lithops_storage(function_executor))
        started_at = time.monotonic()
        store.put(key, data)
        if store.get(key) != data:
            raise StorageError(f"{store.name} returned different bytes than were written")
        store.delete([key])
        seconds = time.monotonic() - started_at
    except StorageError as error:
        return CheckResult(
            "storage",
            "bad",
            format_error_message(error),
            "check the endpoint, the bucket and the credentials",
        )
    finally:
        close_function_executor(function_executor)
    return CheckResult("storage", "ok", f"put, get and delete of 1 KiB in {1e3 * seconds:.0f} ms")


def _check_coded_map(executor: Any, timeout: float) -> CheckResult:
    """Run a small coded map, and compare its result with the exact result."""
    started_at = time.perf_counter()
    result = _run_sample_map(executor, timeout)
    seconds = time.perf_counter() - started_at
    if not np.array_equal(result.concatenate(), SAMPLE_MATRIX @ SAMPLE_VECTOR):
        return CheckResult("coded map", "bad", "the result is wrong", "please report this")
    failed_tasks = [task for task in result.report.tasks if task.failures]
    return CheckResult(
        "coded map",
        "note" if failed_tasks else "ok",
        f"{N_BLOCKS} blocks in {N_TASKS} tasks ({result.report.executor}), right, in {seconds:.2f} s",
        f"{len(failed_tasks)} of its workers failed: {failed_tasks[0].failures[-1]}" if failed_tasks else "",
    )


def _check_persistent_workers(config: Path | None, timeout: float) -> CheckResult:
    """Measure how long maps take on persistent workers, which stay alive between maps.

    The first map is measured separately, because it also starts the workers.
    """
    durations = []
    with Pool(config) as pool:
        for _ in range(1 + N_LATER_MAPS):
            started_at = time.perf_counter()
            _run_sample_map(pool, timeout)
            durations.append(time.perf_counter() - started_at)
        return _check_latency(pool.name, config is None, durations[0], median(durations[1:]))


def _run_sample_map(executor: Any, timeout: float) -> CodedResult[Any]:
    """Return the product of the sample matrix and vector, computed by a coded map."""
    result: CodedResult[Any] = coded_map(
        operator.methodcaller("dot", SAMPLE_VECTOR),
        SAMPLE_MATRIX,
        blocks=N_BLOCKS,
        tasks=N_TASKS,
        executor=executor,
        timeout=timeout,
        progress=False,
    )
    return result


def _check_latency(pool_name: str, is_local: bool, first_seconds: float, later_seconds: float) -> CheckResult:
    """Return "ok" if maps on persistent workers are fast enough, or a note with advice otherwise.

    The first map takes `first_seconds`, as it also starts the workers. Later maps take `later_seconds` each.

    >>> print(_check_latency("here", True, 0.4, 0.002))
    ok    persistent workers: here: the first map, which starts them, takes 0.40 s, later ones 2.0 ms
    """
    detail = (
        f"{pool_name}: the first map, which starts them, takes {first_seconds:.2f} s, later ones "
        f"{1e3 * later_seconds:.1f} ms"
    )
    if later_seconds <= SLOW_LATER_MAP_SECONDS and (first_seconds <= SLOW_FIRST_MAP_SECONDS or not is_local):
        return CheckResult("persistent workers", "ok", detail)
    load_average, n_cores = os.getloadavg()[0], count_available_cores()
    if load_average > n_cores:
        advice = (
            f"this machine is busy ({load_average:.1f} processes for {n_cores} cores): try again "
            "when it is idle"
        )
    elif not is_local:
        advice = "workers are fastest if they can reach this machine by TCP, else with a storage like Redis"
    elif later_seconds > SLOW_LATER_MAP_SECONDS:
        advice = "try executor=ThreadPoolExecutor(...), which starts no processes, and please report this"
    else:
        advice = (
            "starting workers mostly imports modules, perhaps from a slow disk: keep workers with "
            "Pool(idle_timeout=600)"
        )
    return CheckResult("persistent workers", "note", detail, advice)
