"""Compute a fingerprint of a function: a digest of its code and of all data that the code can reach.

Functions with equal fingerprints behave alike, so a property verified for one holds for the other. The digest
covers the code, constants, closure, defaults and globals of a function, the attributes of classes, instances
and modules that its code mentions, and NumPy's handling of floating-point errors (`numpy.errstate`). A
function of an installed library is represented by its code and the library's globals that it reads, directly
or through functions that it calls. Classes of installed libraries and objects implemented in C are
represented by their names. If the function reaches a value that cannot be compared by value (a lock, a
generator, an attribute name that is computed at run time), it has no fingerprint.
"""

from __future__ import annotations

import builtins
import functools
import hashlib
import operator
import pickle
import sys
import types
from collections.abc import Callable
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

MEMMAP_ATTRIBUTES = {"_mmap", "filename", "mode", "offset"}
# The type of NumPy functions that dispatch to other array libraries, or NoneType if this NumPy has none.
_DISPATCHER_TYPE: Any = type(np.sum) if hasattr(np.sum, "_implementation") else type(None)


def compute_function_fingerprint(f: Any) -> str | None:
    """Return a digest of the code of `f` and all reachable data, or None if some of it cannot be compared.

    >>> def power(p): return lambda block: block ** p
    >>> first, same, different = [compute_function_fingerprint(power(p)) for p in (1, 1, 2)]
    >>> first == same, first == different
    (True, False)
    >>> compute_function_fingerprint(lambda block: eval("block")) is None
    True
    """
    try:
        return _FingerprintPickler(f).hash.hexdigest()
    except Exception:  # raised by pickle, or when attributes of the user's objects are read
        return None


class _PicklePlaceholder:
    """A placeholder to pickle in place of an object that pickle cannot store, or stores by name only."""


class _FingerprintPickler(pickle.Pickler):
    """A pickler that hashes its output instead of storing it, to compute the fingerprint of a function.

    Python functions are pickled by value, i.e. with their code and the data that they use, not by name.
    """

    def __init__(self, f: Any) -> None:
        self.hash = hashlib.sha256()
        super().__init__(types.SimpleNamespace(write=self.hash.update), 5)
        self._reached_modules: dict[str, types.ModuleType] = {}
        self._attribute_names = {"__getattr__"}  # all attribute names that appear in the reached code
        self.dump(f)
        self.dump(tuple(np.geterr().values()))
        self._dump_module_attributes()

    def reducer_override(self, value: Any) -> Any:
        """Return what to pickle in place of `value`: a placeholder whose state consists of its parts.

        Called by the pickler for each object that it reaches.
        """
        if value is _PicklePlaceholder:
            return NotImplemented
        for classes, reduce_value in _REDUCERS:
            if isinstance(value, classes):
                return _PicklePlaceholder, (), reduce_value(self, value)
        if is_library_module(type(value).__module__):
            return NotImplemented
        return _PicklePlaceholder, (), self._reduce_instance(value)

    def _reduce_array(self, array: npt.NDArray[Any]) -> Any:
        extra_state = _get_array_subclass_state(array)
        if array.dtype.hasobject or type(array) not in (np.ndarray, np.memmap, np.matrix):
            return type(array), array.__reduce__(), extra_state
        data = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return type(array), array.dtype.descr, array.shape, data.hexdigest(), extra_state

    def _reduce_function(self, f: types.FunctionType) -> Any:
        state = [analyze_code(f.__code__).digest, f.__closure__, f.__defaults__, f.__kwdefaults__, f.__dict__]
        if is_installed_file(f.__code__.co_filename):
            return state + [(name, namespace.get(name)) for name, namespace in _find_library_globals(f)]
        code = analyze_code(f.__code__)
        if DYNAMIC_LOOKUP_NAMES & (code.global_names | code.attribute_names):
            raise pickle.PicklingError(f"{f.__qualname__} reaches things by names that code makes")
        self._attribute_names |= code.attribute_names
        visible_names = vars(builtins) | f.__globals__
        state += [(name, visible_names.get(name)) for name in sorted(code.global_names)]
        package = str(f.__globals__.get("__package__") or "").split(".")
        package_prefixes = [".".join(package[:depth]) + "." for depth in range(len(package) + 1)]
        module_names = {
            (prefix + name).strip(".") for name in code.imported_names for prefix in package_prefixes
        }
        return [*state, *map(sys.modules.get, sorted(module_names))]

    def _reduce_code(self, code: types.CodeType) -> Any:
        return analyze_code(code).digest

    def _reduce_closure_cell(self, cell: types.CellType) -> Any:
        try:
            return ("cell", cell.cell_contents)
        except ValueError:
            return ("a variable without a value yet",)

    def _reduce_property(self, value: Any) -> Any:
        names = ("fget", "fset", "fdel", "func", "attrname", "__func__", "__wrapped__")
        return type(value), [getattr(value, name, None) for name in names]

    def _reduce_attribute_getter(self, getter: Any) -> Any:
        reduced = getter.__reduce__()
        self._attribute_names |= {
            name for path in reduced[1] if isinstance(path, str) for name in path.split(".")
        }
        return reduced

    def _reduce_class(self, class_: type) -> Any:
        name = class_.__module__, class_.__qualname__
        if is_library_module(class_.__module__):
            return name
        attributes = {key: value for key, value in vars(class_).items() if key not in IGNORED_ATTRIBUTES}
        return name, type(class_), class_.__bases__, attributes

    def _reduce_module(self, module: types.ModuleType) -> Any:
        self._reached_modules[module.__name__] = module
        return module.__name__

    def _reduce_context_variable(self, variable: ContextVar[Any]) -> Any:
        holds_numpy_errors = variable.name == "numpy.ufunc.extobj"  # hashed separately
        return variable.name, None if holds_numpy_errors else variable.get(None)

    def _reduce_ufunc(self, ufunc: np.ufunc) -> Any:
        if getattr(np, ufunc.__name__, None) is not ufunc:
            raise pickle.PicklingError(f"{ufunc} may hold a function")
        return ufunc.__name__

    def _reduce_instance(self, instance: Any) -> Any:
        class_ = type(instance)
        slots = {
            name
            for base in class_.__mro__
            for name, element in vars(base).items()
            if isinstance(element, types.MemberDescriptorType)
        }
        state = [class_, getattr(instance, "__dict__", None)]
        state += [(name, getattr(instance, name, None)) for name in sorted(slots)]
        if _find_c_base_class(class_) is not object:
            reduced = instance.__reduce_ex__(4)
            if isinstance(reduced, str):
                return [*state, reduced]
            state += [*reduced[:3], *(list(element or ()) for element in reduced[3:5])]
        return state

    def _dump_module_attributes(self) -> None:
        """Add to the hash those attributes of reachable modules that the function's code mentions.

        An attribute may refer to further modules, so this is repeated until no new attributes are found.
        """
        dumped: set[tuple[str, str]] = set()
        while True:
            reached = {
                (module_name, attribute_name)
                for module_name, module in self._reached_modules.items()
                for attribute_name in self._attribute_names & vars(module).keys()
            }
            if reached == dumped:
                return
            for module_name, attribute in sorted(reached - dumped):
                self.dump((module_name, attribute))
                self._dump_module_attribute(module_name, vars(self._reached_modules[module_name])[attribute])
            dumped = reached

    def _dump_module_attribute(self, module_name: str, value: Any) -> None:
        """Add a module attribute to the hash. Library objects that cannot be pickled are hashed by name."""
        try:
            self.dump(value)
        except Exception:
            if not (is_library_module(module_name) and is_library_module(getattr(value, "__module__", ""))):
                raise


_REDUCERS: list[tuple[tuple[Any, ...], Callable[[_FingerprintPickler, Any], Any]]] = [
    ((np.ndarray,), _FingerprintPickler._reduce_array),
    ((types.FunctionType,), _FingerprintPickler._reduce_function),
    ((types.CodeType,), _FingerprintPickler._reduce_code),
    ((types.CellType,), _FingerprintPickler._reduce_closure_cell),
    ((types.MethodType,), lambda _, method: (method.__func__, method.__self__)),
    ((property, staticmethod, classmethod, functools.cached_property), _FingerprintPickler._reduce_property),
    ((type(functools.lru_cache(len)),), _FingerprintPickler._reduce_property),
    ((operator.attrgetter, operator.methodcaller), _FingerprintPickler._reduce_attribute_getter),
    ((type,), _FingerprintPickler._reduce_class),
    ((types.ModuleType,), _FingerprintPickler._reduce_module),
    ((types.MappingProxyType,), lambda _, value: dict(value)),
    ((np.ufunc,), _FingerprintPickler._reduce_ufunc),
    ((ContextVar,), _FingerprintPickler._reduce_context_variable),
    ((_DISPATCHER_TYPE,), lambda _, value: (value.__name__, getattr(value, "_implementation", None))),
]


def _get_array_subclass_state(array: npt.NDArray[Any]) -> Any:
    """Return an array's state apart from its data, or () for a plain array without dtype metadata."""
    metadata = array.dtype.metadata
    if type(array) is np.ndarray and metadata is None:
        return ()
    extra_attributes = dict(getattr(array, "__dict__", {}))
    if type(array) is np.memmap:  # These attributes only describe where the data is stored.
        extra_attributes = {
            name: value for name, value in extra_attributes.items() if name not in MEMMAP_ATTRIBUTES
        }
    slots = [
        (name, getattr(array, name, None))
        for class_ in type(array).__mro__
        for name, member in vars(class_).items()
        if isinstance(member, types.MemberDescriptorType)
    ]
    return extra_attributes, slots, metadata and dict(metadata)


class _HashableNamespace:
    """A hashable wrapper around the globals of a module, for use as an `lru_cache` key."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.get = names.get


@functools.lru_cache(maxsize=1000)
def _find_library_globals(f: types.FunctionType) -> tuple[tuple[str, _HashableNamespace], ...]:
    """Return the global variables that a library function reads, directly or through functions it calls.

    Returns pairs of a variable name and the namespace in which to look it up.
    """
    read_globals: dict[tuple[int, str], tuple[str, _HashableNamespace]] = {}
    pending_functions, visited_ids = [f], set[int]()
    while pending_functions:
        function: Any = pending_functions.pop()
        function = getattr(function, "_implementation", function)  # unwrap NumPy's dispatching functions
        if not isinstance(function, types.FunctionType) or id(function) in visited_ids:
            continue
        visited_ids.add(id(function))
        code, function_globals = analyze_code(function.__code__), function.__globals__
        names_by_namespace = [(function_globals, code.global_names & function_globals.keys())]
        globals_by_id = {id(value): value for value in map(function_globals.get, code.global_names)}
        for module in globals_by_id.values():
            if isinstance(module, types.ModuleType) and module is not sys:
                names_by_namespace.append((vars(module), code.attribute_names & vars(module).keys()))
        for namespace, names in names_by_namespace:
            for name in names:
                value = namespace[name]
                if callable(value):
                    pending_functions.append(value)
                elif not (isinstance(value, types.ModuleType) or name.startswith("__")):
                    read_globals[id(namespace), name] = name, _HashableNamespace(namespace)
    return tuple(read_globals[key] for key in sorted(read_globals, key=lambda key: (key[1], key[0])))


def _find_c_base_class(class_: type) -> type:
    """Return the first class in the MRO of `class_` that is implemented in C."""
    for base in class_.__mro__:
        constructor = vars(base).get("__new__")
        if isinstance(constructor, types.BuiltinFunctionType) and constructor.__self__ is base:
            return base
    return object
