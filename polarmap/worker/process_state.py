"""What f may change in its process for longer than its map: set back, or found to have changed.

Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import locale
import os
import random
import signal
import socket
import sys
import threading
import warnings
from _signal import getsignal  # type: ignore[import-not-found]  # signal.getsignal takes twenty times as long
from collections.abc import Callable
from typing import Any

import numpy as np

resource: Any
try:
    import resource
except ImportError:  # Windows
    resource = None

# Whose names no f may change: what others' functions and this program use most.
MODULES = ("builtins", "math", "numpy", "numpy.linalg", "os", "pickle", "sys", "threading", "time")
SIGNALS = tuple(signal.valid_signals())
TIMERS = tuple(getattr(signal, name) for name in dir(signal) if name.startswith("ITIMER_"))
LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
WANTS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)  # of descriptors, memory, threads
SEED_BYTES = 16


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _set_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()  # forgets, too, which warnings were given
    warnings.filters[:] = filters  # type: ignore[index]


# What can be set back of a process: what gets it, and what sets it.
SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (_umask, os.umask),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (sys.getswitchinterval, sys.setswitchinterval),
    (sys.gettrace, sys.settrace),
    (sys.getprofile, sys.setprofile),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
    (lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
    (lambda: list(warnings.filters), _set_filters),
    (gc.isenabled, lambda is_on: gc.enable() if is_on else gc.disable()),
    (gc.get_threshold, lambda numbers: gc.set_threshold(*numbers)),
    (np.geterr, lambda kinds: np.seterr(**kinds)),
    (np.get_printoptions, lambda options: np.set_printoptions(**options)),
)


class ProcessState:
    """That of a worker's process as it was before it ran any f: set back, or found to have changed.

    Imports, caches and open files are no change: they are what a worker is kept for.
    """

    def __init__(self) -> None:
        self._settings = [get() for get, _ in SETTINGS]
        self._modules = {name: sys.modules[name] for name in MODULES if name in sys.modules}
        self._names = {name: dict(vars(module)) for name, module in self._modules.items()}
        self._threads = threading.active_count()
        self._fixed = _fixed()

    def restore(self) -> str:
        """Set back what can be; what cannot be and has changed, empty if nothing has."""
        try:
            changed = self._changed_names() or self._changed_rest()
            if not changed:
                self._set_back()
        except Exception as error:  # f has taken away even what tells this
            return f"what tells its state: {type(error).__name__}: {error}"
        return changed

    def _set_back(self) -> None:
        for (get, set_back), before in zip(SETTINGS, self._settings):
            if get() != before:
                set_back(before)
        faulthandler.cancel_dump_traceback_later()
        random.seed()
        seed_numpy()

    def _changed_names(self) -> str:
        """Modules of which something was replaced or removed; what was added is no harm."""
        for name, module in self._modules.items():
            before, now = self._names[name], vars(module)
            if sys.modules.get(name) is not module:
                return f"module {name}"
            if now != before:
                for attribute, value in before.items():
                    if attribute not in now or now[attribute] is not value:
                        return f"{name}.{attribute}"
                self._names[name] = dict(now)
        return ""

    def _changed_rest(self) -> str:
        if threading.active_count() > self._threads:
            return "its threads"
        fixed = _fixed()
        if fixed != self._fixed:
            return ", ".join(name for name, value in fixed.items() if value != self._fixed[name])
        return "" if _has_descriptors() else "its free descriptors"


def _fixed() -> dict[str, Any]:
    """What a process cannot always set back once it has changed."""
    return {
        "its signal handlers": [getsignal(number) for number in SIGNALS],
        "its blocked signals": _told(signal, "pthread_sigmask", getattr(signal, "SIG_BLOCK", 0), ()),
        "its timers": [signal.getitimer(timer) != (0.0, 0.0) for timer in TIMERS],
        "faulthandler": faulthandler.is_enabled(),
        "its limits": [resource.getrlimit(limit) for limit in LIMITS],
        "its standard streams": [_file(descriptor) for descriptor in range(3)],
        "its root": _file("/"),
        "its user": [_told(os, name) for name in ("getuid", "geteuid", "getgid", "getegid")],
        "its process group": _told(os, "getpgrp"),
        "its priority": _told(os, "getpriority", getattr(os, "PRIO_PROCESS", 0), 0),
        "its cores": _told(os, "sched_getaffinity", 0),
    }


def _told(module: Any, name: str, *arguments: Any) -> Any:
    """What a function of the system says; None where it has none."""
    return getattr(module, name)(*arguments) if hasattr(module, name) else None


def _file(path: str | int) -> tuple[int, int] | None:
    """Which file that is."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _has_descriptors() -> bool:
    """Whether half of those that a process may have are free."""
    if resource is None:
        return True
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    return bool(most == resource.RLIM_INFINITY or lowest < most // 2)


def seed_numpy() -> None:
    """Let numpy's global generator draw numbers that no other process draws; it may not be imported."""
    if "numpy.random" in sys.modules:
        seed = np.frombuffer(os.urandom(SEED_BYTES), np.uint32)
        np.random.seed(seed)  # noqa: NPY002


def is_for_want(error: BaseException) -> bool:
    """Whether an error tells that the process has no memory, descriptors or threads left.

    >>> is_for_want(OSError(errno.EMFILE, "Too many open files")), is_for_want(FileNotFoundError(2, "x"))
    (True, False)
    """
    if isinstance(error, OSError):
        return error.errno in WANTS
    return isinstance(error, MemoryError) or "can't start new thread" in str(error)
