"""Pickles functions for workers, with the state of the user's modules that they refer to.

Workers import modules from files, which may differ from the modules in the driver's memory. Therefore each
pickle contains the current values of the globals and attributes that f refers to (see `module_state`).
"""

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

TRACKED_TYPES = (
    FunctionType,
    type,
    ModuleType,
    LRU_CACHE_TYPE,
)  # objects through which f refers to further objects

_registry_lock = threading.Lock()
_n_pickling_threads = 0  # threads inside `pickle_worker_code_by_value`
_stripped_modules = set[ModuleType]()

# multiprocessing names the main program so in a spawned child. No worker can import this module.
sys.modules.setdefault(
    "__mp_main__", sys.modules["__main__"]
)  # as multiprocessing does, so that cloudpickle finds it
cloudpickle.register_pickle_by_value(ModuleType("__mp_main__"))


class PickledFunction(NamedTuple):
    """A pickled function, and the buffers of its arrays, which are sent out of band without a copy."""

    pickle_bytes: bytes
    buffers: Sequence[memoryview]

    @property
    def n_bytes(self) -> int:
        """The size of the pickle and its buffers in bytes, without the headers of the buffers."""
        return len(self.pickle_bytes) + sum(map(len, self.buffers))

    def get_buffers_to_send(self) -> list[bytes | memoryview]:
        """Return the buffers that are sent to a worker, in the format of `pickle_to_array`."""
        return build_buffer_block([self.pickle_bytes, *self.buffers])


def pickle_function(
    f: Any, destination: str, by_value: bool = False, out_of_band_buffers: list[memoryview] | None = None
) -> bytes:
    """Pickle f with the current state of the user modules to which it refers.

    Parameters
    ----------
    f : object
        The function, or any other object that contains functions.
    destination : str
        Where f is sent, for the error message.
    by_value : bool
        Include the worker code of polarmap, for workers that cannot import polarmap.
    out_of_band_buffers : list, optional
        Large buffers are appended to this list. None: they are included in the pickle.

    Raises
    ------
    CodeError
        If f cannot be pickled.
    """
    try:
        return _pickle_with_state(f, by_value, out_of_band_buffers)
    except CodeError:
        raise
    except Exception as error:
        raise CodeError(f"f cannot be pickled for {destination}: {type(error).__name__}: {error}") from error


def _pickle_with_state(value: Any, by_value: bool, out_of_band_buffers: list[memoryview] | None) -> bytes:
    """Pickle a value like `pickle_function`, but let errors of the pickler through."""
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
    """Return the block of a call in the format of `pickle_to_array`, with the state of user modules."""
    buffers: list[memoryview] = []
    pickled_call = PickledFunction(_pickle_with_state(call, by_value, buffers), buffers)
    return np.frombuffer(bytearray().join(pickled_call.get_buffers_to_send()), np.uint8)


def pickle_small_values(values: Iterable[Any]) -> list[bytes | Array | Exception | None]:
    """Return `pickle_each(values, small_only=True)`, with None also for values that reach user modules."""
    return pickle_each(values, True, _TrackingPickler, select_user_objects)


def pickle_item_to_block(value: Any, user_objects: list[Any]) -> Any:
    """Return `pickle_to_array(value)`, and append the objects of user modules to `user_objects`."""
    buffers: list[memoryview] = []
    data, reached_objects = _dump_with_references(value, buffers)
    user_objects += select_user_objects(reached_objects)
    return np.frombuffer(bytearray().join(PickledFunction(data, buffers).get_buffers_to_send()), np.uint8)


def pickle_function_with_buffers(f: Any, destination: str, by_value: bool) -> PickledFunction:
    """Pickle f like `pickle_function`, with the buffers of large arrays separate from the pickle."""
    buffers: list[memoryview] = []
    return PickledFunction(pickle_function(f, destination, by_value, buffers), buffers)


def copy_by_pickling(f: Any, destination: str) -> Any:
    """Return a copy of f as a worker would get it now, independent of later changes.

    Raises CodeError if f cannot be pickled; `destination` is named in the message.
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
    """A function with a snapshot of the state of user modules. Unpickling gives the function alone.

    Parameters
    ----------
    call : callable or None
        The function, if it may also be called in this process.
    state : sequence of ModuleStateItem
        The state of user modules to which the function refers.
    pickle_bytes : bytes
        The pickle of the function.
    buffers : sequence of memoryview
        The out-of-band buffers of the pickle.
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
    """The current state of the user modules to which f refers. Unpickling applies it on the worker."""

    def __init__(self, f: Any) -> None:
        reached_objects: list[Any] = []
        with contextlib.suppress(Exception):  # the session reports an f that cannot be pickled
            _, reached_objects = _dump_with_references(f, [])
        self._reduce_arguments = get_process_token(), list(map(tuple, collect_module_state(reached_objects)))

    def __reduce__(self) -> Any:
        return apply_module_state, self._reduce_arguments


def _dump_with_references(value: Any, buffers: list[memoryview] | None) -> tuple[bytes, list[Any]]:
    """Return the pickle of a value, and the functions, classes and modules in the value.

    Large buffers are appended to `buffers`, unless it is None.
    """
    file = io.BytesIO()
    buffer_callback = None if buffers is None else make_buffer_collector(buffers)
    pickler = _TrackingPickler(file, protocol=5, buffer_callback=buffer_callback)
    pickler.dump(value)
    return file.getvalue(), pickler.reached


def find_referenced_modules(pickle_bytes: bytes, root_packages: Iterable[str]) -> set[str]:
    """Return the imported modules below the given root packages that a pickled function names.

    >>> find_referenced_modules(
    ...     cloudpickle.dumps([CodeType, pickle_function, make_buffer_collector]), ["polarmap"]
    ... ) == {"polarmap.executors.pickling", "polarmap.worker.pickled_values"}
    True
    """
    root_packages = set(root_packages)
    roots_pattern = b"|".join(re.escape(root.encode()) for root in root_packages)
    # In a pickle, a module name is a short string: its length, followed by its bytes. Searching for these
    # bytes is a hundred times faster than parsing the pickle with pickletools.
    matches = re.finditer(rb"(?s)\x8c(.)(?=%s)" % roots_pattern, pickle_bytes)
    names = {pickle_bytes[item.end() : item.end() + item[1][0]].decode(errors="ignore") for item in matches}
    return {name for name in names & sys.modules.keys() if name.partition(".")[0] in root_packages}


class _TrackingPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """A pickler whose functions raise errors with tracebacks that name their lines.

    Attributes
    ----------
    reached : list
        The functions, classes and modules that were pickled.
    """

    dispatch_table: ClassVar[Any] = ChainMap(
        {CodeType: reduce_code_with_filename}, *cloudpickle.Pickler.dispatch_table.maps
    )

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.reached: list[Any] = []

    def reducer_override(self, value: Any) -> Any:
        """Record functions, classes and modules, and let cloudpickle reduce them."""
        if isinstance(value, TRACKED_TYPES):
            self.reached.append(value)
            return super().reducer_override(value)
        return NotImplemented


@contextlib.contextmanager
def pickle_worker_code_by_value() -> Iterator[None]:
    """Pickle the modules of `polarmap.worker` by value inside this context.

    A worker then needs numpy, but not polarmap. All threads share the registry of cloudpickle, so the last
    thread to leave removes the entry. The docstrings of these modules and the annotations of their functions
    are not sent. They are removed in this process, too.
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
        # Take the function of a property or method.
        value = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if value is Fault or getattr(value, "__module__", None) != module:  # Fault is public: keep its text
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
