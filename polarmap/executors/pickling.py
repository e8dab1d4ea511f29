"""How functions travel to workers elsewhere."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import threading
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import CodeType, ModuleType
from typing import Any, ClassVar, NamedTuple

import cloudpickle

import polarmap.worker as worker_package
from polarmap.errors import CodeError
from polarmap.worker.pytree import block_of_runs, taking_large

_registering = threading.Lock()
_pickling = 0  # threads that pickle what travels

# What multiprocessing calls the main program in a child that it spawned: no worker can import that.
sys.modules.setdefault("__mp_main__", sys.modules["__main__"])  # as it does: cloudpickle is to know of it
cloudpickle.register_pickle_by_value(ModuleType("__mp_main__"))


class PickledFunction(NamedTuple):
    """A function as bytes, and the buffers of its arrays, which travel beside: they are not copied here."""

    pickled: bytes
    buffers: Sequence[memoryview]

    @property
    def size(self) -> int:
        """Bytes, nearly."""
        return len(self.pickled) + sum(map(len, self.buffers))

    def pieces(self) -> list[bytes | memoryview]:
        """Those of the block that stands for it, as `to_block` makes them."""
        return block_of_runs([self.pickled, *self.buffers])


def pickled(f: Any, place: str, by_value: bool = False, beside: Callable[[Any], Any] | None = None) -> bytes:
    """f, and what comes with it, as bytes for a worker elsewhere; CodeError if it cannot travel to `place`.

    by_value : what runs on workers travels along.
    beside : takes the buffers that travel beside the pickle; by default none do.
    """
    try:
        file = io.BytesIO()
        with pickled_by_value() if by_value else contextlib.nullcontext():
            _Pickler(file, protocol=5, buffer_callback=beside).dump(f)
        return file.getvalue()
    except Exception as error:
        raise CodeError(f"f cannot be pickled for {place}: {type(error).__name__}: {error}") from error


def pickled_with_buffers(f: Any, place: str, by_value: bool) -> PickledFunction:
    """The same with large arrays beside the pickle."""
    buffers: list[memoryview] = []
    return PickledFunction(pickled(f, place, by_value, taking_large(buffers)), buffers)


def modules_named(pickled: bytes, roots: Iterable[str]) -> set[str]:
    """The modules of this process, those below these roots, that a pickled function names.

    >>> modules_named(cloudpickle.dumps([CodeType, pickled, taking_large]), ["polarmap"]) == {
    ...     "polarmap.executors.pickling", "polarmap.worker.pytree"}
    True
    """
    roots = set(roots)
    either = b"|".join(re.escape(root.encode()) for root in roots)
    # As short strings, of a length and bytes: what pickletools tells, a hundred times sooner.
    places = re.finditer(rb"(?s)\x8c(.)(?=%s)" % either, pickled)
    names = {pickled[one.end() : one.end() + one[1][0]].decode(errors="ignore") for one in places}
    return {name for name in names & sys.modules.keys() if name.partition(".")[0] in roots}


def _code_with_its_file(code: CodeType) -> Any:
    """What makes such code again, with the name of its file, which cloudpickle leaves out since 3.1."""
    make, parts = cloudpickle.Pickler.dispatch_table[CodeType](code)
    file = "".join(code.co_filename)  # a string of its own: the same bytes for the same function
    return make, tuple([file if isinstance(one, str) and one == "<dynamic-code>" else one for one in parts])


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """One whose functions raise errors with tracebacks that name their lines."""

    dispatch_table: ClassVar[Any] = ChainMap(
        {CodeType: _code_with_its_file}, *cloudpickle.Pickler.dispatch_table.maps
    )


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
