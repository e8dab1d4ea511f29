"""Describe the state of the user's modules on the driver, and reproduce it on a worker.

    driver:  import mymodel; mymodel.SCALE = 3.0; coded_map(mymodel.f, A)
             f reaches mymodel.SCALE: the item ("mymodel", "SCALE", "data", ...) is sent with f
    worker:  import mymodel, where SCALE is 1.0 according to the file; set SCALE = 3.0; unpickle f

A worker imports a module once, from its file. On the driver, the user's program may have changed the module
since, or reloaded it. The driver therefore describes everything that f reaches in the user's modules. Before
a worker unpickles f, it compares each item with its own module:

- Data, and attributes of classes and instances, are set if they differ.
- A function that differs receives the driver's code in place, so that all references to it call the new code.
- Objects that cannot be pickled (a lock, a connection, a random number generator) are not replaced. The
  worker refuses to run f if such an object has another type than on the driver.
- Values that calls on the worker may have filled in, like a cache, are kept until something that f reaches
  changes on the driver. These are names that are a container or None on the driver, or that functions of the
  module assign by `global`.

This module also runs on workers, so it imports at most numpy and cloudpickle.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import os
import pickle
import random
import sys
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# Without cloudpickle, a worker never receives the user's functions. `Pickler` is then needed only to define a
# subclass, which is not used.
try:
    from cloudpickle import Pickler
except ImportError:
    from pickle import Pickler


# The kinds of values in modules: data, functions (CODE), classes, and objects that cannot be pickled
# (OPAQUE).
DATA, CODE, CLASS, OPAQUE = "data", "code", "class", "opaque"
LRU_CACHE_TYPE: Any = type(functools.lru_cache(len))
MAIN_MODULES = ("__main__", "__mp_main__")  # module names of the user's program, which workers cannot import
MISMATCH_ADVICE = (
    "Pass it to f as an argument, or let the module travel with f: cloudpickle.register_pickle_by_value({})"
)
MISSING = "<missing>"  # returned as the value of a name that does not exist
MAX_SENT_ARRAY_BYTES = 1 << 24  # Larger arrays are compared with the worker's, but are not sent to it.

# Values other than arrays are neither compared nor sent to workers if their pickles have more than this many
# bytes.
MAX_PICKLE_BYTES = 1 << 20
CHECKSUM_CHUNK_BYTES = 1 << 12  # Large arrays are compared by one checksum per chunk of this size.

# The name of the attribute in which a worker stores, in each module, the state that the driver has sent.
RECORD_ATTRIBUTE = "__polarmap_state__"

# Class attributes that are not compared, because they do not affect how a class behaves.
IGNORED_ATTRIBUTES = {
    "__annotate_func__",
    "__annotations__",
    "__annotations_cache__",
    "__dict__",
    "__doc__",
} | {*("__firstlineno__", "__module__", "__slotnames__", "__static_attributes__", "__weakref__", "_abc_impl")}


class ModuleStateError(RuntimeError):
    """Raised if a module on the worker differs from the driver's and cannot be updated."""


class ModuleStateItem(NamedTuple):
    """The value of a module attribute on the driver, to be compared with the value on a worker.

    The user's function f may use values of other modules, which the worker must update if they differ. There
    is one item for each name in the user's modules that f can reach.

    Attributes
    ----------
    module : str
        The name of the module.
    path : str
        The name in the module, or a dotted path to an attribute of a class or instance.
    kind : str
        DATA, CODE (a function), CLASS or OPAQUE (an object that cannot be pickled).
    fingerprint : bytes
        A digest of the value. If the digest of the worker's value differs, that value must be updated.
    payload : bytes or None
        The pickled value; None if it cannot be sent. For a class, the names of its attributes, one per line.
    may_differ_on_worker : bool
        Whether the value may differ on the worker, because it may be a cache that calls have filled.
    """

    module: str
    path: str
    kind: str
    fingerprint: bytes
    payload: bytes | None
    may_differ_on_worker: bool


def digest_code(code: types.CodeType) -> str:
    """Return a digest of a code object, used to check whether two functions have the same code.

    The digest covers the instructions, names and constants, including those of nested functions. For a given
    version of Python, it is the same in every process and does not depend on the path of the source file.
    """
    inner_digests = [digest_code(item) for item in code.co_consts if isinstance(item, types.CodeType)]
    constants = [
        _format_code_constant(item) for item in code.co_consts if not isinstance(item, types.CodeType)
    ]
    variable_names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    text = repr((code.co_code, code.co_flags, variable_names, constants, inner_digests))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _format_code_constant(constant: Any) -> str:
    """Return a code object's constant as text that is the same in every process.

    The items of sets are sorted, because their order varies between processes.
    """
    if isinstance(constant, frozenset):
        return f"frozenset({sorted(map(_format_code_constant, constant))})"
    if isinstance(constant, tuple):
        return f"({', '.join(map(_format_code_constant, constant))})"
    return repr(constant)


# --- description of values -------------------------------------------------------------------------


def reduce_code_with_filename(code: types.CodeType) -> Any:
    """Return how to pickle a code object: a constructor and its arguments, as from `__reduce__`.

    cloudpickle may replace the name of the source file by a placeholder. Here, the name is kept, so that it
    appears in tracebacks.
    """
    constructor, arguments = Pickler.dispatch_table[types.CodeType](code)
    # Copy the string. A pickle stores a string that occurs twice only once, but only if both are the same
    # object. Without the copy, equal functions could have different pickles.
    filename = "".join(code.co_filename)
    return constructor, tuple(
        [filename if isinstance(item, str) and item == "<dynamic-code>" else item for item in arguments]
    )


class StatePickler(Pickler):  # type: ignore[misc]
    """A pickler for values in the user's modules, used to compare them or to send them to workers.

    Functions and classes that can be imported are pickled by name. Other functions are pickled without the
    globals of their module. Once unpickled, they use the globals of the worker's module.

    Parameters
    ----------
    file : io.BytesIO
        The file to which the pickle is written.
    definition : callable or None
        A function to pickle by value even though it can be imported.
    for_fingerprint : bool
        Write digests instead of code. Such a pickle can be compared, but not unpickled.

    Attributes
    ----------
    reached : list
        The functions, classes and modules that the pickled values refer to.
    contains_code : bool
        Whether any pickled value contains code.
    """

    def __init__(self, file: io.BytesIO, definition: Any, for_fingerprint: bool) -> None:
        super().__init__(file, protocol=5)
        self.reached: list[Any] = []
        self.contains_code = False
        self._definition, self._for_fingerprint = definition, for_fingerprint

    def reducer_override(self, value: Any) -> Any:
        """Return how to pickle an object, in the form that `__reduce__` returns.

        The pickler calls this method for each object.
        """
        if isinstance(value, types.CodeType):
            self.contains_code = True
            digest = digest_code(value)
            return (str, (digest,)) if self._for_fingerprint else reduce_code_with_filename(value)
        if isinstance(value, (types.FunctionType, LRU_CACHE_TYPE)):
            return self._reduce_function(value)
        if isinstance(value, (type, types.ModuleType)):
            self.reached.append(value)
        if isinstance(value, (random.Random, io.IOBase)) or type(value).__module__.startswith("numpy.random"):
            raise pickle.PicklingError("each process has open files and random numbers of its own")
        return super().reducer_override(value)

    def _reduce_function(self, function: Any) -> Any:
        self.reached.append(function)
        if (
            function is not self._definition
            and is_importable_by_name(function)
            and function.__module__ not in MAIN_MODULES
        ):
            # cloudpickle pickles this function by name, unless its module is registered for pickling by
            # value.
            return super().reducer_override(function)
        if not isinstance(function, types.FunctionType):
            arguments = function.__wrapped__, function.cache_parameters()
            if self._for_fingerprint:
                return types.SimpleNamespace, (), arguments
            return make_cached_function, arguments
        module_name = str(function.__globals__.get("__name__"))
        if (
            vars(sys.modules.get(module_name, types)) is not function.__globals__
            or module_name in MAIN_MODULES
        ):
            return super().reducer_override(function)
        state = _get_function_state(function)
        if self._for_fingerprint:
            return types.SimpleNamespace, (), (module_name, function.__code__, *state)
        constructor_args = module_name, function.__code__, len(function.__closure__ or ())
        return make_function, constructor_args, state, None, None, set_function_state


def _get_function_state(function: types.FunctionType) -> tuple[Any, ...]:
    """Return a function's state, in the form that `set_function_state` expects.

    The state consists of the names, defaults, attributes and closure variables.
    """
    cell_contents = list[tuple[Any, ...]]()
    for cell in function.__closure__ or ():
        try:
            cell_contents.append((cell.cell_contents,))
        except ValueError:  # This closure variable has no value yet.
            cell_contents.append(())
    names = function.__name__, function.__qualname__, function.__module__
    return *names, function.__defaults__, function.__kwdefaults__, dict(function.__dict__), cell_contents


def make_function(module_name: str, code: types.CodeType, n_cells: int) -> types.FunctionType:
    """Return a new function with the given code and the globals of a module.

    The function has `n_cells` closure variables, which have no values yet. Call `set_function_state` to set
    them and the rest of its state.
    """
    namespace = vars(importlib.import_module(module_name))
    closure = tuple(types.CellType() for _ in range(n_cells))
    return types.FunctionType(code, namespace, code.co_name, None, closure)


def set_function_state(function: types.FunctionType, state: tuple[Any, ...]) -> None:
    """Set the names, defaults, attributes and closure variables of a function.

    The state must come from a function with the same number of closure variables.
    """
    function.__name__, function.__qualname__, function.__module__ = state[:3]
    function.__defaults__, function.__kwdefaults__ = state[3:5]
    function.__dict__.clear()
    function.__dict__.update(state[5])
    for cell, content in zip(function.__closure__ or (), state[6]):
        if content:
            cell.cell_contents = content[0]


def make_cached_function(function: Any, cache_options: dict[str, Any]) -> Any:
    """Return `function` wrapped in `functools.lru_cache` with the given options."""
    return functools.lru_cache(**cache_options)(function)


def is_importable_by_name(value: Any, expected_path: str | None = None) -> bool:
    """Return whether a function or class can be imported by the name of its module and its qualified name.

    If another object is found under these names, return False. If `expected_path` is given, also return False
    unless it is the qualified name.
    """
    name = getattr(value, "__qualname__", None)
    resolved: Any = sys.modules.get(getattr(value, "__module__", None) or "")
    if resolved is None or not isinstance(name, str) or expected_path not in (None, name):
        return False
    for attribute in name.split("."):
        resolved = getattr(resolved, attribute, None)
    return resolved is value


class ValueDescription(NamedTuple):
    """A description of a value in a module, used to compare it and to send it to workers.

    The fields `kind`, `fingerprint` and `payload` have the same meaning as in `ModuleStateItem`.

    Attributes
    ----------
    reached : sequence
        The functions, classes and modules that the value refers to.
    contains_code : bool
        Whether the value contains functions that are pickled by value.
    """

    kind: str
    fingerprint: bytes
    payload: bytes | None
    reached: Sequence[Any]
    contains_code: bool


class _BoundedFile(io.BytesIO):
    """An in-memory file that raises PicklingError once more than `max_bytes` bytes are written."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self._n_remaining = max_bytes

    def write(self, data: Any) -> int:
        self._n_remaining -= len(data)
        if self._n_remaining < 0:
            raise pickle.PicklingError("it is too large to be sent")
        return super().write(data)


def describe_value(module_name: str, path: str, value: Any) -> ValueDescription:
    """Return a description of the value that a name in a module refers to.

    The description contains a digest of the value and, if the value can be sent to workers, its pickle.
    """
    pickler, definition = None, None
    try:
        definition = _find_definition(module_name, path, value)
        if isinstance(definition, type):
            attributes = "\n".join(list_settable_attributes(definition)).encode()
            return ValueDescription(CLASS, _describe_bases(definition), attributes, [definition], False)
        is_array = type(value) is np.ndarray and not value.dtype.hasobject
        if is_array and value.nbytes > MAX_SENT_ARRAY_BYTES:
            return ValueDescription(DATA, _compute_array_checksum(value), None, [], False)
        file = _BoundedFile(2 * MAX_SENT_ARRAY_BYTES if is_array else MAX_PICKLE_BYTES)
        pickler = StatePickler(file, definition, for_fingerprint=True)
        pickler.dump(value)
        data = file.getvalue()
        payload = _pickle_for_worker(value, definition) if pickler.contains_code else data
        kind, digest = CODE if definition else DATA, _compute_short_digest(data)
        return ValueDescription(kind, digest, payload, pickler.reached, pickler.contains_code)
    except Exception:  # The value cannot be pickled, or a method of its class has failed.
        reached = [] if pickler is None else pickler.reached
        if definition is not None and not isinstance(definition, type):
            digest = digest_code(_get_code_object(definition)).encode()
            return ValueDescription(CODE, digest, None, reached, True)
        value_class = type(value)
        class_name = f"{value_class.__module__}.{value_class.__qualname__}"
        return ValueDescription(OPAQUE, class_name.encode(), None, [value_class, *reached], False)


def _find_definition(module_name: str, path: str, value: Any) -> Any:
    """Return the function or class that a module defines under the given name.

    Return None for other values, and for functions and classes that the module only imports.
    """
    is_method = type(value) in (staticmethod, classmethod)
    definition = value.__func__ if is_method else value
    definition_class = type(definition)
    if definition_class in (types.FunctionType, LRU_CACHE_TYPE) or issubclass(definition_class, type):
        has_own_name = definition.__module__ == module_name and is_importable_by_name(definition, path)
        return definition if has_own_name else None
    return None


def _compute_array_checksum(array: Any) -> bytes:
    """Return a digest of a large array, computed from checksums of its chunks and a sample of its bytes.

    This is faster than hashing all bytes.
    """
    raw_bytes = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    n_whole_bytes = len(raw_bytes) // CHECKSUM_CHUNK_BYTES * CHECKSUM_CHUNK_BYTES
    chunks = raw_bytes[:n_whole_bytes].view(np.uint64).reshape(-1, CHECKSUM_CHUNK_BYTES // 8)
    chunk_sums = chunks.sum(axis=1, dtype=np.uint64)
    sample = raw_bytes[:: len(raw_bytes) >> 16]
    rest = raw_bytes[n_whole_bytes:]
    data = repr((array.dtype, array.shape)).encode() + b"".join(map(bytes, (chunk_sums, sample, rest)))
    return hashlib.blake2b(data, digest_size=16).digest()


def _compute_short_digest(data: bytes) -> bytes:
    return data if len(data) <= 16 else hashlib.blake2b(data, digest_size=16).digest()


def _get_code_object(function: Any) -> types.CodeType:
    """Return the code object of a function, which may be wrapped in `functools.lru_cache`."""
    while not isinstance(function, types.FunctionType):
        function = function.__wrapped__
    return function.__code__


def _pickle_for_worker(value: Any, definition: Any) -> bytes:
    file = io.BytesIO()
    StatePickler(file, definition, for_fingerprint=False).dump(value)
    return file.getvalue()


def _describe_bases(cls: type) -> bytes:
    """Return the names of the base classes and the metaclass of a class, one per line."""
    names = [f"{base.__module__}.{base.__qualname__}" for base in (*cls.__bases__, type(cls))]
    return "\n".join(names).encode()


def list_settable_attributes(cls: type) -> list[str]:
    """Return the names of a class's settable attributes, in definition order."""
    descriptor_types = types.MemberDescriptorType, types.GetSetDescriptorType
    return [
        name
        for name, value in vars(cls).items()
        if not (name in IGNORED_ATTRIBUTES or isinstance(value, descriptor_types)) and name.isidentifier()
    ]


# --- on a worker -----------------------------------------------------------------------------------


def unpickle_with_module_state(
    driver_token: tuple[int, str], items: Sequence[Sequence[Any]], pickled_function: bytes, *buffers: Any
) -> Any:
    """Update the modules that the user's function needs, and unpickle the function.

    Parameters
    ----------
    driver_token : tuple
        The result of `get_process_token()` on the driver. If this process is the driver itself, the modules
        are left unchanged.
    items : sequence
        The driver's state of the modules: the fields of a `ModuleStateItem` for each name that the function
        reaches.
    pickled_function, *buffers : bytes
        The pickle of the function, and its out-of-band buffers.
    """
    apply_module_state(driver_token, items)
    return pickle.loads(pickled_function, buffers=buffers)


def get_process_token() -> tuple[int, str]:
    """Return a value that identifies this process, and differs in a forked child."""
    token: Any = getattr(sys, "_polarmap_process", None)
    if token is None or token[0] != os.getpid():
        token = sys._polarmap_process = os.getpid(), os.urandom(8).hex()  # type: ignore[attr-defined]
    return token  # type: ignore[no-any-return]


def apply_module_state(driver_token: tuple[int, str], items: Sequence[Sequence[Any]]) -> None:
    """Set the values in this worker's modules to the values that they have on the driver.

    Raises ModuleStateError if a value differs and cannot be set. The parameters are the same as in
    `unpickle_with_module_state`.
    """
    if driver_token == get_process_token():
        return
    all_items = map(ModuleStateItem._make, items)
    importable_items = [item for item in all_items if _import_if_possible(item.module)]
    if not importable_items:
        return
    records = {
        item.module: vars(_import_if_possible(item.module)).setdefault(RECORD_ATTRIBUTE, {})
        for item in importable_items
    }
    state_digest = hashlib.sha256(repr([item[:4] for item in importable_items]).encode()).digest()
    names_digest = hashlib.sha256(repr([item[:2] for item in importable_items]).encode()).digest()
    first_record: dict[Any, bytes] = records[importable_items[0].module]
    has_changed = first_record.get(names_digest, state_digest) != state_digest or any(
        records[item.module].get(item.path, item.fingerprint) != item.fingerprint for item in importable_items
    )
    # Set functions and classes before data, because data may refer to them.
    ordered_items = [item for item in importable_items if item.kind in (CODE, CLASS)]
    ordered_items += [item for item in importable_items if item.kind not in (CODE, CLASS)]
    changed_items = [
        item for item in ordered_items if _apply_state_item(item, records[item.module], has_changed)
    ]
    if has_changed or changed_items:
        _clear_function_caches(importable_items)
    for item in importable_items:
        records[item.module][item.path] = item.fingerprint
    first_record[names_digest] = state_digest


def _import_if_possible(module_name: str) -> types.ModuleType | None:
    """Import a module and return it, or return None if it cannot be imported.

    If the user's function really needs the module, it will raise ImportError later.
    """
    if module_name not in sys.modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module_name)
    return sys.modules.get(module_name)


def _apply_state_item(item: ModuleStateItem, record: dict[Any, bytes], has_changed: bool) -> bool:
    """Set a value in a module to the driver's value if they differ. Return whether it was set.

    A value that may be a cache is treated differently, because calls on this worker may have filled it. Such
    a value is kept if `record` shows that it has been compared before, and if the driver's state has not
    changed since then (`has_changed` is false).

    Raises ModuleStateError if the value differs and cannot be set.
    """
    owner, value = _resolve_item_or_reload(item)
    if value is not MISSING or owner is not None:
        kind, fingerprint, *_ = describe_value(item.module, item.path, value)
        if item.kind == CLASS == kind:
            _remove_extra_attributes(value, (item.payload or b"").decode().split("\n"))
        if (kind, fingerprint) == (item.kind, item.fingerprint):
            return False
    if item.may_differ_on_worker and not has_changed and item.path in record:
        return False
    if item.kind == OPAQUE and item.may_differ_on_worker:
        return False
    if item.payload is None or owner is None or item.kind == CLASS:
        raise ModuleStateError(_format_mismatch_message(item, value))
    try:
        _set_attribute(owner, item.path.rpartition(".")[2], value, pickle.loads(item.payload))
    except Exception as error:
        raise ModuleStateError(
            f"{_format_mismatch_message(item, value)} ({type(error).__name__}: {error})"
        ) from error
    return True


def _resolve_item_or_reload(item: ModuleStateItem) -> tuple[Any, Any]:
    """Return the object on this worker whose attribute the item describes, and the attribute's value.

    Return (None, MISSING) if the attribute does not exist. If a class is missing, its module is reloaded
    first, because the file may have changed since it was imported.
    """
    owner, value = _resolve_item(item)
    if item.kind == CLASS and not isinstance(value, type):
        with contextlib.suppress(Exception):
            importlib.reload(sys.modules[item.module])
        owner, value = _resolve_item(item)
    return owner, value


def _resolve_item(item: ModuleStateItem) -> tuple[Any, Any]:
    owner: Any = sys.modules[item.module]
    *outer_names, name = item.path.split(".")
    for outer_name in outer_names:
        owner = _get_namespace(owner).get(outer_name)
    return owner, _get_namespace(owner).get(name, MISSING)


def _get_namespace(owner: Any) -> Any:
    """Return the attributes of a module, class or instance as a mapping. A dict is returned unchanged."""
    return owner if type(owner) is dict else getattr(owner, "__dict__", {})


def _remove_extra_attributes(cls: type, expected_names: Sequence[str]) -> None:
    """Remove attributes that a class has on this worker but not on the driver."""
    for name in set(list_settable_attributes(cls)).difference(expected_names):
        with contextlib.suppress(AttributeError, TypeError):
            delattr(cls, name)


def _set_attribute(owner: Any, name: str, old_value: Any, new_value: Any) -> None:
    """Replace the value of an attribute or dict item.

    If both values are functions, the old one is updated in place where possible, so that all references to it
    use the new code.
    """
    if _update_function_in_place(old_value, new_value):
        return
    if type(owner) is dict:
        owner[name] = new_value
    else:
        setattr(owner, name, new_value)


def _update_function_in_place(old_function: Any, new_function: Any) -> bool:
    """Copy the code and state of a new function into an old one. Return whether that was possible."""
    if type(old_function) is type(new_function) and isinstance(old_function, (staticmethod, classmethod)):
        return _update_function_in_place(old_function.__func__, new_function.__func__)
    if isinstance(old_function, LRU_CACHE_TYPE) and isinstance(new_function, LRU_CACHE_TYPE):
        return (
            old_function.cache_parameters() == new_function.cache_parameters()
            and _update_function_in_place(old_function.__wrapped__, new_function.__wrapped__)
        )
    if not (isinstance(old_function, types.FunctionType) and isinstance(new_function, types.FunctionType)):
        return False
    n_old_cells, n_new_cells = len(old_function.__closure__ or ()), len(new_function.__closure__ or ())
    if old_function.__globals__ is not new_function.__globals__ or n_old_cells != n_new_cells:
        return False
    old_function.__code__ = new_function.__code__
    set_function_state(old_function, _get_function_state(new_function))
    return True


def _clear_function_caches(items: Sequence[ModuleStateItem]) -> None:
    """Clear the caches of functions wrapped in `lru_cache`, because their entries may be outdated."""
    for item in items:
        value = _resolve_item(item)[1]
        value = getattr(value, "__func__", value)
        if isinstance(value, LRU_CACHE_TYPE):
            value.cache_clear()


def _format_mismatch_message(item: ModuleStateItem, value: Any) -> str:
    """Return the message of a ModuleStateError for a value that cannot be updated on this worker."""
    worker_value_text = (
        "has no such attribute" if value is MISSING else f"has {type(value).__name__} {value!r:.80}"
    )
    return (
        f"f reaches {item.module}.{item.path}, which differs between this program and its workers, and "
        f"cannot be sent to them: a worker {worker_value_text}. {MISMATCH_ADVICE.format(item.module)}"
    )
