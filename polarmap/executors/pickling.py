"""How functions travel to workers elsewhere."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import cloudpickle

import polarmap.worker as worker_package
from polarmap.errors import CodeError

_registering = threading.Lock()
_pickling = 0  # threads that pickle what travels


def pickled(f: Any, place: str, by_value: bool = False) -> bytes:
    """f, and what comes with it, as bytes for a worker elsewhere; CodeError if it cannot travel to `place`.

    by_value : what runs on workers travels along.
    """
    try:
        with pickled_by_value() if by_value else contextlib.nullcontext():
            return bytes(cloudpickle.dumps(f))
    except Exception as error:
        raise CodeError(f"f cannot be pickled for {place}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def pickled_by_value() -> Iterator[None]:
    """Let what runs on the worker travel whole: a worker needs numpy, not polarmap.

    cloudpickle's register is one for all threads: the last to leave takes the entry out.
    """
    global _pickling
    with _registering:
        _pickling += 1
        cloudpickle.register_pickle_by_value(worker_package)
    try:
        yield
    finally:
        with _registering:
            _pickling -= 1
            if not _pickling:
                cloudpickle.unregister_pickle_by_value(worker_package)
