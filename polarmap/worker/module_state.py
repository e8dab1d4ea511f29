"""The state of the caller's modules: how it is described on the driver, and taken over on a worker.

A worker imports a module once, and finds in it what the file said then. The driver may have set
`mymodel.SCALE = 3.0` since, or have reloaded the module. So the driver describes whatever f reaches in
modules of the caller's, and f travels with that. Before f is loaded, a worker compares each item with its
own:

- Data, and attributes of classes and of instances, that differ are set.
- Functions that differ get the driver's code, in place, so that all who hold them call the new code.
- What cannot be pickled (a lock, a connection, a generator of random numbers) is the worker's own. The worker
  refuses to run f if the type of such an object is not that on the driver.
- What the worker's own calls have filled in (a container or None on the driver, or a name that functions of
  the module assign by `global`) stays, as a cache, until something that f reaches has changed on the driver.

Runs on workers too: imports numpy and cloudpickle at most.
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

try:  # without which no function of the caller's is loaded
    from cloudpickle import Pickler
except ImportError:
    from pickle import Pickler


DATA, CODE, CLASS, OPAQUE = "data", "code", "class", "opaque"
LRU_CACHE_TYPE: Any = type(functools.lru_cache(len))
MAIN_MODULES = ("__main__", "__mp_main__")  # the driver's program, which no worker can import
MISMATCH_ADVICE = (
    "Pass it to f as an argument, or let the module travel with f: cloudpickle.register_pickle_by_value({})"
)
MISSING = "<missing>"  # stands for the value of a name that is not there
MAX_SENT_ARRAY_BYTES = 1 << 24  # larger arrays are compared, and not sent
# of the pickle of any other value, of which a larger one is neither compared nor sent
MAX_PICKLE_BYTES = 1 << 20
CHECKSUM_CHUNK_BYTES = 1 << 12  # of a large array, for each of its checksums
RECORD_ATTRIBUTE = "__polarmap_state__"  # the name, in a module, of what a driver has said of it
# Attributes of classes that say nothing of what their instances do.
IGNORED_ATTRIBUTES = {
    "__annotate_func__",
    "__annotations__",
    "__annotations_cache__",
    "__dict__",
    "__doc__",
} | {*("__firstlineno__", "__module__", "__slotnames__", "__static_attributes__", "__weakref__", "_abc_impl")}


class ModuleStateError(RuntimeError):
    """A module of the caller's differs between driver and worker in what cannot be sent."""


class ModuleStateItem(NamedTuple):
    """One name that f reaches in a module of the caller's, as the driver has it. Plain data.

    path : the name, or those of a class or an instance and of its attribute, with dots between them.
    kind : DATA, CODE (a function, to be compared by its code), CLASS or OPAQUE.
    fingerprint : what a worker compares with that of its own value.
    payload : the pickled value, None if it cannot be sent. Of a class, the names of its attributes.
    may_differ_on_worker : whether a worker's own calls may have given it another value, as that of a cache.
    """

    module: str
    path: str
    kind: str
    fingerprint: bytes
    payload: bytes | None
    may_differ_on_worker: bool


def digest_code(code: types.CodeType) -> str:
    """Return a digest of instructions, names and constants, of code and of what is inside.

    It is the same in every process with this version of Python, and wherever the file is.
    """
    inner_digests = [digest_code(item) for item in code.co_consts if isinstance(item, types.CodeType)]
    constants = [
        _format_code_constant(item) for item in code.co_consts if not isinstance(item, types.CodeType)
    ]
    variable_names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    text = repr((code.co_code, code.co_flags, variable_names, constants, inner_digests))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _format_code_constant(constant: Any) -> str:
    """Return the text of a constant; the order of a set depends on the process."""
    if isinstance(constant, frozenset):
        return f"frozenset({sorted(map(_format_code_constant, constant))})"
    if isinstance(constant, tuple):
        return f"({', '.join(map(_format_code_constant, constant))})"
    return repr(constant)


# --- how a value is described ----------------------------------------------------------------------


def reduce_code_with_filename(code: types.CodeType) -> Any:
    """Return what makes such code again, with the name of its file, which cloudpickle 3.1 leaves out."""
    constructor, arguments = Pickler.dispatch_table[types.CodeType](code)
    filename = "".join(code.co_filename)  # a string of its own: the same bytes for the same function
    return constructor, tuple(
        [filename if isinstance(item, str) and item == "<dynamic-code>" else item for item in arguments]
    )


class StatePickler(Pickler):  # type: ignore[misc]
    """Pickles the value of a name in a module of the caller's, to be compared or to be sent.

    Functions and classes that can be imported go by name. Other functions share the globals of their module,
    which is that of the worker.

    Parameters
    ----------
    definition : a function to be pickled by what it holds, although it can be imported.
    for_fingerprint : whether the pickle is a fingerprint: digests stand for code, and nothing can be loaded.

    Attributes
    ----------
    reached : list
        The functions, classes and modules in the value.
    contains_code : bool
        Whether code was part of it, so that the pickle to be sent is another one.
    """

    def __init__(self, file: io.BytesIO, definition: Any, for_fingerprint: bool) -> None:
        super().__init__(file, protocol=5)
        self.reached: list[Any] = []
        self.contains_code = False
        self._definition, self._for_fingerprint = definition, for_fingerprint

    def reducer_override(self, value: Any) -> Any:
        """Return what is pickled in place of a value."""
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
            return super().reducer_override(function)  # by name, unless its module travels by value
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
    """Return what a function holds besides its code and globals."""
    cell_contents = list[tuple[Any, ...]]()
    for cell in function.__closure__ or ():
        try:
            cell_contents.append((cell.cell_contents,))
        except ValueError:  # a variable without a value yet
            cell_contents.append(())
    names = function.__name__, function.__qualname__, function.__module__
    return *names, function.__defaults__, function.__kwdefaults__, dict(function.__dict__), cell_contents


def make_function(module_name: str, code: types.CodeType, n_cells: int) -> types.FunctionType:
    """Return a function in a module of this process, to be filled."""
    namespace = vars(importlib.import_module(module_name))
    closure = tuple(types.CellType() for _ in range(n_cells))
    return types.FunctionType(code, namespace, code.co_name, None, closure)


def set_function_state(function: types.FunctionType, state: tuple[Any, ...]) -> None:
    """Give a function the state of another one with as many variables in its closure."""
    function.__name__, function.__qualname__, function.__module__ = state[:3]
    function.__defaults__, function.__kwdefaults__ = state[3:5]
    function.__dict__.clear()
    function.__dict__.update(state[5])
    for cell, content in zip(function.__closure__ or (), state[6]):
        if content:
            cell.cell_contents = content[0]


def make_cached_function(function: Any, cache_options: dict[str, Any]) -> Any:
    """Return a function with a cache, as `functools.lru_cache` makes it."""
    return functools.lru_cache(**cache_options)(function)


def is_importable_by_name(value: Any, expected_path: str | None = None) -> bool:
    """Tell whether a function or class is what its module has under its name, which may have to be
    `expected_path`.
    """
    name = getattr(value, "__qualname__", None)
    resolved: Any = sys.modules.get(getattr(value, "__module__", None) or "")
    if resolved is None or not isinstance(name, str) or expected_path not in (None, name):
        return False
    for attribute in name.split("."):
        resolved = getattr(resolved, attribute, None)
    return resolved is value


class ValueDescription(NamedTuple):
    """What a value is, as `ModuleStateItem` has it.

    reached : the functions, classes and modules that it holds.
    contains_code : whether it holds functions that do not go by name.
    """

    kind: str
    fingerprint: bytes
    payload: bytes | None
    reached: Sequence[Any]
    contains_code: bool


class _BoundedFile(io.BytesIO):
    """A file that takes so many bytes and no more, so that nothing large is pickled to its end."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self._n_remaining = max_bytes

    def write(self, data: Any) -> int:
        self._n_remaining -= len(data)
        if self._n_remaining < 0:
            raise pickle.PicklingError("it is too large to be sent")
        return super().write(data)


def describe_value(module_name: str, path: str, value: Any) -> ValueDescription:
    """Return what is compared of the value of a name in a module, and its pickle if it is small."""
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
    except Exception:  # of pickle, or of the caller's classes
        reached = [] if pickler is None else pickler.reached
        if definition is not None and not isinstance(definition, type):
            digest = digest_code(_get_code_object(definition)).encode()
            return ValueDescription(CODE, digest, None, reached, True)
        value_class = type(value)
        class_name = f"{value_class.__module__}.{value_class.__qualname__}"
        return ValueDescription(OPAQUE, class_name.encode(), None, [value_class, *reached], False)


def _find_definition(module_name: str, path: str, value: Any) -> Any:
    """Return the function or class of which a value is the definition; None of any other value."""
    is_method = type(value) in (staticmethod, classmethod)
    definition = value.__func__ if is_method else value
    definition_class = type(definition)
    if definition_class in (types.FunctionType, LRU_CACHE_TYPE) or issubclass(definition_class, type):
        has_own_name = definition.__module__ == module_name and is_importable_by_name(definition, path)
        return definition if has_own_name else None
    return None


def _compute_array_checksum(array: Any) -> bytes:
    """Return what changes with an array, as soon as it is read once."""
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
    """Return the code of a function, or of the one that has the cache."""
    while not isinstance(function, types.FunctionType):
        function = function.__wrapped__
    return function.__code__


def _pickle_for_worker(value: Any, definition: Any) -> bytes:
    file = io.BytesIO()
    StatePickler(file, definition, for_fingerprint=False).dump(value)
    return file.getvalue()


def _describe_bases(cls: type) -> bytes:
    """Return the names of the bases and of the metaclass."""
    names = [f"{base.__module__}.{base.__qualname__}" for base in (*cls.__bases__, type(cls))]
    return "\n".join(names).encode()


def list_settable_attributes(cls: type) -> list[str]:
    """Return the names of the attributes of a class that can be set, in their order."""
    descriptor_types = types.MemberDescriptorType, types.GetSetDescriptorType
    return [
        name
        for name, value in vars(cls).items()
        if not (name in IGNORED_ATTRIBUTES or isinstance(value, descriptor_types)) and name.isidentifier()
    ]


# --- on a worker -----------------------------------------------------------------------------------


def load_with_module_state(
    driver_token: tuple[int, str], items: Sequence[Sequence[Any]], pickled_function: bytes, *buffers: Any
) -> Any:
    """Let the modules of this process be those of the driver, as far as f reaches them, and return f.

    driver_token : `get_process_token` of the driver. In the driver itself nothing has to be done.
    pickled_function, buffers : of f.
    """
    apply_module_state(driver_token, items)
    return pickle.loads(pickled_function, buffers=buffers)


def get_process_token() -> tuple[int, str]:
    """Return what no other process has: it is not inherited, nor does it travel."""
    token: Any = getattr(sys, "_polarmap_process", None)
    if token is None or token[0] != os.getpid():
        token = sys._polarmap_process = os.getpid(), os.urandom(8).hex()  # type: ignore[attr-defined]
    return token  # type: ignore[no-any-return]


def apply_module_state(driver_token: tuple[int, str], items: Sequence[Sequence[Any]]) -> None:
    """Set what differs from the driver's; ModuleStateError where that is impossible."""
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
    # Functions and classes come first: data may hold them.
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
    """Return a module; None if it cannot be imported, which f tells if it needs the module."""
    if module_name not in sys.modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module_name)
    return sys.modules.get(module_name)


def _apply_state_item(item: ModuleStateItem, record: dict[Any, bytes], has_changed: bool) -> bool:
    """Set one item, if it differs and is no cache that this process has filled; whether it was set."""
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
    """Return what has an attribute, None if this process has no such thing, and its value or MISSING.

    A class that is not there may be in a new version of the file.
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
    """Return what a module, a class, an instance or a dict has by name."""
    return owner if type(owner) is dict else getattr(owner, "__dict__", {})


def _remove_extra_attributes(cls: type, expected_names: Sequence[str]) -> None:
    """Remove the attributes of a class that the driver's has not."""
    for name in set(list_settable_attributes(cls)).difference(expected_names):
        with contextlib.suppress(AttributeError, TypeError):
            delattr(cls, name)


def _set_attribute(owner: Any, name: str, old_value: Any, new_value: Any) -> None:
    """Let an attribute have a new value; a function keeps its identity where that is possible."""
    if _update_function_in_place(old_value, new_value):
        return
    if type(owner) is dict:
        owner[name] = new_value
    else:
        setattr(owner, name, new_value)


def _update_function_in_place(old_function: Any, new_function: Any) -> bool:
    """Give a function the code and state of another one; False if that is impossible."""
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
    """Clear the caches of functions: their entries may depend on what has changed."""
    for item in items:
        value = _resolve_item(item)[1]
        value = getattr(value, "__func__", value)
        if isinstance(value, LRU_CACHE_TYPE):
            value.cache_clear()


def _format_mismatch_message(item: ModuleStateItem, value: Any) -> str:
    """Return what is said of an item that differs."""
    worker_value_text = (
        "has no such attribute" if value is MISSING else f"has {type(value).__name__} {value!r:.80}"
    )
    return (
        f"f reaches {item.module}.{item.path}, which differs between this program and its workers, and "
        f"cannot be sent to them: a worker {worker_value_text}. {MISMATCH_ADVICE.format(item.module)}"
    )
