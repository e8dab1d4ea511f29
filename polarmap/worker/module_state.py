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
CACHED_FUNCTION: Any = type(functools.lru_cache(len))
MAIN = ("__main__", "__mp_main__")  # the driver's program, which no worker can import
REMEDY = (
    "Pass it to f as an argument, or let the module travel with f: cloudpickle.register_pickle_by_value({})"
)
MISSING = "<missing>"  # stands for the value of a name that is not there
LARGE_BYTES = 1 << 24  # larger arrays are compared, and not sent
MOST_BYTES = 1 << 20  # of the pickle of any other value, of which a larger one is neither compared nor sent
CHUNK_BYTES = 1 << 12  # of a large array, for each of its checksums
RECORD = "__polarmap_state__"  # the name, in a module, of what a driver has said of it
# Attributes of classes that say nothing of what their instances do.
SELDOM_READ = {"__annotate_func__", "__annotations__", "__annotations_cache__", "__dict__", "__doc__"} | {
    *("__firstlineno__", "__module__", "__slotnames__", "__static_attributes__", "__weakref__", "_abc_impl")
}


class ModuleStateError(RuntimeError):
    """A module of the caller's differs between driver and worker in what cannot be sent."""


class Item(NamedTuple):
    """One name that f reaches in a module of the caller's, as the driver has it. Plain data.

    path : the name, or those of a class or an instance and of its attribute, with dots between them.
    kind : DATA, CODE (a function, to be compared by its code), CLASS or OPAQUE.
    fingerprint : what a worker compares with that of its own value.
    payload : the pickled value, None if it cannot be sent. Of a class, the names of its attributes.
    may_be_filled : whether a worker's own calls may have given it another value, as that of a cache.
    """

    module: str
    path: str
    kind: str
    fingerprint: bytes
    payload: bytes | None
    may_be_filled: bool


def digest_code(code: types.CodeType) -> str:
    """Return a digest of instructions, names and constants, of code and of what is inside.

    It is the same in every process with this version of Python, and wherever the file is.
    """
    inner = [digest_code(one) for one in code.co_consts if isinstance(one, types.CodeType)]
    constants = [_spelled(one) for one in code.co_consts if not isinstance(one, types.CodeType)]
    variables = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    text = repr((code.co_code, code.co_flags, variables, constants, inner))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _spelled(constant: Any) -> str:
    """Return the text of a constant; the order of a set depends on the process."""
    if isinstance(constant, frozenset):
        return f"frozenset({sorted(map(_spelled, constant))})"
    if isinstance(constant, tuple):
        return f"({', '.join(map(_spelled, constant))})"
    return repr(constant)


# --- how a value is described ----------------------------------------------------------------------


def code_with_its_file(code: types.CodeType) -> Any:
    """Return what makes such code again, with the name of its file, which cloudpickle 3.1 leaves out."""
    make, parts = Pickler.dispatch_table[types.CodeType](code)
    file = "".join(code.co_filename)  # a string of its own: the same bytes for the same function
    return make, tuple([file if isinstance(one, str) and one == "<dynamic-code>" else one for one in parts])


class StatePickler(Pickler):  # type: ignore[misc]
    """Pickles the value of a name in a module of the caller's, to be compared or to be sent.

    Functions and classes that can be imported go by name. Other functions share the globals of their module,
    which is that of the worker.

    Parameters
    ----------
    root : a function to be pickled by what it holds, although it can be imported.
    is_compared : whether the pickle is a fingerprint: digests stand for code, and nothing can be loaded.

    Attributes
    ----------
    reached : list
        The functions, classes and modules in the value.
    has_code : bool
        Whether code was part of it, so that the pickle to be sent is another one.
    """

    def __init__(self, file: io.BytesIO, root: Any, is_compared: bool) -> None:
        super().__init__(file, protocol=5)
        self.reached: list[Any] = []
        self.has_code = False
        self._root, self._is_compared = root, is_compared

    def reducer_override(self, value: Any) -> Any:
        """Return what is pickled in place of a value."""
        if isinstance(value, types.CodeType):
            self.has_code = True
            digest = digest_code(value)
            return (str, (digest,)) if self._is_compared else code_with_its_file(value)
        if isinstance(value, (types.FunctionType, CACHED_FUNCTION)):
            return self._function_parts(value)
        if isinstance(value, (type, types.ModuleType)):
            self.reached.append(value)
        if isinstance(value, (random.Random, io.IOBase)) or type(value).__module__.startswith("numpy.random"):
            raise pickle.PicklingError("each process has open files and random numbers of its own")
        return super().reducer_override(value)

    def _function_parts(self, function: Any) -> Any:
        self.reached.append(function)
        if function is not self._root and is_named(function) and function.__module__ not in MAIN:
            return super().reducer_override(function)  # by name, unless its module travels by value
        if not isinstance(function, types.FunctionType):
            parts = function.__wrapped__, function.cache_parameters()
            return (types.SimpleNamespace, (), parts) if self._is_compared else (make_cached_function, parts)
        module = str(function.__globals__.get("__name__"))
        if vars(sys.modules.get(module, types)) is not function.__globals__ or module in MAIN:
            return super().reducer_override(function)
        state = _state_of(function)
        if self._is_compared:
            return types.SimpleNamespace, (), (module, function.__code__, *state)
        made = module, function.__code__, len(function.__closure__ or ())
        return make_function, made, state, None, None, fill_function


def _state_of(function: types.FunctionType) -> tuple[Any, ...]:
    """Return what a function holds besides its code and globals."""
    contents = list[tuple[Any, ...]]()
    for cell in function.__closure__ or ():
        try:
            contents.append((cell.cell_contents,))
        except ValueError:  # a variable without a value yet
            contents.append(())
    names = function.__name__, function.__qualname__, function.__module__
    return *names, function.__defaults__, function.__kwdefaults__, dict(function.__dict__), contents


def make_function(module: str, code: types.CodeType, cells: int) -> types.FunctionType:
    """Return a function in a module of this process, to be filled."""
    namespace = vars(importlib.import_module(module))
    closure = tuple(types.CellType() for _ in range(cells))
    return types.FunctionType(code, namespace, code.co_name, None, closure)


def fill_function(function: types.FunctionType, state: tuple[Any, ...]) -> None:
    """Give a function the state of another one with as many variables in its closure."""
    function.__name__, function.__qualname__, function.__module__ = state[:3]
    function.__defaults__, function.__kwdefaults__ = state[3:5]
    function.__dict__.clear()
    function.__dict__.update(state[5])
    for cell, content in zip(function.__closure__ or (), state[6]):
        if content:
            cell.cell_contents = content[0]


def make_cached_function(wrapped: Any, options: dict[str, Any]) -> Any:
    """Return a function with a cache, as `functools.lru_cache` makes it."""
    return functools.lru_cache(**options)(wrapped)


def is_named(value: Any, path: str | None = None) -> bool:
    """Tell whether a function or class is what its module has under its name, which may have to be `path`."""
    name = getattr(value, "__qualname__", None)
    found: Any = sys.modules.get(getattr(value, "__module__", None) or "")
    if found is None or not isinstance(name, str) or path not in (None, name):
        return False
    for one in name.split("."):
        found = getattr(found, one, None)
    return found is value


class Description(NamedTuple):
    """What a value is, as `Item` has it.

    reached : the functions, classes and modules that it holds.
    has_code : whether it holds functions that do not go by name.
    """

    kind: str
    fingerprint: bytes
    payload: bytes | None
    reached: Sequence[Any]
    has_code: bool


class _BoundedFile(io.BytesIO):
    """A file that takes so many bytes and no more, so that nothing large is pickled to its end."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._left = size

    def write(self, data: Any) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise pickle.PicklingError("it is too large to be sent")
        return super().write(data)


def describe_value(module: str, path: str, value: Any) -> Description:
    """Return what is compared of the value of a name in a module, and its pickle if it is small."""
    pickler, root = None, None
    try:
        root = _root_of(module, path, value)
        if isinstance(root, type):
            return Description(CLASS, _outline(root), "\n".join(attributes_of(root)).encode(), [root], False)
        is_array = type(value) is np.ndarray and not value.dtype.hasobject
        if is_array and value.nbytes > LARGE_BYTES:
            return Description(DATA, _checksum(value), None, [], False)
        file = _BoundedFile(2 * LARGE_BYTES if is_array else MOST_BYTES)
        pickler = StatePickler(file, root, is_compared=True)
        pickler.dump(value)
        data = file.getvalue()
        payload = _sent(value, root) if pickler.has_code else data
        return Description(CODE if root else DATA, _digest(data), payload, pickler.reached, pickler.has_code)
    except Exception:  # of pickle, or of the caller's classes
        reached = [] if pickler is None else pickler.reached
        if root is not None and not isinstance(root, type):
            return Description(CODE, digest_code(_code_of(root)).encode(), None, reached, True)
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        return Description(OPAQUE, name.encode(), None, [kind, *reached], False)


def _root_of(module: str, path: str, value: Any) -> Any:
    """Return the function or class of which a value is the definition; None of any other value."""
    is_method = type(value) in (staticmethod, classmethod)
    root = value.__func__ if is_method else value
    kind = type(root)
    if kind in (types.FunctionType, CACHED_FUNCTION) or issubclass(kind, type):
        return root if root.__module__ == module and is_named(root, path) else None
    return None


def _checksum(array: Any) -> bytes:
    """Return what changes with an array, as soon as it is read once."""
    words = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = len(words) // CHUNK_BYTES * CHUNK_BYTES
    sums = words[:whole].view(np.uint64).reshape(-1, CHUNK_BYTES // 8).sum(axis=1, dtype=np.uint64)
    sample = words[:: len(words) >> 16]
    data = repr((array.dtype, array.shape)).encode() + b"".join(map(bytes, (sums, sample, words[whole:])))
    return hashlib.blake2b(data, digest_size=16).digest()


def _digest(data: bytes) -> bytes:
    return data if len(data) <= 16 else hashlib.blake2b(data, digest_size=16).digest()


def _code_of(function: Any) -> types.CodeType:
    """Return the code of a function, or of the one that has the cache."""
    while not isinstance(function, types.FunctionType):
        function = function.__wrapped__
    return function.__code__


def _sent(value: Any, root: Any) -> bytes:
    file = io.BytesIO()
    StatePickler(file, root, is_compared=False).dump(value)
    return file.getvalue()


def _outline(kind: type) -> bytes:
    """Return the names of the bases and of the metaclass."""
    names = [f"{one.__module__}.{one.__qualname__}" for one in (*kind.__bases__, type(kind))]
    return "\n".join(names).encode()


def attributes_of(kind: type) -> list[str]:
    """Return the names of the attributes of a class that can be set, in their order."""
    made = types.MemberDescriptorType, types.GetSetDescriptorType
    return [
        name
        for name, value in vars(kind).items()
        if not (name in SELDOM_READ or isinstance(value, made)) and name.isidentifier()
    ]


# --- on a worker -----------------------------------------------------------------------------------


def restore(driver: tuple[int, str], items: Sequence[Sequence[Any]], pickled: bytes, *buffers: Any) -> Any:
    """Let the modules of this process be those of the driver, as far as f reaches them, and return f.

    driver : `process_mark` of the driver. In the driver itself nothing has to be done.
    pickled, buffers : of f.
    """
    take_over(driver, items)
    return pickle.loads(pickled, buffers=buffers)


def process_mark() -> tuple[int, str]:
    """Return what no other process has: it is not inherited, nor does it travel."""
    known: Any = getattr(sys, "_polarmap_process", None)
    if known is None or known[0] != os.getpid():
        known = sys._polarmap_process = os.getpid(), os.urandom(8).hex()  # type: ignore[attr-defined]
    return known  # type: ignore[no-any-return]


def take_over(driver: tuple[int, str], items: Sequence[Sequence[Any]]) -> None:
    """Set what differs from the driver's; ModuleStateError where that is impossible."""
    if driver == process_mark():
        return
    known = [one for one in map(Item._make, items) if _imported(one.module)]
    if not known:
        return
    records = {one.module: vars(_imported(one.module)).setdefault(RECORD, {}) for one in known}
    whole = hashlib.sha256(repr([one[:4] for one in known]).encode()).digest()
    names = hashlib.sha256(repr([one[:2] for one in known]).encode()).digest()
    first: dict[Any, bytes] = records[known[0].module]
    has_changed = first.get(names, whole) != whole or any(
        records[one.module].get(one.path, one.fingerprint) != one.fingerprint for one in known
    )
    # Functions and classes come first: data may hold them.
    ordered = [one for one in known if one.kind in (CODE, CLASS)]
    ordered += [one for one in known if one.kind not in (CODE, CLASS)]
    was_set = [one for one in ordered if _take_over(one, records[one.module], has_changed)]
    if has_changed or was_set:
        _clear_caches(known)
    for one in known:
        records[one.module][one.path] = one.fingerprint
    first[names] = whole


def _imported(name: str) -> types.ModuleType | None:
    """Return a module; None if it cannot be imported, which f tells if it needs the module."""
    if name not in sys.modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    return sys.modules.get(name)


def _take_over(item: Item, record: dict[Any, bytes], has_changed: bool) -> bool:
    """Set one item, if it differs and is no cache that this process has filled; whether it was set."""
    owner, value = _look_up(item)
    if value is not MISSING or owner is not None:
        kind, fingerprint, *_ = describe_value(item.module, item.path, value)
        if item.kind == CLASS == kind:
            _remove_others(value, (item.payload or b"").decode().split("\n"))
        if (kind, fingerprint) == (item.kind, item.fingerprint):
            return False
    if item.may_be_filled and not has_changed and item.path in record:
        return False
    if item.kind == OPAQUE and item.may_be_filled:
        return False
    if item.payload is None or owner is None or item.kind == CLASS:
        raise ModuleStateError(_refusal(item, value))
    try:
        _set(owner, item.path.rpartition(".")[2], value, pickle.loads(item.payload))
    except Exception as error:
        raise ModuleStateError(f"{_refusal(item, value)} ({type(error).__name__}: {error})") from error
    return True


def _look_up(item: Item) -> tuple[Any, Any]:
    """Return what has an attribute, None if this process has no such thing, and its value or MISSING.

    A class that is not there may be in a new version of the file.
    """
    owner, value = _found(item)
    if item.kind == CLASS and not isinstance(value, type):
        with contextlib.suppress(Exception):
            importlib.reload(sys.modules[item.module])
        owner, value = _found(item)
    return owner, value


def _found(item: Item) -> tuple[Any, Any]:
    owner: Any = sys.modules[item.module]
    *outer, name = item.path.split(".")
    for one in outer:
        owner = _names_of(owner).get(one)
    return owner, _names_of(owner).get(name, MISSING)


def _names_of(owner: Any) -> Any:
    """Return what a module, a class, an instance or a dict has by name."""
    return owner if type(owner) is dict else getattr(owner, "__dict__", {})


def _remove_others(kind: type, names: Sequence[str]) -> None:
    """Remove the attributes of a class that the driver's has not."""
    for name in set(attributes_of(kind)).difference(names):
        with contextlib.suppress(AttributeError, TypeError):
            delattr(kind, name)


def _set(owner: Any, name: str, old: Any, new: Any) -> None:
    """Let an attribute have a new value; a function keeps its identity where that is possible."""
    if _fill(old, new):
        return
    if type(owner) is dict:
        owner[name] = new
    else:
        setattr(owner, name, new)


def _fill(old: Any, new: Any) -> bool:
    """Give a function the code and state of another one; False if that is impossible."""
    if type(old) is type(new) and isinstance(old, (staticmethod, classmethod)):
        return _fill(old.__func__, new.__func__)
    if isinstance(old, CACHED_FUNCTION) and isinstance(new, CACHED_FUNCTION):
        return old.cache_parameters() == new.cache_parameters() and _fill(old.__wrapped__, new.__wrapped__)
    if not (isinstance(old, types.FunctionType) and isinstance(new, types.FunctionType)):
        return False
    if old.__globals__ is not new.__globals__ or len(old.__closure__ or ()) != len(new.__closure__ or ()):
        return False
    old.__code__ = new.__code__
    fill_function(old, _state_of(new))
    return True


def _clear_caches(items: Sequence[Item]) -> None:
    """Clear the caches of functions: their entries may depend on what has changed."""
    for item in items:
        value = _found(item)[1]
        value = getattr(value, "__func__", value)
        if isinstance(value, CACHED_FUNCTION):
            value.cache_clear()


def _refusal(item: Item, value: Any) -> str:
    """Return what is said of an item that differs."""
    found = "has no such attribute" if value is MISSING else f"has {type(value).__name__} {value!r:.80}"
    return (
        f"f reaches {item.module}.{item.path}, which differs between this program and its workers, and "
        f"cannot be sent to them: a worker {found}. {REMEDY.format(item.module)}"
    )
