"""Make the maps of this program visible to live views in a terminal, a notebook or a browser.

A program becomes visible with `progress="live"`, `Pool(dashboard=True)`, `polarmap.dashboard()`, or the
environment variable POLARMAP_LIVE=1. Until then, no other module of the live view is imported, and each map
only reads the variable `active_hub`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from polarmap.errors import trimmed_tracebacks

if TYPE_CHECKING:
    from polarmap.live.dashboard import DashboardServer
    from polarmap.live.hub import LiveHub
    from polarmap.live.snapshots import ExecutorSnapshot, WorkerSnapshot

ENVIRONMENT_VARIABLE = "POLARMAP_LIVE"

# The registry of this process's maps, from which live views read. None while the program is not visible.
active_hub: LiveHub | None = None

# Functions that a live view calls to list the persistent workers and the calls of each `polarmap.Executor`.
# They are called only while somebody watches the program.
worker_sources: list[Callable[[], list[WorkerSnapshot]]] = []
executor_sources: list[Callable[[], list[ExecutorSnapshot]]] = []

_lock = threading.Lock()
_n_activations = 0  # the number of calls of `activate` that `deactivate` has not yet undone
_is_permanent = False  # whether `activate_until_exit` has been called


def activate() -> LiveHub:
    """Make all maps that start from now on visible to live views, and return the hub that records them.

    A live view, such as `polarmap top` or the dashboard, shows maps while they run. Each call of this
    function must be followed by a call of `deactivate`, which makes the program invisible again when no other
    caller needs a view.
    """
    global active_hub, _n_activations
    with _lock:
        _n_activations += 1
        if active_hub is None:
            from polarmap.live.hub import LiveHub
            from polarmap.live.program_socket import start_program_server

            hub = LiveHub(worker_sources, executor_sources)
            start_program_server(hub)
            active_hub = hub
        return active_hub


def deactivate() -> None:
    """Undo one call of `activate`.

    When all calls have been undone, the program is no longer visible to live views.
    """
    global active_hub, _n_activations
    with _lock:
        _n_activations -= 1
        if _n_activations == 0 and active_hub is not None:
            from polarmap.live.program_socket import stop_program_server

            active_hub = None
            stop_program_server()


def activate_until_exit() -> LiveHub:
    """Make all maps that start from now on visible to live views until the program exits.

    Return the hub that records the maps. If the function is called again, it only returns the hub.
    """
    global _is_permanent
    hub = active_hub
    if hub is None or not _is_permanent:
        _is_permanent, hub = True, activate()
    return hub


@contextmanager
def dashboard(port: int = 0) -> Iterator[str]:
    """Show the maps of this program in a browser, as a page on this machine.

    Inside the `with` block, the page shows every map of the program, its workers and its fits. Only this
    machine can open the page, and only with the token in its URL.

    Parameters
    ----------
    port : int
        The TCP port on 127.0.0.1. By default, the system chooses a free one.

    Yields
    ------
    str
        The URL of the page.

    Raises
    ------
    ImportError
        If tornado is not installed. The message says how to install it.
    CodeError
        If `port` is not an integer between 0 and 65,535.
    OSError
        If the port is in use.

    Examples
    --------
    >>> import polarmap
    >>> with polarmap.dashboard() as url:  # doctest: +SKIP
    ...     print("Open", url)
    ...     y = polarmap.coded_map(f, A, blocks=24)
    """
    with trimmed_tracebacks:
        server = start_dashboard(port)
    try:
        yield server.url
    finally:
        stop_dashboard(server)


def start_dashboard(port: int = 0) -> DashboardServer:
    """Make the program visible to live views, and start the web server of its dashboard."""
    from polarmap.live.dashboard import DashboardServer

    hub = activate()
    try:
        server = DashboardServer(
            lambda: [hub.take_snapshot()],
            port,
            take_final_snapshots=lambda: [hub.take_snapshot(is_final=True)],
        )
        server.start()
    except BaseException:
        deactivate()
        raise
    return server


def stop_dashboard(server: DashboardServer) -> None:
    """Stop the web server of a dashboard, and call `deactivate` to make the program invisible again."""
    try:
        server.close()
    finally:
        deactivate()


def is_in_notebook() -> bool:
    """Return whether this process is the kernel of a Jupyter notebook."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_ipython is None else get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def _reset_after_fork() -> None:
    """Make a forked child process invisible to live views.

    The child process has none of the threads that serve the views and run the maps of its parent.
    """
    global active_hub, _lock, _n_activations, _is_permanent
    active_hub, _lock, _n_activations, _is_permanent = None, threading.Lock(), 0, False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
if os.environ.get(ENVIRONMENT_VARIABLE, "0") not in ("", "0"):
    activate_until_exit()
