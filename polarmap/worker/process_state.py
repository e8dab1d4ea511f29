"""Restore process state that a user's function has changed, or report a change that cannot be undone.

A persistent worker does this between jobs, so that each function runs as if it were the first one in the
process. This module runs on workers, so it imports at most numpy.
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

# If a user function replaces an attribute of one of these modules, its worker is not reused. These are the
# modules that later functions and polarmap itself use most.
GUARDED_MODULES = ("builtins", "math", "numpy", "numpy.linalg", "os", "pickle", "sys", "threading", "time")
SIGNALS = tuple(signal.valid_signals())
TIMERS = tuple(getattr(signal, name) for name in dir(signal) if name.startswith("ITIMER_"))
RESOURCE_LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
# Error numbers that mean that a process is out of file descriptors, memory or threads.
EXHAUSTION_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
SEED_BYTES = 16  # number of random bytes that seed numpy's random generator


def _get_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _set_warning_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()  # Also show warnings again that have been shown before.
    warnings.filters[:] = filters  # type: ignore[index]


# Process settings that can be restored, as pairs of a getter and a setter.
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
    """Saves the state of a worker process before it runs any user function, and restores it later.

    Imported modules, caches and open files are kept, because this makes later jobs faster.
    """

    def __init__(self) -> None:
        self._original_settings = [get_value() for get_value, _ in RESTORABLE_SETTINGS]
        self._guarded_modules = {name: sys.modules[name] for name in GUARDED_MODULES if name in sys.modules}
        self._original_names = {name: dict(vars(module)) for name, module in self._guarded_modules.items()}
        self._n_threads = threading.active_count()
        self._unrestorable_state = _get_unrestorable_state()

    def restore_or_describe_change(self) -> str:
        """Restore the original state of this process, and return "" on success.

        If a user function has changed something that cannot be restored, restore nothing, and return the name
        of what has changed, such as "os.getcwd" or "its threads".
        """
        try:
            change = self._find_changed_module_attribute() or self._find_unrestorable_change()
            if not change:
                self._restore_settings()
        except Exception as error:  # A user function may have replaced functions that this check needs.
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
        """Return the name of a module or module attribute that a user function has replaced or removed.

        Only GUARDED_MODULES are checked. Return "" if they are unchanged.
        """
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
    """Return the parts of the process state that cannot always be restored.

    The keys of the dict describe these parts in messages, for example "its signal handlers".
    """
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
    """Call a function of a module, or return None if the module has no such function on this system."""
    return getattr(module, function_name)(*arguments) if hasattr(module, function_name) else None


def _get_file_identity(path: str | int) -> tuple[int, int] | None:
    """Return the device and inode of a path or file descriptor, or None if there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _has_free_descriptors() -> bool:
    """Return whether roughly half or more of this process's file descriptors are still free."""
    if resource is None:
        return True
    max_descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free_fd = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free_fd)
    return bool(max_descriptors == resource.RLIM_INFINITY or lowest_free_fd < max_descriptors // 2)


def seed_numpy() -> None:
    """Seed numpy's global random generator with random bytes, so that processes draw different numbers.

    Do nothing if `numpy.random` has not been imported.
    """
    if "numpy.random" in sys.modules:
        seed = np.frombuffer(os.urandom(SEED_BYTES), np.uint32)
        np.random.seed(seed)  # noqa: NPY002


def is_resource_exhaustion(error: BaseException) -> bool:
    """Return whether an error means that this process is out of memory, file descriptors or threads.

    >>> is_resource_exhaustion(OSError(errno.EMFILE, "Too many open files"))
    True
    >>> is_resource_exhaustion(FileNotFoundError(2, "x"))
    False
    """
    if isinstance(error, OSError):
        return error.errno in EXHAUSTION_ERRNOS
    return isinstance(error, MemoryError) or "can't start new thread" in str(error)
