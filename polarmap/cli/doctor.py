"""`polarmap doctor`: what is installed, configured and reachable, and coded maps to prove it."""

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
from polarmap.cli.answer import FILE, Answer, answering, one_line
from polarmap.cli.deploy import check_deployable
from polarmap.clouds import settings
from polarmap.clouds.extras import install_command, installed, pip_install, requirements
from polarmap.errors import ExecutorError, PolarmapError, StorageError
from polarmap.executors.owned_folder import MEMORY, disk_place
from polarmap.executors.pool import BLOCK_BYTES
from polarmap.storage.bucket import ObjectStore
from polarmap.types import CodedResult
from polarmap.worker.surroundings import available_cores

PYTHONS = ((3, 11), (3, 14))
BLOCKS, TASKS = 4, 6
A, X = np.arange(8 * BLOCKS * 3).reshape(8 * BLOCKS, 3), np.array([1, -2, 3])  # integers: right means equal
LATER_MAPS = 10
SLOW_START, SLOW_MAP = 3.0, 0.03  # seconds: several times what they take on one core that is free
FREE_BYTES = 1 << 30  # in the temporary folder, below which blocks of some size do not fit
OPTIONAL = {
    "numba": ("fast", "codes with n over about 100 are encoded slower"),
    "scipy": ("linalg", "no operators and estimators"),
    "matplotlib": ("plot", "no figures"),
}
LITHOPS_SETTINGS = ("LITHOPS_CONFIG", "LITHOPS_CONFIG_FILE")


class Check(NamedTuple):
    """What was found of one thing, and how good: "ok", "note" (works, could be better) or "bad"."""

    name: str
    state: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.state:<4}  {self.name}: {self.found}" + (
            f"\n      {self.advice}" if self.advice else ""
        )


@answering("doctor")
@click.option(
    "--config",
    type=FILE,
    help="A Lithops YAML file to examine; without it, what executor=None uses: this machine.",
)
@click.option(
    "--timeout", type=click.FloatRange(1), default=120.0, show_default=True, help="Seconds for the coded map."
)
def doctor(config: Path | None, timeout: float) -> Answer:
    """Check the installation, a configuration, and small coded maps.

    The last check says how long a map takes on workers that stay.
    """
    checks = [*_installation(), *(_this_machine() if config is None else _configuration(config))]
    if all(check.state != "bad" for check in checks):
        checks += _running(config, timeout)
    bad = [check for check in checks if check.state == "bad"]
    verdict = f"{len(bad)} of {len(checks)} checks failed" if bad else "polarmap works here"
    lines = [*map(str, checks), verdict]
    return Answer({"ok": not bad, "version": __version__, "checks": checks}, "\n".join(lines), ok=not bad)


# --- what is installed -----------------------------------------------------------------------------


def _installation() -> Iterator[Check]:
    version = sys.version_info[:2]
    tested = PYTHONS[0] <= version <= PYTHONS[1]
    yield Check(
        "Python",
        "ok" if tested else "note",
        f"{platform.python_version()} at {sys.executable}",
        "" if tested else "polarmap is tested on Python 3.11 to 3.14",
    )
    yield Check("polarmap", "ok", f"{__version__} at {Path(__file__).resolve().parents[1]}")
    for text in requirements():
        name, found, will_do = installed(text)
        yield Check(name, "ok", found) if will_do else Check(name, "bad", found, pip_install(text))
    for name, (extra, lacking) in OPTIONAL.items():
        if importlib.util.find_spec(name) is None:
            yield Check(name, "note", f"not installed: {lacking}", install_command(extra))


# --- what is configured ----------------------------------------------------------------------------


def _this_machine() -> Iterator[Check]:
    """Checks of what executor=None uses: this machine, whatever Lithops' own configuration says."""
    yield Check("configuration", "ok", "none given: workers on this machine")
    for place in _lithops_places():
        yield Check(
            "Lithops",
            "note",
            f"{place} is not used by executor=None",
            f"examine it with polarmap doctor --config {place}, use it with executor={str(place)!r}",
        )
    yield _space("temporary folder", disk_place(), FREE_BYTES, "make room, or set TMPDIR")
    if os.path.isdir(MEMORY):
        advice = "what has no room there goes to disk; of a container: docker run --shm-size=2g"
        yield _space("shared memory", MEMORY, BLOCK_BYTES, advice)


def _space(name: str, folder: str, enough: int, advice: str) -> Check:
    """Check the room in a folder that blocks lie in."""
    free = shutil.disk_usage(folder).free
    if free >= enough:
        return Check(name, "ok", f"{folder}, {free / 1e9:.1f} GB free")
    found = f"{folder}, {free / 1e9:.1f} GB free of {enough / 1e9:.1f} that blocks may take"
    return Check(name, "note", found, advice)


def _lithops_places() -> list[Path]:
    """Configuration files where Lithops looks for one."""
    named = [os.environ[name] for name in LITHOPS_SETTINGS if os.environ.get(name)]
    places = [Path(name) for name in named if not name.lstrip().startswith("{")]
    places += [Path(".lithops_config"), Path.home() / ".lithops" / "config"]
    return [place for place in places if place.is_file()]


def _configuration(file: Path) -> Iterator[Check]:
    try:
        config = settings.read(file)
    except ExecutorError as error:
        yield Check("configuration", "bad", one_line(error), "polarmap config show NAME prints a template")
        return
    chosen = config.get("lithops") or {}
    named, storage = "backend" in chosen, chosen.get("storage", "that of Lithops' choice")
    yield Check(
        "configuration",
        "ok" if named else "note",
        f"{file}: {settings.backend_of(config)}, storage {storage}",
        "" if named else "it names no backend, which Lithops takes for aws_lambda",
    )
    if storage != "localhost" and "monitoring_interval" not in chosen:
        found = "not set: Lithops looks for results every 2 s"
        yield Check("monitoring_interval", "note", found, "say monitoring_interval: 0.3 below lithops:")
    try:
        check_deployable(config)
    except ExecutorError as error:
        yield Check("worker runtime", "bad", one_line(error), "polarmap deploy refuses it, too")


# --- what runs -------------------------------------------------------------------------------------


def _running(config: Path | None, timeout: float) -> Iterator[Check]:
    """Checks of what runs: storage, then coded maps, if nothing before them is bad."""
    if config is not None:
        yield (found := _storage(config))
        if found.state == "bad":
            return
    for name, look in (("coded map", _map), ("kept workers", _kept_workers)):
        try:
            found = look(config, timeout)
        except PolarmapError as error:
            found = Check(name, "bad", f"{type(error).__name__}: {one_line(error)}")
        yield found
        if found.state != "ok":
            return


def _storage(config: Path) -> Check:
    """Check the storage that a configuration names."""
    from polarmap.executors.lithops_internals import end
    from polarmap.executors.lithops_jobs import open_functions, open_storage

    try:
        functions = open_functions(config)
    except ExecutorError as error:
        return Check("Lithops", "bad", one_line(error), "are you logged in there?")
    key, data = f"polarmap/{uuid.uuid4().hex}/probe", os.urandom(1024)
    try:
        store = ObjectStore(open_storage(functions))
        began = time.monotonic()
        store.put(key, data)
        if store.get(key) != data:
            raise StorageError(f"{store.name} has other bytes than were stored")
        store.delete([key])
        seconds = time.monotonic() - began
    except StorageError as error:
        return Check("storage", "bad", one_line(error), "check endpoint, bucket and credentials")
    finally:
        end(functions)
    return Check("storage", "ok", f"put, get and delete of 1 KiB in {1e3 * seconds:.0f} ms")


def _map(executor: Any, timeout: float) -> Check:
    """Check a coded map whose right result is known."""
    began = time.perf_counter()
    y = _product(executor, timeout)
    seconds = time.perf_counter() - began
    if not np.array_equal(y.concatenate(), A @ X):
        return Check("coded map", "bad", "the result is wrong", "please report this")
    failed = [task for task in y.report.tasks if task.failures]
    return Check(
        "coded map",
        "note" if failed else "ok",
        f"{BLOCKS} blocks in {TASKS} tasks ({y.report.executor}), right, in {seconds:.2f} s",
        f"{len(failed)} of its workers failed: {failed[0].failures[-1]}" if failed else "",
    )


def _kept_workers(config: Path | None, timeout: float) -> Check:
    """Check how long maps take on workers that stay: the first one, and those after it."""
    seconds = []
    with Pool(config) as pool:
        for _ in range(1 + LATER_MAPS):
            began = time.perf_counter()
            _product(pool, timeout)
            seconds.append(time.perf_counter() - began)
        return _speed(pool.name, config is None, seconds[0], median(seconds[1:]))


def _product(executor: Any, timeout: float) -> CodedResult[Any]:
    """A X as one coded map."""
    result: CodedResult[Any] = coded_map(
        operator.methodcaller("dot", X),
        A,
        blocks=BLOCKS,
        tasks=TASKS,
        executor=executor,
        timeout=timeout,
        progress=False,
    )
    return result


def _speed(place: str, is_here: bool, first: float, later: float) -> Check:
    """Judge the seconds of a first map, which starts the workers, and of later ones, which find them.

    >>> print(_speed("processes here", True, 0.4, 0.002))
    ok    kept workers: processes here: the first map, which starts them, takes 0.40 s, later ones 2.0 ms
    """
    found = f"{place}: the first map, which starts them, takes {first:.2f} s, later ones {1e3 * later:.1f} ms"
    if later <= SLOW_MAP and (first <= SLOW_START or not is_here):
        return Check("kept workers", "ok", found)
    busy, cores = os.getloadavg()[0], available_cores()
    if busy > cores:
        advice = f"{busy:.1f} processes want the {cores} cores of this machine: try again when it is free"
    elif not is_here:
        advice = "workers that reach this machine by TCP are fastest, next those with a storage like Redis"
    elif later > SLOW_MAP:
        advice = "try executor=ThreadPoolExecutor(...), which starts no process, and please report this"
    else:
        advice = "their start is mostly imports, from a slow disk it seems: let them stay, Pool(idle=600)"
    return Check("kept workers", "note", found, advice)
