"""Every session has its own temporary and home directory, both gone afterwards.

Lithops keeps its storage in the one and its cache and configuration in the other, reads both when
it is imported, and removes a storage folder it finds: two sessions must not share them, nor a
session with its user.
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

# A busy machine is no defect. Where CI is set, this is on top of Hypothesis' profile for it, which draws
# the same examples each time.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

LITHOPS_SETTINGS = ("LITHOPS_CONFIG", "LITHOPS_CONFIG_FILE")


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    session.take_signals()
    # Dask's profiler asks for the frames of all threads, in which CPython 3.11 may hang (gh-106883).
    os.environ["DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"] = "False"
    # A killed process of Dask's is back at once, or is waited for: after 15 s Dask would do without it.
    os.environ["DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD"] = "forkserver"
    os.environ["DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT"] = "300 s"
    # After Lithops' exit handler, which writes, and after the folder (-100) that multiprocessing has there.
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Beside that of its session, not in it: sockets have short paths only.
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
    tempfile.tempdir = None  # read TMPDIR again
    keep_compiled_modules()
    say_when_ended()
    # What each process of a pool imports, its main module (pytest) among it: once, and not in each.
    multiprocessing.set_forkserver_preload(["pytest", "polarmap.worker.future_tasks", "distributed"])
    gc.disable()  # until all is imported and collected, of which next to nothing is garbage


def say_when_ended() -> None:
    """Else code of workers that ends its process would end this one with code 0, as if all was well."""
    here, end = os.getpid(), os._exit

    def told(code: int) -> None:
        if os.getpid() == here and not code and "PYTEST_XDIST_WORKER" not in os.environ:
            os.write(2, b"\nA test let code of workers end this process.\n")
            code = 70
        end(code)

    told.__module__, told.__qualname__ = os.__name__, "_exit"  # pickled as the name that it has here
    os._exit = told


def keep_compiled_modules() -> None:
    """Otherwise each of the many processes that tests start compiles all of the package again."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Programs of pages and examples first: one process runs them, and its interpreter imports all once."""
    items.sort(key=lambda item: "interpreter" not in getattr(item, "fixturenames", ()))


def pytest_collection_finish() -> None:
    """One thread for linear algebra, now that its libraries are loaded; not in programs that tests start.

    Sessions and workers share the cores here, and threads that wait for each other spin: a small fit of
    scikit-learn's took twenty times the processor time.
    """
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)
    gc.enable()
    gc.freeze()  # modules and tests stay: else each collection of garbage goes through half a million objects


def running(make: Callable[[], Server]) -> Iterator[Server]:
    """Yield a server that has started. Another process may have taken a port of the first attempt."""
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
    """SeaweedFS on loopback. A test that kills it starts it again."""
    yield from running(lambda: S3Server(tmp_path_factory.mktemp("weed")))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Redis on loopback. A test that kills it starts it again."""
    yield from running(lambda: RedisServer(tmp_path_factory.mktemp("redis")))


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    """The interpreter that runs the programs of pages and examples."""
    with contextlib.closing(Interpreter()) as one:
        yield one


@pytest.fixture(params=["threads", "processes", "localhost"])
def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each kind of workers on this machine."""
    from plain import executor_of_kind

    with executor_of_kind(request.param) as one:
        yield one


@pytest.fixture(autouse=True)
def nothing_is_known_of_functions() -> Iterator[None]:
    """No test profits from what another one's map has found a function to be."""
    from polarmap.driver.function_properties import VERIFIED_PROPERTIES

    VERIFIED_PROPERTIES.clear()
    yield
    VERIFIED_PROPERTIES.clear()


@pytest.fixture(params=["s3", "redis"])
def server(request: pytest.FixtureRequest) -> Any:
    """A server of either kind of object storage."""
    return request.getfixturevalue(f"{request.param}_server")


@pytest.fixture
def config(server: Server, tmp_path: Path) -> Iterator[Path]:
    """A Lithops configuration with that storage, which is empty before and after."""
    from polarmap.arrays.stores import open_store

    path = server.config(tmp_path / "lithops.yaml")
    store = open_store(path)
    yield path
    store.delete(store.keys("polarmap/"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked every_store run on a folder and on both kinds of object storage."""
    if "store" in metafunc.fixturenames and metafunc.definition.get_closest_marker("every_store"):
        metafunc.parametrize("store", ["folder", "s3", "redis"], indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """An empty store: a folder, or the kind that a test asks for."""
    from polarmap.arrays.stores import open_store
    from polarmap.storage.folder import FolderStore

    kind = getattr(request, "param", "folder")
    if kind == "folder":
        yield FolderStore(tmp_path / "store")
        return
    found = open_store(request.getfixturevalue(f"{kind}_server").config(tmp_path / "lithops.yaml"))
    yield found
    found.delete(found.keys("polarmap/"))
