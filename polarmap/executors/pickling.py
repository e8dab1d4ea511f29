"""How functions travel to workers elsewhere."""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import sys
import threading
from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any, ClassVar, NamedTuple

import cloudpickle
import numpy as np

import polarmap.worker as worker_package
from polarmap.errors import CodeError
from polarmap.executors.module_state import collect_module_state, select_user_objects
from polarmap.worker.module_state import (
    LRU_CACHE_TYPE,
    ModuleStateItem,
    apply_module_state,
    get_process_token,
    load_with_module_state,
    reduce_code_with_filename,
)
from polarmap.worker.pickled_values import build_buffer_block, make_buffer_collector, pickle_each
from polarmap.worker.pytree import Array
from polarmap.worker.task_records import Fault

TRACKED_TYPES = (FunctionType, type, ModuleType, LRU_CACHE_TYPE)  # that lead from f to what it reaches

_registry_lock = threading.Lock()
_n_pickling_threads = 0  # threads that pickle what travels
_stripped_modules = set[ModuleType]()

# What multiprocessing calls the main program in a child that it spawned: no worker can import that.
sys.modules.setdefault("__mp_main__", sys.modules["__main__"])  # as it does: cloudpickle is to know of it
cloudpickle.register_pickle_by_value(ModuleType("__mp_main__"))


class PickledFunction(NamedTuple):
    """A function as bytes, and the buffers of its arrays, which travel beside: they are not copied here."""

    pickle_bytes: bytes
    buffers: Sequence[memoryview]

    @property
    def n_bytes(self) -> int:
        """Bytes, nearly."""
        return len(self.pickle_bytes) + sum(map(len, self.buffers))

    def get_buffers_to_send(self) -> list[bytes | memoryview]:
        """Those of the block that stands for it, as `pickle_to_array` makes them."""
        return build_buffer_block([self.pickle_bytes, *self.buffers])


def pickle_function(
    f: Any, destination: str, by_value: bool = False, out_of_band_buffers: list[memoryview] | None = None
) -> bytes:
    """Return f, and what comes with it, as bytes for a worker elsewhere; CodeError if it does not travel.

    What f reaches in modules of the caller's travels too, as it is now.

    destination : where f is to go, for the error.
    by_value : what runs on workers travels along.
    out_of_band_buffers : gets the buffers that travel beside the pickle; None: there are none.
    """
    try:
        return _pickle_with_state(f, by_value, out_of_band_buffers)
    except CodeError:
        raise
    except Exception as error:
        raise CodeError(f"f cannot be pickled for {destination}: {type(error).__name__}: {error}") from error


def _pickle_with_state(value: Any, by_value: bool, out_of_band_buffers: list[memoryview] | None) -> bytes:
    """The same, with the error of the pickler."""
    with pickle_worker_code_by_value() if by_value else contextlib.nullcontext():
        buffers: list[memoryview] | None = None if out_of_band_buffers is None else []
        data, reached_objects = _dump_with_references(value, buffers)
        state = collect_module_state(reached_objects, by_value)
        if state:
            function_with_state = FunctionWithState(None, state, data, buffers or [])
            buffers = None if out_of_band_buffers is None else []
            data, _ = _dump_with_references(function_with_state, buffers)
    if out_of_band_buffers is not None:
        out_of_band_buffers += buffers or []
    return data


def pickle_call_to_block(call: Any, by_value: bool) -> Any:
    """Return the block of a call as `pickle_to_array` makes one, with what it reaches in modules of the
    caller's.
    """
    buffers: list[memoryview] = []
    pickled_call = PickledFunction(_pickle_with_state(call, by_value, buffers), buffers)
    return np.frombuffer(bytearray().join(pickled_call.get_buffers_to_send()), np.uint8)


def pickle_small_values(values: Iterable[Any]) -> list[bytes | Array | Exception | None]:
    """Return `pickle_each(values, small_only=True)`, with None also for values that reach user modules."""
    return pickle_each(values, True, _TrackingPickler, select_user_objects)


def pickle_item_to_block(value: Any, user_objects: list[Any]) -> Any:
    """Return `pickle_to_array(value)`, and append what of modules of the caller's the value is made of."""
    buffers: list[memoryview] = []
    data, reached_objects = _dump_with_references(value, buffers)
    user_objects += select_user_objects(reached_objects)
    return np.frombuffer(bytearray().join(PickledFunction(data, buffers).get_buffers_to_send()), np.uint8)


def pickle_function_with_buffers(f: Any, destination: str, by_value: bool) -> PickledFunction:
    """The same with large arrays beside the pickle."""
    buffers: list[memoryview] = []
    return PickledFunction(pickle_function(f, destination, by_value, buffers), buffers)


def copy_by_pickling(f: Any, destination: str) -> Any:
    """Return f as a worker would get it now, whatever becomes of what it reaches; CodeError as
    `pickle_function`.
    """
    try:
        data, reached_objects = _dump_with_references(f, None)
        call, state = pickle.loads(data), collect_module_state(reached_objects)
        return FunctionWithState(call, state, data, []) if state else call
    except CodeError:
        raise
    except Exception as error:
        raise CodeError(f"f cannot be pickled for {destination}: {type(error).__name__}: {error}") from error


class FunctionWithState:
    """A function with the state of the caller's modules as it was: on a worker f alone is left.

    Parameters
    ----------
    call : the function in this process, if it is called here.
    state : what it reaches in modules of the caller's.
    pickle_bytes, buffers : its pickle, and what travels beside that.
    """

    def __init__(
        self, call: Any, state: Sequence[ModuleStateItem], pickle_bytes: bytes, buffers: Sequence[memoryview]
    ) -> None:
        self._call = call
        self._reduce_arguments = (get_process_token(), list(map(tuple, state)), pickle_bytes)
        self._buffers = buffers

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._call(*arguments, **keywords)

    def __reduce__(self) -> Any:
        return load_with_module_state, (*self._reduce_arguments, *map(pickle.PickleBuffer, self._buffers))


class PickledModuleState:
    """What f reaches in modules of the caller's, as it is now: a worker that loads this takes it over."""

    def __init__(self, f: Any) -> None:
        reached_objects: list[Any] = []
        with contextlib.suppress(Exception):  # of an f that does not travel, which its run tells
            _, reached_objects = _dump_with_references(f, [])
        self._reduce_arguments = get_process_token(), list(map(tuple, collect_module_state(reached_objects)))

    def __reduce__(self) -> Any:
        return apply_module_state, self._reduce_arguments


def _dump_with_references(value: Any, buffers: list[memoryview] | None) -> tuple[bytes, list[Any]]:
    """Return a pickle, and the functions, classes and modules in the value; large buffers are appended."""
    file = io.BytesIO()
    buffer_callback = None if buffers is None else make_buffer_collector(buffers)
    pickler = _TrackingPickler(file, protocol=5, buffer_callback=buffer_callback)
    pickler.dump(value)
    return file.getvalue(), pickler.reached


def find_referenced_modules(pickle_bytes: bytes, root_packages: Iterable[str]) -> set[str]:
    """The modules of this process, those below these roots, that a pickled function names.

    >>> find_referenced_modules(
    ...     cloudpickle.dumps([CodeType, pickle_function, make_buffer_collector]), ["polarmap"]
    ... ) == {"polarmap.executors.pickling", "polarmap.worker.pickled_values"}
    True
    """
    root_packages = set(root_packages)
    roots_pattern = b"|".join(re.escape(root.encode()) for root in root_packages)
    # As short strings, of a length and bytes: what pickletools tells, a hundred times sooner.
    matches = re.finditer(rb"(?s)\x8c(.)(?=%s)" % roots_pattern, pickle_bytes)
    names = {pickle_bytes[item.end() : item.end() + item[1][0]].decode(errors="ignore") for item in matches}
    return {name for name in names & sys.modules.keys() if name.partition(".")[0] in root_packages}


class _TrackingPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """A pickler whose functions raise errors with tracebacks that name their lines.

    Attributes
    ----------
    reached : list
        The functions, classes and modules that it has pickled.
    """

    dispatch_table: ClassVar[Any] = ChainMap(
        {CodeType: reduce_code_with_filename}, *cloudpickle.Pickler.dispatch_table.maps
    )

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.reached: list[Any] = []

    def reducer_override(self, value: Any) -> Any:
        """Return what is pickled in place of a value; only for functions and classes cloudpickle has any."""
        if isinstance(value, TRACKED_TYPES):
            self.reached.append(value)
            return super().reducer_override(value)
        return NotImplemented


@contextlib.contextmanager
def pickle_worker_code_by_value() -> Iterator[None]:
    """Let the modules of `polarmap.worker_spec` travel by value: a worker needs numpy, not polarmap.

    cloudpickle's register is one for all threads: the last to leave takes the entry out. The docstrings of
    these modules and the annotations of their functions do not travel. They are removed in this process, too.
    """
    global _n_pickling_threads
    with _registry_lock:
        for module in list(vars(worker_package).values()):
            if isinstance(module, ModuleType) and module not in _stripped_modules:
                _stripped_modules.add(module)
                _strip_documentation(module, module.__name__)
        _n_pickling_threads += 1
        cloudpickle.register_pickle_by_value(worker_package)
    try:
        yield
    finally:
        with _registry_lock:
            _n_pickling_threads -= 1
            if not _n_pickling_threads:
                cloudpickle.unregister_pickle_by_value(worker_package)


def _strip_documentation(owner: Any, module: str) -> None:
    """Remove the docstrings and annotations of the functions and classes that a worker module defines."""
    # cloudpickle takes the docstring of a function from the function and from its code. The lines of
    # tracebacks are in another table of the code.
    for value in list(vars(owner).values()):
        if isinstance(value, property):
            value.__doc__ = None
        value = getattr(value, "fget", None) or getattr(value, "__func__", value)  # of properties and methods
        if value is Fault or getattr(value, "__module__", None) != module:  # users read that of Fault
            # The standard library has made `_make` and other methods of a named tuple.
            if hasattr(owner, "_fields") and isinstance(value, FunctionType):
                value.__doc__, value.__annotations__ = None, {}
            continue
        if isinstance(value, type):
            value.__doc__ = None
            if hasattr(value, "_fields"):  # typing has compiled its annotations: code that would travel, too
                value.__annotations__ = {}
            _strip_documentation(value, module)
        while isinstance(value, FunctionType):
            code = value.__code__
            if value.__doc__ is not None and code.co_consts[:1] == (value.__doc__,):
                value.__code__ = code.replace(co_consts=("", *code.co_consts[1:]))
            value.__doc__, value.__annotations__ = None, {}
            value = getattr(value, "__wrapped__", None)
