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
GUARDED_MODULES = ("builtins", "math", "numpy", "numpy.linalg", "os", "pickle", "sys", "threading", "time")
SIGNALS = tuple(signal.valid_signals())
TIMERS = tuple(getattr(signal, name) for name in dir(signal) if name.startswith("ITIMER_"))
RESOURCE_LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
# of descriptors, memory, threads
EXHAUSTION_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
SEED_BYTES = 16


def _get_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _set_warning_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()  # forgets, too, which warnings were given
    warnings.filters[:] = filters  # type: ignore[index]


# What can be set back of a process: what gets it, and what sets it.
RESTORABLE_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (_get_umask, os.umask),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (sys.getswitchinterval, sys.setswitchinterval),
    (sys.gettrace, sys.settrace),
    (sys.getprofile, sys.setprofile),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
    (lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
    (lambda: list(warnings.filters), _set_warning_filters),
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
        self._original_settings = [get_value() for get_value, _ in RESTORABLE_SETTINGS]
        self._guarded_modules = {name: sys.modules[name] for name in GUARDED_MODULES if name in sys.modules}
        self._original_names = {name: dict(vars(module)) for name, module in self._guarded_modules.items()}
        self._n_threads = threading.active_count()
        self._unrestorable_state = _get_unrestorable_state()

    def restore_or_describe_change(self) -> str:
        """Set back what can be; what cannot be and has changed, empty if nothing has."""
        try:
            change = self._find_changed_module_attribute() or self._find_unrestorable_change()
            if not change:
                self._restore_settings()
        except Exception as error:  # f has taken away even what tells this
            return f"what tells its state: {type(error).__name__}: {error}"
        return change

    def _restore_settings(self) -> None:
        for (get_value, set_value), original in zip(RESTORABLE_SETTINGS, self._original_settings):
            if get_value() != original:
                set_value(original)
        faulthandler.cancel_dump_traceback_later()
        random.seed()
        seed_numpy()

    def _find_changed_module_attribute(self) -> str:
        """Modules of which something was replaced or removed; what was added is no harm."""
        for name, module in self._guarded_modules.items():
            original_names, current_names = self._original_names[name], vars(module)
            if sys.modules.get(name) is not module:
                return f"module {name}"
            if current_names != original_names:
                for attribute, value in original_names.items():
                    if attribute not in current_names or current_names[attribute] is not value:
                        return f"{name}.{attribute}"
                self._original_names[name] = dict(current_names)
        return ""

    def _find_unrestorable_change(self) -> str:
        if threading.active_count() > self._n_threads:
            return "its threads"
        current_state = _get_unrestorable_state()
        if current_state != self._unrestorable_state:
            original = self._unrestorable_state
            return ", ".join(name for name, value in current_state.items() if value != original[name])
        return "" if _has_free_descriptors() else "its free descriptors"


def _get_unrestorable_state() -> dict[str, Any]:
    """What a process cannot always set back once it has changed."""
    return {
        "its signal handlers": [getsignal(signal_number) for signal_number in SIGNALS],
        "its blocked signals": _call_if_present(
            signal, "pthread_sigmask", getattr(signal, "SIG_BLOCK", 0), ()
        ),
        "its timers": [signal.getitimer(timer) != (0.0, 0.0) for timer in TIMERS],
        "faulthandler": faulthandler.is_enabled(),
        "its limits": [resource.getrlimit(limit) for limit in RESOURCE_LIMITS],
        "its standard streams": [_get_file_identity(fd) for fd in range(3)],
        "its root": _get_file_identity("/"),
        "its user": [_call_if_present(os, name) for name in ("getuid", "geteuid", "getgid", "getegid")],
        "its process group": _call_if_present(os, "getpgrp"),
        "its priority": _call_if_present(os, "getpriority", getattr(os, "PRIO_PROCESS", 0), 0),
        "its cores": _call_if_present(os, "sched_getaffinity", 0),
    }


def _call_if_present(module: Any, function_name: str, *arguments: Any) -> Any:
    """What a function of the system says; None where it has none."""
    return getattr(module, function_name)(*arguments) if hasattr(module, function_name) else None


def _get_file_identity(path: str | int) -> tuple[int, int] | None:
    """Which file that is."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _has_free_descriptors() -> bool:
    """Whether half of those that a process may have are free."""
    if resource is None:
        return True
    max_descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free_fd = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free_fd)
    return bool(max_descriptors == resource.RLIM_INFINITY or lowest_free_fd < max_descriptors // 2)


def seed_numpy() -> None:
    """Let numpy's global generator draw numbers that no other process draws; it may not be imported."""
    if "numpy.random" in sys.modules:
        seed = np.frombuffer(os.urandom(SEED_BYTES), np.uint32)
        np.random.seed(seed)  # noqa: NPY002


def is_resource_exhaustion(error: BaseException) -> bool:
    """Whether an error tells that the process has no memory, descriptors or threads left.

    >>> is_resource_exhaustion(OSError(errno.EMFILE, "Too many open files"))
    True
    >>> is_resource_exhaustion(FileNotFoundError(2, "x"))
    False
    """
    if isinstance(error, OSError):
        return error.errno in EXHAUSTION_ERRNOS
    return isinstance(error, MemoryError) or "can't start new thread" in str(error)
