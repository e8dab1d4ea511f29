"""Restore the process state that an f has changed, or report a change that cannot be restored.

A persistent worker calls this between jobs, so that each f finds a process as if it were the first one.

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
from _signal import getsignal  # type: ignore[import-not-found]  # signal.getsignal is 20 times slower
from collections.abc import Callable
from typing import Any

import numpy as np

resource: Any
try:
    import resource
except ImportError:  # Windows
    resource = None

# Modules whose attributes must not be replaced: user functions and polarmap use them most.
GUARDED_MODULES = ("builtins", "math", "numpy", "numpy.linalg", "os", "pickle", "sys", "threading", "time")
SIGNALS = tuple(signal.valid_signals())
TIMERS = tuple(getattr(signal, name) for name in dir(signal) if name.startswith("ITIMER_"))
RESOURCE_LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
# Errors of a process that is out of file descriptors, memory or threads.
EXHAUSTION_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
SEED_BYTES = 16  # bytes of entropy that seed the random generator of numpy


def _get_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _set_warning_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()  # Also clears the record of warnings already shown.
    warnings.filters[:] = filters  # type: ignore[index]


# Settings that can be restored: the function that reads each, and the function that sets it.
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
    """The state of a worker's process before it has run any f.

    Imports, caches and open files do not count as changes: a persistent worker is meant to keep them.
    """

    def __init__(self) -> None:
        self._original_settings = [get_value() for get_value, _ in RESTORABLE_SETTINGS]
        self._guarded_modules = {name: sys.modules[name] for name in GUARDED_MODULES if name in sys.modules}
        self._original_names = {name: dict(vars(module)) for name, module in self._guarded_modules.items()}
        self._n_threads = threading.active_count()
        self._unrestorable_state = _get_unrestorable_state()

    def restore_or_describe_change(self) -> str:
        """Restore the settings of the process.

        Return the name of the state that has changed and cannot be restored, or "" if nothing
        has. No setting is restored in the former case.
        """
        try:
            change = self._find_changed_module_attribute() or self._find_unrestorable_change()
            if not change:
                self._restore_settings()
        except Exception as error:  # f has broken a function that this check calls.
            return f"its state could not be checked: {type(error).__name__}: {error}"
        return change

    def _restore_settings(self) -> None:
        for (get_value, set_value), original in zip(RESTORABLE_SETTINGS, self._original_settings):
            if get_value() != original:
                set_value(original)
        faulthandler.cancel_dump_traceback_later()
        random.seed()
        seed_numpy()

    def _find_changed_module_attribute(self) -> str:
        """Return the name of a module or attribute that was replaced or removed, or "" if none was."""
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
    """Return state that a process cannot always restore, by the name that messages use."""
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
    """Call a function of a module and return its result, or None if the module does not have it."""
    return getattr(module, function_name)(*arguments) if hasattr(module, function_name) else None


def _get_file_identity(path: str | int) -> tuple[int, int] | None:
    """Return the device and inode of a file, or None if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _has_free_descriptors() -> bool:
    """Return whether at least half of the file descriptors that the process may open are free."""
    if resource is None:
        return True
    max_descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free_fd = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free_fd)
    return bool(max_descriptors == resource.RLIM_INFINITY or lowest_free_fd < max_descriptors // 2)


def seed_numpy() -> None:
    """Seed numpy's global generator with random bytes, so that no two processes draw the same numbers.

    Do nothing if `numpy.random` is not imported.
    """
    if "numpy.random" in sys.modules:
        seed = np.frombuffer(os.urandom(SEED_BYTES), np.uint32)
        np.random.seed(seed)  # noqa: NPY002


def is_resource_exhaustion(error: BaseException) -> bool:
    """Return whether an error means that the process is out of memory, file descriptors or threads.

    >>> is_resource_exhaustion(OSError(errno.EMFILE, "Too many open files"))
    True
    >>> is_resource_exhaustion(FileNotFoundError(2, "x"))
    False
    """
    if isinstance(error, OSError):
        return error.errno in EXHAUSTION_ERRNOS
    return isinstance(error, MemoryError) or "can't start new thread" in str(error)
