"""Give every session separate temporary and home directories, and remove both afterwards.

Lithops keeps its storage in the temporary directory and its cache and configuration in the home directory. It
reads both when it is imported, and removes an existing storage folder. Two sessions must therefore not share
these directories, nor may a session use the directories of its user.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import pytest
import session
from hypothesis import HealthCheck, settings
from programs import Interpreter
from servers import RedisServer, S3Server, Server

# A busy machine must not fail a test. If CI is set, this profile extends Hypothesis' profile for CI, which
# draws the same examples each time.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

LITHOPS_SETTINGS = ("LITHOPS_CONFIG", "LITHOPS_CONFIG_FILE")


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    session.take_signals()
    # Dask's profiler reads the frames of all threads, which may hang CPython 3.11 (gh-106883).
    os.environ["DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"] = "False"
    # A killed worker of Dask is restarted or waited for: by default, Dask would drop it after 15 s.
    os.environ["DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD"] = "forkserver"
    os.environ["DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT"] = "300 s"
    # The priority -200 comes after Lithops' exit handler, which writes into the folder, and after
    # multiprocessing (-100), which removes its own folder there.
    if "PYTEST_XDIST_WORKER" in os.environ:
        # The folder is next to that of the session, not below it, since paths of sockets must be short.
        whole = Path(tempfile.gettempdir()).parent
        own = Path(tempfile.mkdtemp(prefix=f"{whole.name}-", dir=whole.parent))
        Finalize(None, shutil.rmtree, (own, True), exitpriority=-200)
    else:
        own = Path(tempfile.mkdtemp(prefix="polarmap-tests-"))
        Finalize(None, session.end, (session.keep(own), os.getpid()), exitpriority=-200)
    for variable, name in {"TMPDIR": "tmp", "HOME": "home"}.items():
        (own / name).mkdir()
        os.environ[variable] = str(own / name)
    for variable in LITHOPS_SETTINGS:
        os.environ.pop(variable, None)
    tempfile.tempdir = None  # Makes tempfile read TMPDIR again.
    keep_compiled_modules()
    say_when_ended()
    # The fork server imports once what each process of a pool would import, including the main module
    # (pytest).
    multiprocessing.set_forkserver_preload(["pytest", "polarmap.worker.future_tasks", "distributed"])
    # Collection is off until all modules are imported and tests collected, since these hardly create garbage.
    gc.disable()


def say_when_ended() -> None:
    """Replace os._exit by a function that reports when a test ends this process.

    Without the report, code of workers that calls os._exit here would end the session with code 0, like a
    success.
    """
    session_process, end = os.getpid(), os._exit

    def exit_with_report(code: int) -> None:
        if os.getpid() == session_process and not code and "PYTEST_XDIST_WORKER" not in os.environ:
            os.write(2, b"\nA test let code of workers end this process.\n")
            code = 70
        end(code)

    # The replacement is pickled by the name os._exit.
    exit_with_report.__module__, exit_with_report.__qualname__ = os.__name__, "_exit"
    os._exit = exit_with_report


def keep_compiled_modules() -> None:
    """Write bytecode, so that not every process that a test starts compiles the whole package again."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the programs of pages and examples first: one process runs them all and imports everything once."""
    items.sort(key=lambda item: "interpreter" not in getattr(item, "fixturenames", ()))


def pytest_collection_finish() -> None:
    """Limit linear algebra in this process to one thread, now that its libraries are loaded.

    Programs that tests start are not affected. Sessions and workers share the cores, and threads that wait
    for each other spin: a small scikit-learn fit took twenty times the processor time.
    """
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)
    gc.enable()
    # Modules and tests live until the end; unfrozen, each collection would visit half a million objects.
    gc.freeze()


def running(make: Callable[[], Server]) -> Iterator[Server]:
    """Yield a server that has started, at the second attempt if another process has taken a port."""
    server = make()
    try:
        try:
            server.start()
        except AssertionError:
            server.close()
            server = make()
            server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start SeaweedFS on loopback. A test that kills the server starts it again."""
    yield from running(lambda: S3Server(tmp_path_factory.mktemp("weed")))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start Redis on loopback. A test that kills the server starts it again."""
    yield from running(lambda: RedisServer(tmp_path_factory.mktemp("redis")))


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    """Start the interpreter that runs the programs of pages and examples."""
    with contextlib.closing(Interpreter()) as one:
        yield one


@pytest.fixture(params=["threads", "processes", "localhost"])
def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Provide each kind of workers on this machine."""
    from plain import executor_of_kind

    with executor_of_kind(request.param) as one:
        yield one


@pytest.fixture(autouse=True)
def nothing_is_known_of_functions() -> Iterator[None]:
    """Clear the verified properties of functions, so that no test profits from the map of another."""
    from polarmap.driver.function_properties import VERIFIED_PROPERTIES

    VERIFIED_PROPERTIES.clear()
    yield
    VERIFIED_PROPERTIES.clear()


@pytest.fixture(params=["s3", "redis"])
def server(request: pytest.FixtureRequest) -> Any:
    """Provide a server of each kind of object storage."""
    return request.getfixturevalue(f"{request.param}_server")


@pytest.fixture
def config(server: Server, tmp_path: Path) -> Iterator[Path]:
    """Provide a Lithops configuration with that storage, which is empty before and after the test."""
    from polarmap.arrays.stores import open_store

    path = server.config(tmp_path / "lithops.yaml")
    store = open_store(path)
    yield path
    store.delete(store.keys("polarmap/"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests marked every_store on a folder and on both kinds of object storage."""
    if "store" in metafunc.fixturenames and metafunc.definition.get_closest_marker("every_store"):
        metafunc.parametrize("store", ["folder", "s3", "redis"], indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Provide an empty store: a folder, or the kind that a test parametrizes."""
    from polarmap.arrays.stores import open_store
    from polarmap.storage.folder import FolderStore

    kind = getattr(request, "param", "folder")
    if kind == "folder":
        yield FolderStore(tmp_path / "store")
        return
    bucket_store = open_store(request.getfixturevalue(f"{kind}_server").config(tmp_path / "lithops.yaml"))
    yield bucket_store
    bucket_store.delete(bucket_store.keys("polarmap/"))
