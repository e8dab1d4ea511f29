"""Pickles functions for workers, together with the globals of the user's modules that they use.

Workers import these modules from files, so their values may differ from those in the driver's memory. Each
pickle therefore contains the current values of the globals and attributes to which f refers (see
`module_state`).
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
    reduce_code_with_filename,
    unpickle_with_module_state,
)
from polarmap.worker.pickled_values import build_buffer_block, make_buffer_callback, pickle_each
from polarmap.worker.pytree import Array
from polarmap.worker.task_records import Fault

# The types of objects that may refer to globals or attributes. The pickler records such objects.
TRACKED_TYPES = (FunctionType, type, ModuleType, LRU_CACHE_TYPE)

_registry_lock = threading.Lock()
_n_pickling_threads = 0  # the number of threads inside `pickle_worker_code_by_value`
_stripped_modules = set[ModuleType]()

# In a multiprocessing child process, the main module has this name. Workers cannot import it, so cloudpickle
# pickles its functions by value. Register the module as multiprocessing does.
sys.modules.setdefault("__mp_main__", sys.modules["__main__"])
cloudpickle.register_pickle_by_value(ModuleType("__mp_main__"))


class PickledFunction(NamedTuple):
    """A pickled function. The data of large arrays are in separate buffers, so that they are not copied."""

    pickle_bytes: bytes
    buffers: Sequence[memoryview]

    @property
    def n_bytes(self) -> int:
        """The total size of the pickle and its buffers in bytes, excluding the buffer headers."""
        return len(self.pickle_bytes) + sum(map(len, self.buffers))

    def get_buffers_to_send(self) -> list[bytes | memoryview]:
        """Return the buffers to send to a worker. Concatenated, they have the format of `pickle_to_array`."""
        return build_buffer_block([self.pickle_bytes, *self.buffers])


def pickle_function(
    f: Any, destination: str, by_value: bool = False, out_of_band_buffers: list[memoryview] | None = None
) -> bytes:
    """Pickle f together with the current values of the globals that it uses in the user's modules.

    Workers import these modules from files, in which the values may differ.

    Parameters
    ----------
    f : object
        The function, or any other object that contains functions.
    destination : str
        The name of the receiving executor, for the error message.
    by_value : bool
        True to include polarmap's worker code, for workers that cannot import polarmap.
    out_of_band_buffers : list, optional
        A list to which the buffers of large arrays are appended. None keeps them in the pickle.

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
    """Pickle a value in the same way as `pickle_function`, but raise the original pickling error."""
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
    """Pickle a function call, and the globals that it uses, to a byte array.

    The array is the input block of the task that runs the call. It has the format of `pickle_to_array`.
    """
    buffers: list[memoryview] = []
    pickled_call = PickledFunction(_pickle_with_state(call, by_value, buffers), buffers)
    return np.frombuffer(bytearray().join(pickled_call.get_buffers_to_send()), np.uint8)


def pickle_small_values(values: Iterable[Any]) -> list[bytes | Array | Exception | None]:
    """Pickle several small values separately, so that they can be sent to a worker together.

    The list has None for each value that is large or refers to the user's own functions, classes or modules.
    See `pickle_each` for the format of the other items.
    """
    return pickle_each(values, True, _TrackingPickler, select_user_objects)


def pickle_item_to_block(value: Any, user_objects: list[Any]) -> Any:
    """Pickle a value to a byte array, the input block of a task. It has the format of `pickle_to_array`.

    The user's functions, classes and modules to which the value refers are appended to `user_objects`. The
    caller must send their current state to the workers as well.
    """
    buffers: list[memoryview] = []
    data, reached_objects = _dump_with_references(value, buffers)
    user_objects += select_user_objects(reached_objects)
    return np.frombuffer(bytearray().join(PickledFunction(data, buffers).get_buffers_to_send()), np.uint8)


def pickle_function_with_buffers(f: Any, destination: str, by_value: bool) -> PickledFunction:
    """Pickle f like `pickle_function`, but leave the data of large arrays in separate buffers."""
    buffers: list[memoryview] = []
    return PickledFunction(pickle_function(f, destination, by_value, buffers), buffers)


def copy_by_pickling(f: Any, destination: str) -> Any:
    """Return a copy of f as a worker would receive it now. Later changes to f do not affect the copy.

    Raises CodeError if f cannot be pickled. The message names `destination`.
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
    """A function that is pickled together with the current values of the globals that it uses.

    Unpickling this object on a worker sets the globals to these values, and returns the function itself.

    Parameters
    ----------
    call : callable or None
        The function, if it should also be callable in this process.
    state : sequence of ModuleStateItem
        The values of the globals that the function uses in the user's modules.
    pickle_bytes : bytes
        The pickle of the function.
    buffers : sequence of memoryview
        The buffers of large arrays, which are not part of the pickle.
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
        return unpickle_with_module_state, (*self._reduce_arguments, *map(pickle.PickleBuffer, self._buffers))


class PickledModuleState:
    """The current values of the globals that the user's function f uses in the user's modules.

    Unpickling this object on a worker sets the globals there to these values.
    """

    def __init__(self, f: Any) -> None:
        reached_objects: list[Any] = []
        # Ignore errors here, because the session raises a clear error if f cannot be pickled.
        with contextlib.suppress(Exception):
            _, reached_objects = _dump_with_references(f, [])
        self._reduce_arguments = get_process_token(), list(map(tuple, collect_module_state(reached_objects)))

    def __reduce__(self) -> Any:
        return apply_module_state, self._reduce_arguments


def _dump_with_references(value: Any, buffers: list[memoryview] | None) -> tuple[bytes, list[Any]]:
    """Pickle a value. Return the pickle and the functions, classes and modules that it contains.

    Large buffers are appended to `buffers`, unless it is None.
    """
    file = io.BytesIO()
    buffer_callback = None if buffers is None else make_buffer_callback(buffers)
    pickler = _TrackingPickler(file, protocol=5, buffer_callback=buffer_callback)
    pickler.dump(value)
    return file.getvalue(), pickler.reached


def find_referenced_modules(pickle_bytes: bytes, root_packages: Iterable[str]) -> set[str]:
    """Return the names of the modules to which a pickle refers and which this process has imported.

    Only modules in the given top-level packages are returned.

    >>> find_referenced_modules(
    ...     cloudpickle.dumps([CodeType, pickle_function, make_buffer_callback]), ["polarmap"]
    ... ) == {"polarmap.executors.pickling", "polarmap.worker.pickled_values"}
    True
    """
    root_packages = set(root_packages)
    roots_pattern = b"|".join(re.escape(root.encode()) for root in root_packages)
    # In a pickle, a module name is stored as its length followed by its bytes. Searching for these bytes is a
    # hundred times faster than parsing the pickle with pickletools.
    matches = re.finditer(rb"(?s)\x8c(.)(?=%s)" % roots_pattern, pickle_bytes)
    names = {pickle_bytes[item.end() : item.end() + item[1][0]].decode(errors="ignore") for item in matches}
    return {name for name in names & sys.modules.keys() if name.partition(".")[0] in root_packages}


class _TrackingPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """A cloudpickle pickler that records the functions, classes and modules that it pickles.

    Functions keep the names of their source files, so that tracebacks from workers show the right lines.

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
        """Record functions, classes and modules, and pickle all values as cloudpickle does."""
        if isinstance(value, TRACKED_TYPES):
            self.reached.append(value)
            return super().reducer_override(value)
        return NotImplemented


@contextlib.contextmanager
def pickle_worker_code_by_value() -> Iterator[None]:
    """Make cloudpickle pickle the code of `polarmap.worker` by value inside this context.

    Workers then need NumPy but not polarmap. All threads share cloudpickle's registry, so the last thread to
    leave unregisters the code. To save space, docstrings and annotations are stripped from these modules,
    even in this process.
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
    """Remove docstrings and annotations from the functions and classes that a worker module defines."""
    # cloudpickle pickles the docstring of a function and also the copy of it in the code object, so both have
    # to be removed. The code object's table of line numbers is kept, for tracebacks.
    for value in list(vars(owner).values()):
        if isinstance(value, property):
            value.__doc__ = None
        # Get the function behind a property or method.
        value = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if value is Fault or getattr(value, "__module__", None) != module:
            # Skip objects from other modules, and the public class `Fault`. Named tuples have methods such as
            # `_make` that belong to the standard library and still have to be stripped.
            if hasattr(owner, "_fields") and isinstance(value, FunctionType):
                value.__doc__, value.__annotations__ = None, {}
            continue
        if isinstance(value, type):
            value.__doc__ = None
            if hasattr(value, "_fields"):  # The annotations of a named tuple would also be sent.
                value.__annotations__ = {}
            _strip_documentation(value, module)
        while isinstance(value, FunctionType):
            code = value.__code__
            if value.__doc__ is not None and code.co_consts[:1] == (value.__doc__,):
                value.__code__ = code.replace(co_consts=("", *code.co_consts[1:]))
            value.__doc__, value.__annotations__ = None, {}
            value = getattr(value, "__wrapped__", None)
