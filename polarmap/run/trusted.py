"""What functions were found to be (linear, acting on rows): only the first map of each has to find out.

The rule: a later map trusts what was found of f if all that f can reach is the same by value, with nothing
left out. f reaches its code, constants, closure, defaults and globals, what its code names of classes,
instances and modules, and how numpy treats errors of floating numbers (`numpy.errstate`). Functions of
installed libraries count by their code, and by the globals of the library that they and the functions they
call name. Classes of installed libraries, and objects in C, count by their names. If f reaches a value that
cannot be compared entirely (a lock, a generator, names that code makes), f is not trusted, and every map is
verified.
"""

from __future__ import annotations

import builtins
import functools
import hashlib
import operator
import pickle
import sys
import types
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.executors.module_state import (
    DYNAMIC_LOOKUP_NAMES,
    analyze_code,
    is_installed_file,
    is_library_module,
)
from polarmap.worker.module_state import IGNORED_ATTRIBUTES

LINEAR = "linear or affine in its block"

OF_MEMMAP = {"_mmap", "filename", "mode", "offset"}
_DISPATCHER: Any = type(np.sum) if hasattr(np.sum, "_implementation") else type(None)  # of functions of numpy

TRUSTED: dict[str, Any] = {}  # what maps of this process found


class Trust:
    """What was known of f as it is when a map begins: whether it is what the code assumes, or something else.

    What the map itself finds out is no reason for it to trust f.

    Parameters
    ----------
    f : callable
    what : is known, or not: the assumption of a code.
    dtypes : of the data.
    is_ours : true by construction.

    Attributes
    ----------
    known : Any
        What was noted of f, or of one that reaches the same, on data of such dtypes; None if nothing was.
    """

    def __init__(self, f: Any, what: str, dtypes: Sequence[np.dtype[Any]], is_ours: bool = False) -> None:
        self._call = f, what, list(dtypes)
        self._key = None if is_ours else _key(*self._call)
        self.known: Any = True if is_ours else TRUSTED.get(self._key or "")

    def note(self, value: Any = True) -> None:
        """Remember something of f for later maps, unless it has changed since this one began."""
        if self._key is not None and self._key == _key(*self._call):
            TRUSTED[self._key] = value


def _key(f: Any, what: str, dtypes: Sequence[np.dtype[Any]]) -> str | None:
    """What is told by: None of a function that cannot be compared."""
    known = fingerprint(f)
    return None if known is None else "\n".join([what, *(dtype.str for dtype in dtypes), known])


def fingerprint(f: Any) -> str | None:
    """Return a digest of all that f can reach, by the rule above; None if some of that cannot be compared.

    >>> def power(p): return lambda block: block ** p
    >>> fingerprint(power(1)) == fingerprint(power(1)), fingerprint(power(1)) == fingerprint(power(2))
    (True, False)
    >>> fingerprint(lambda block: eval("block")) is None
    True
    """
    try:
        return _Reached(f).hash.hexdigest()
    except Exception:  # pickle's, and whatever the caller's objects raise while they are looked at
        return None


class _Part:
    """Stands in a pickle for what pickle itself would keep by name, or not at all."""


class _Reached(pickle.Pickler):
    """Pickles into a hash: functions, classes and objects of the caller by what they hold, not by name."""

    def __init__(self, f: Any) -> None:
        self.hash = hashlib.sha256()
        super().__init__(types.SimpleNamespace(write=self.hash.update), 5)
        self._modules: dict[str, types.ModuleType] = {}
        self._attributes = {"__getattr__"}  # that code names, of whatever
        self.dump(f)
        self.dump(tuple(np.geterr().values()))
        self._dump_attributes_of_modules()

    def reducer_override(self, value: Any) -> Any:
        """What is pickled in place of a value: its parts as a state, which may lead back to it."""
        if value is _Part:
            return NotImplemented
        for kinds, parts in _PARTS:
            if isinstance(value, kinds):
                return _Part, (), parts(self, value)
        if is_library_module(type(value).__module__):
            return NotImplemented
        return _Part, (), self._parts_of_instance(value)

    def _parts_of_array(self, array: npt.NDArray[Any]) -> Any:
        held = _held_by_array(array)
        if array.dtype.hasobject or type(array) not in (np.ndarray, np.memmap, np.matrix):
            return type(array), array.__reduce__(), held
        data = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return type(array), array.dtype.descr, array.shape, data.hexdigest(), held

    def _parts_of_function(self, f: types.FunctionType) -> Any:
        parts = [analyze_code(f.__code__).digest, f.__closure__, f.__defaults__, f.__kwdefaults__, f.__dict__]
        if is_installed_file(f.__code__.co_filename):
            return parts + [(name, namespace.get(name)) for name, namespace in _globals_of_library(f)]
        code = analyze_code(f.__code__)
        if DYNAMIC_LOOKUP_NAMES & (code.global_names | code.attribute_names):
            raise pickle.PicklingError(f"{f.__qualname__} reaches things by names that code makes")
        self._attributes |= code.attribute_names
        known = vars(builtins) | f.__globals__
        parts += [(name, known.get(name)) for name in sorted(code.global_names)]
        package = str(f.__globals__.get("__package__") or "").split(".")
        places = [".".join(package[:depth]) + "." for depth in range(len(package) + 1)]
        named = {(place + name).strip(".") for name in code.imported_names for place in places}
        return [*parts, *map(sys.modules.get, sorted(named))]

    def _parts_of_code(self, code: types.CodeType) -> Any:
        return analyze_code(code).digest

    def _parts_of_cell(self, cell: types.CellType) -> Any:
        try:
            return ("cell", cell.cell_contents)
        except ValueError:
            return ("a variable without a value yet",)

    def _parts_of_property(self, value: Any) -> Any:
        names = ("fget", "fset", "fdel", "func", "attrname", "__func__", "__wrapped__")
        return type(value), [getattr(value, name, None) for name in names]

    def _parts_of_getter(self, getter: Any) -> Any:
        parts = getter.__reduce__()
        self._attributes |= {name for path in parts[1] if isinstance(path, str) for name in path.split(".")}
        return parts

    def _parts_of_class(self, value: type) -> Any:
        name = value.__module__, value.__qualname__
        if is_library_module(value.__module__):
            return name
        read = {key: one for key, one in vars(value).items() if key not in IGNORED_ATTRIBUTES}
        return name, type(value), value.__bases__, read

    def _parts_of_module(self, module: types.ModuleType) -> Any:
        self._modules[module.__name__] = module
        return module.__name__

    def _parts_of_context(self, variable: ContextVar[Any]) -> Any:
        is_of_errors = variable.name == "numpy.ufunc.extobj"  # which the fingerprint has already
        return variable.name, None if is_of_errors else variable.get(None)

    def _parts_of_ufunc(self, value: np.ufunc) -> Any:
        if getattr(np, value.__name__, None) is not value:
            raise pickle.PicklingError(f"{value} may hold a function")
        return value.__name__

    def _parts_of_instance(self, value: Any) -> Any:
        kind = type(value)
        slots = {
            name
            for base in kind.__mro__
            for name, one in vars(base).items()
            if isinstance(one, types.MemberDescriptorType)
        }
        parts = [kind, getattr(value, "__dict__", None)]
        parts += [(name, getattr(value, name, None)) for name in sorted(slots)]
        if _c_base(kind) is not object:
            made = value.__reduce_ex__(4)
            parts += [made] if isinstance(made, str) else [*made[:3], *(list(one or ()) for one in made[3:5])]
        return parts

    def _dump_attributes_of_modules(self) -> None:
        """Add what any code reached names of every module reached; which may reach more."""
        done: set[tuple[str, str]] = set()
        while True:
            found = {
                (name, one)
                for name, module in self._modules.items()
                for one in self._attributes & vars(module).keys()
            }
            if found == done:
                return
            for name, attribute in sorted(found - done):
                self.dump((name, attribute))
                self._dump_attribute(name, vars(self._modules[name])[attribute])
            done = found

    def _dump_attribute(self, module: str, value: Any) -> None:
        """A library's own object in C, which nobody can look into, counts by name."""
        try:
            self.dump(value)
        except Exception:
            if not (is_library_module(module) and is_library_module(getattr(value, "__module__", ""))):
                raise


_PARTS: list[tuple[tuple[Any, ...], Callable[[_Reached, Any], Any]]] = [
    ((np.ndarray,), _Reached._parts_of_array),
    ((types.FunctionType,), _Reached._parts_of_function),
    ((types.CodeType,), _Reached._parts_of_code),
    ((types.CellType,), _Reached._parts_of_cell),
    ((types.MethodType,), lambda _, method: (method.__func__, method.__self__)),
    ((property, staticmethod, classmethod, functools.cached_property), _Reached._parts_of_property),
    ((type(functools.lru_cache(len)),), _Reached._parts_of_property),
    ((operator.attrgetter, operator.methodcaller), _Reached._parts_of_getter),
    ((type,), _Reached._parts_of_class),
    ((types.ModuleType,), _Reached._parts_of_module),
    ((types.MappingProxyType,), lambda _, value: dict(value)),
    ((np.ufunc,), _Reached._parts_of_ufunc),
    ((ContextVar,), _Reached._parts_of_context),
    ((_DISPATCHER,), lambda _, value: (value.__name__, getattr(value, "_implementation", None))),
]


def _held_by_array(array: npt.NDArray[Any]) -> Any:
    """Return what an array of a subclass, or its dtype, holds besides its data; () of any other."""
    metadata = array.dtype.metadata
    if type(array) is np.ndarray and metadata is None:
        return ()
    held = dict(getattr(array, "__dict__", {}))
    if type(array) is np.memmap:  # says where its data are
        held = {name: value for name, value in held.items() if name not in OF_MEMMAP}
    slots = [
        (name, getattr(array, name, None))
        for kind in type(array).__mro__
        for name, one in vars(kind).items()
        if isinstance(one, types.MemberDescriptorType)
    ]
    return held, slots, metadata and dict(metadata)


class _Namespace:
    """The globals of a module, which a cache can hold."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.get = names.get


@functools.lru_cache(maxsize=1000)
def _globals_of_library(f: types.FunctionType) -> tuple[tuple[str, _Namespace], ...]:
    """Return the names of data that a function of a library, or one that it calls, reads; where each is."""
    found: dict[tuple[int, str], tuple[str, _Namespace]] = {}
    functions, seen = [f], set[int]()
    while functions:
        function: Any = functions.pop()
        function = getattr(function, "_implementation", function)  # of numpy's own kind of function
        if not isinstance(function, types.FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        code, names = analyze_code(function.__code__), function.__globals__
        places = [(names, code.global_names & names.keys())]
        for module in {id(one): one for one in map(names.get, code.global_names)}.values():
            if isinstance(module, types.ModuleType) and module is not sys:
                places.append((vars(module), code.attribute_names & vars(module).keys()))
        for namespace, named in places:
            for name in named:
                value = namespace[name]
                if callable(value):
                    functions.append(value)
                elif not (isinstance(value, types.ModuleType) or name.startswith("__")):
                    found[id(namespace), name] = name, _Namespace(namespace)
    return tuple(found[key] for key in sorted(found, key=lambda key: (key[1], key[0])))


def _c_base(kind: type) -> type:
    """The first of its bases whose instances are made in C."""
    for base in kind.__mro__:
        made_by = vars(base).get("__new__")
        if isinstance(made_by, types.BuiltinFunctionType) and made_by.__self__ is base:
            return base
    return object
