"""How functions travel to workers elsewhere."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cloudpickle

import polarmap.worker as worker_package
from polarmap.errors import CodeError
from polarmap.worker.any_value import block_of_runs, taking_large
from polarmap.worker.pytree import Structure

_registering = threading.Lock()
_pickling = 0  # threads that pickle what travels


def pickled(f: Callable[[Any], Any], place: str) -> bytes:
    """f as bytes for a worker elsewhere; CodeError if it cannot travel to `place`."""
    try:
        return bytes(cloudpickle.dumps(f))
    except Exception as error:
        raise CodeError(f"f cannot be pickled for {place}: {type(error).__name__}: {error}") from error


class PickledFunction(NamedTuple):
    """A function as bytes, and the classes that it names or brings along, by module and name.

    buffers : of its arrays, which travel beside the pickle: they are not copied here.
    """

    pickled: bytes
    buffers: Sequence[memoryview]
    types: Mapping[tuple[str, str], type]

    @property
    def size(self) -> int:
        """Bytes, nearly."""
        return len(self.pickled) + sum(map(len, self.buffers))

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Those of the block that stands for it, as `to_block` makes them."""
        return block_of_runs([self.pickled, *self.buffers])


def pickled_with_types(
    f: Callable[[Any], Any], structure: Structure, place: str, by_value: bool = False
) -> PickledFunction:
    """f and the structure of its blocks as bytes for a worker; CodeError if they cannot travel.

    by_value : what runs on workers travels along.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    _note_types(structure, pickler.types)
    try:
        with pickled_by_value() if by_value else contextlib.nullcontext():
            pickler.dump((f, structure))
    except Exception as error:
        raise CodeError(f"f cannot be pickled for {place}: {type(error).__name__}: {error}") from error
    return PickledFunction(file.getvalue(), pickler.buffers, pickler.types)


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    """One that notes which classes it meets, and leaves large buffers where they are."""

    def __init__(self, file: io.BytesIO) -> None:
        self.buffers: list[memoryview] = []
        super().__init__(file, protocol=5, buffer_callback=taking_large(self.buffers))
        self.types: dict[tuple[str, str], type] = {}

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type):
            self.types[value.__module__, value.__qualname__] = value
        return super().reducer_override(value)


def _note_types(structure: Structure, types: dict[tuple[str, str], type]) -> None:
    """Those of the containers of a structure."""
    if len(structure) == 3 and isinstance(structure[0], type):
        types[structure[0].__module__, structure[0].__qualname__] = structure[0]
        for child in structure[2]:
            _note_types(child, types)


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
