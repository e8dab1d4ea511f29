"""Side effects of f on its worker process: the next map on the same pool must not see them."""

from __future__ import annotations

import contextlib
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_processes import PATIENCE, A, X, check

import polarmap
from polarmap import Pool
from polarmap.executors.block_store import INLINE_BLOCK_BYTES

DEEDS = {
    "leaks all descriptors": """
        import os, sys
        sys.leaked = []
        try:
            while True:
                sys.leaked.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
    """,
    "limits its open files": "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
    "allows no memory": "resource.setrlimit(resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))",
    "limits its memory": "resource.setrlimit(resource.RLIMIT_AS, (1 << 27, 1 << 27))",
    "limits its processes and threads": "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))",
    "limits its files": "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))",
    "breaks numpy": "del np.frombuffer; np.empty = None",
    "replaces a function of numpy": "np.dot = lambda *_: 1 / 0; np.linalg.norm = np.dot",
    "replaces a builtin": "import builtins; builtins.sorted = lambda items: 1 / 0",
    "replaces a function of os": "os.path.exists = os.getpid = os.open = lambda *_: 7",
    "stops the clock": "import time; time.monotonic = time.time = lambda: 0.0",
    "forgets numpy": "import sys; sys.modules['numpy'] = None",
    "handles signals": "signal.signal(signal.SIGTERM, lambda *_: None)",
    "ignores signals": """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
    """,
    "restores a signal": "signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
    "blocks signals": "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])",
    "sets an alarm": "signal.alarm(600)",
    "enables faulthandler": "import faulthandler; faulthandler.enable()",
    "closes its standard streams": "os.close(0); os.close(1); os.close(2)",
    "replaces its standard streams": "import io, sys; sys.stdout = sys.stderr = io.StringIO()",
    "redirects its output": "os.dup2(os.open('/proc/self/status', os.O_RDONLY), 1)",
    "closes its sockets": "os.closerange(3, 200)",
    "changes its working directory": "os.chdir('/')",
    "enters a deleted folder": """
        import tempfile
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
    """,
    "changes its environment": "os.environ['HOSTILE'] = '1'; del os.environ['PATH']",
    "replaces its environment": "os.environ = {}",
    "changes where modules are found": "import sys; sys.path.insert(0, '/hostile')",
    "replaces where modules are found": "import sys; sys.path = ['/hostile']",
    "changes its umask": "os.umask(0o777)",
    "changes its locale": """
        import locale
        locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C")
    """,
    "changes the depth of recursion": "import sys; sys.setrecursionlimit(100_000)",
    "turns warnings into errors": "import warnings; warnings.simplefilter('error')",
    "turns numpy's errors on": "np.seterr(all='raise'); np.set_printoptions(precision=1)",
    "turns the garbage collector off": "import gc; gc.disable()",
    "installs profilers": "import sys; sys.setprofile(lambda *_: None); sys.settrace(lambda *_: None)",
    "seeds random generators": "import random; random.seed(0); np.random.seed(0)",
    "leaves a thread": """
        import threading
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    """,
    "leaves threads": """
        import threading
        for _ in range(50):
            threading.Thread(target=threading.Event().wait).start()
    """,
    "takes a lower priority": "os.nice(5)",
    "limits its cores": "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])",
    "exits": "import sys; sys.exit(3)",
    "exits at once": "os._exit(3)",
}


def make_f_with_side_effect(deed: str) -> Callable[[Any], Any]:
    """Return a function that computes a product and, on workers only, executes the source code `deed`."""
    driver, x = os.getpid(), X
    program = "import os, resource, signal\nimport numpy as np\n" + textwrap.dedent(deed)

    def f(block: Any) -> Any:
        y = block @ x
        if os.getpid() != driver:
            exec(program, {})
        return y

    return f


def make_process_describer() -> Callable[[Any], str]:
    """Return a function that describes the state of its process as text, without random parts."""

    def f(_: Any) -> str:
        import gc
        import locale
        import random
        import resource
        import signal
        import sys
        import threading
        import time
        import warnings

        handlers = [str(signal.getsignal(number)) for number in range(1, 65)]
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        seeded = (
            random.Random(0).random() == random.random(),
            np.random.RandomState(0).rand() == np.random.rand(),  # noqa: NPY002
        )
        umask = os.umask(0)
        os.umask(umask)
        values = [np.dot([3.0], [4.0]), np.linalg.norm([3.0, 4.0]), np.empty(3).size, sorted([2, 1])]
        around = (
            os.getcwd(),
            sorted(item for item in os.environ.items() if item[0] != "PYTEST_CURRENT_TEST"),
            sys.path,
        )
        streams = (
            [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in range(3)],
            type(sys.stdout),
            type(sys.stderr),
        )
        traced = sys.gettrace(), sys.getprofile(), sys.getrecursionlimit(), gc.isenabled()
        limits = [resource.getrlimit(number) for number in range(16)]
        settings = (
            np.geterr(),
            str(np.array([1 / 3])),
            locale.setlocale(locale.LC_ALL),
            warnings.filters,
        )
        few = (
            len(os.listdir("/proc/self/fd")) < 50,
            threading.active_count(),
            time.time() > 1e9,
            os.path.exists("/"),
        )
        process = os.nice(0), os.sched_getaffinity(0), signal.getitimer(signal.ITIMER_REAL)
        state = (
            handlers,
            blocked,
            seeded,
            umask,
            values,
            around,
            streams,
            traced,
            limits,
            settings,
            few,
            process,
        )
        return "\n".join(map(str, state))

    return f


def collect_results(pool: Any, f: Callable[[Any], Any], count: int = 4) -> list[Any]:
    """Return the results of `count` calls of f on any workers. Losing a task is an error."""
    return list(
        polarmap.hedged_map(
            f, [X] * count, executor=pool, backups=0, retries=0, timeout=PATIENCE, progress=False
        )
    )


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(workers=2) as pool:
        yield pool


@pytest.fixture(scope="module")
def pristine() -> str:
    with Pool(workers=1) as fresh:
        [state] = collect_results(fresh, make_process_describer(), 1)
    return str(state)


@pytest.mark.parametrize("deed", DEEDS)
def test_next_map_does_not_see_side_effects_of_f(deed: str, pool: Pool, pristine: str) -> None:
    returned = list[Any]()
    with contextlib.suppress(Exception, SystemExit):  # some deeds make f raise an exception
        returned.extend(collect_results(pool, make_f_with_side_effect(DEEDS[deed])))
    assert all(block == X @ X for block in returned)
    assert not any(task.failures for task in check(pool, retries=0).report.tasks)
    for state in collect_results(pool, make_process_describer()):
        assert state.splitlines() == pristine.splitlines()


def test_ordinary_f_keeps_its_worker_and_imported_modules(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()

    def f(block: Any) -> Any:
        import concurrent.futures
        import decimal
        import random
        import subprocess
        import sys
        import warnings

        import scipy.linalg
        import scipy.sparse

        log = vars(sys).setdefault("_log", open(path, "a"))  # noqa: SIM115
        print(random.random(), file=log)
        warnings.warn("so it goes", UserWarning, stacklevel=1)
        np.seterr(over="raise")
        subprocess.run(["true"], check=True)
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            list(threads.map(decimal.Decimal, range(3)))
        scipy.linalg.svd(block @ block.T)
        os.environ["MINE"] = os.getcwd()
        return float(os.getpid())

    rows = A[:2]

    maps = [polarmap.hedged_map(f, [rows] * 6, executor=pool, timeout=PATIENCE) for _ in range(8)]
    workers = {float(value) for results in maps for value in results}
    assert len(workers) <= 4  # eight maps would use at least 8 workers if each map replaced them


@pytest.mark.parametrize("deed", ["leaks all descriptors", "forgets numpy"])
def test_f_returns_its_result_after_side_effects(deed: str) -> None:
    with Pool(workers=1) as pool:
        assert collect_results(pool, make_f_with_side_effect(DEEDS[deed]), 1) == [X @ X]


UNREADABLE_BLOCKS = {
    "descriptors": ("Too many open files", DEEDS["leaks all descriptors"]),
    "numpy": ("AttributeError", "del np.frombuffer"),
}


@pytest.mark.parametrize("want", UNREADABLE_BLOCKS)
def test_worker_that_cannot_read_a_block_is_replaced(want: str, tmp_path: Path) -> None:
    # The report must name a lost worker and the reason, and not a failure of f.
    message, deed = UNREADABLE_BLOCKS[want]
    program = "import os\nimport numpy as np\n" + textwrap.dedent(deed)

    def f(block: Any) -> Any:
        y = block[:5].sum()
        try:
            (tmp_path / "done").touch(exist_ok=False)
        except FileExistsError:
            return y
        exec(program, {})
        return y

    rows = np.pad(A, ((0, 0), (0, INLINE_BLOCK_BYTES)))  # smaller blocks are sent with their tasks
    with Pool(workers=1) as pool:
        results = polarmap.hedged_map(f, [*rows], executor=pool, backups=0, retries=1, timeout=PATIENCE)
    np.testing.assert_allclose([*results], A.sum(axis=1))
    failures = [failure for task in results.report.tasks for failure in task.failures]
    [lost] = [failure for failure in failures if "WorkerLost" in failure]
    assert re.match(f"WorkerLost: its worker could not read its block: .*{message}", lost)
