"""Collects the globals that the user's function f uses in the user's modules, to send their values with f.

The globals are found by the names in f's code: names of globals, and of attributes of modules and classes.
Code that looks up names at run time (`getattr`, `globals()`) may refer to anything in the modules that it
reaches. The standard library, installed libraries, polarmap, and modules that cloudpickle sends by value are
skipped.
"""

from __future__ import annotations

import dis
import functools
import itertools
import os
import random
import site
import sys
import sysconfig
import threading
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import cloudpickle

from polarmap.errors import CodeError
from polarmap.worker.module_state import (
    CLASS,
    LRU_CACHE_TYPE,
    MAIN_MODULES,
    MISMATCH_ADVICE,
    OPAQUE,
    RECORD_ATTRIBUTE,
    ModuleStateItem,
    ValueDescription,
    describe_value,
    digest_code,
    is_importable_by_name,
    list_settable_attributes,
)

# Code that uses one of these names may look up other names that are computed at run time.
DYNAMIC_LOOKUP_NAMES = {
    "__import__",
    "attrgetter",
    "eval",
    "exec",
    "getattr",
    "globals",
    "locals",
    "vars",
} | {*("__dict__", "__globals__", "import_module", "modules")}
IMMUTABLE_TYPES = {
    int,
    float,
    complex,
    bool,
    str,
    bytes,
    type(None),
    types.BuiltinFunctionType,
    types.ModuleType,
}
CONTAINER_TYPES = {dict, list, set, OrderedDict, defaultdict, deque}
# Types whose instances are interchangeable, such as locks. It makes no difference if one has been replaced.
STATELESS_TYPES = {type(threading.Lock()), type(threading.RLock()), random.Random}
MAX_CACHED_WALKS = 64  # the maximum number of results in the cache of `collect_module_state`
MODULE_ATTRIBUTES = {
    "__builtins__",
    "__cached__",
    "__doc__",
    "__file__",
    "__loader__",
    "__name__",
    "__package__",
} | {*("__path__", "__spec__", "__annotations__", "__getattr__", "__dir__", RECORD_ATTRIBUTE)}


class CodeNames(NamedTuple):
    """The names that a function's code uses, by kind, and a digest of its bytecode.

    `assigned_globals` contains the names of the globals that the function assigns to or deletes.
    """

    digest: str
    global_names: frozenset[str]
    attribute_names: frozenset[str]
    imported_names: frozenset[str]
    assigned_globals: frozenset[str]


@functools.lru_cache(maxsize=1000)
def analyze_code(code: types.CodeType) -> CodeNames:
    """Return the names to which a code object and its nested functions refer."""
    inner_codes = [analyze_code(item) for item in code.co_consts if isinstance(item, types.CodeType)]
    names_by_kind: dict[str, set[str]] = {
        "global_names": set(),
        "attribute_names": set(),
        "imported_names": set(),
        "assigned_globals": set(),
    }
    for item in dis.get_instructions(code):
        if item.opcode in dis.hasname:
            is_global = "GLOBAL" in item.opname or item.opname.endswith("_NAME")
            kind = "global_names" if is_global else "attribute_names"
            if item.opname == "IMPORT_NAME":
                kind = "imported_names"
            names_by_kind[kind].add(item.argval)
            if item.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                names_by_kind["assigned_globals"].add(item.argval)
    frozen_names = {
        kind: frozenset(own_names.union(*(getattr(item, kind) for item in inner_codes)))
        for kind, own_names in names_by_kind.items()
    }
    return CodeNames(digest_code(code), **frozen_names)


@functools.cache
def _list_installed_path_prefixes() -> tuple[str, ...]:
    """Return the path prefixes of files that are not the user's own code.

    These are the folders of the standard library, of installed libraries and of polarmap.
    """
    package_parent = os.path.dirname(os.path.dirname(__file__))
    paths = sysconfig.get_paths()
    installed_paths = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    installed_paths |= {package_parent, *site.getsitepackages(), site.getusersitepackages()}
    return ("<frozen", *(os.path.join(folder, "") for folder in installed_paths))


def is_installed_file(file: str) -> bool:
    """Return True if a source file belongs to Python, an installed library or polarmap."""
    if file.startswith(_list_installed_path_prefixes()):
        return True
    # PYTHONPATH may contain a folder of another Python environment, whose prefix is not in the list.
    folders = file.replace("\\", "/").split("/")
    return "site-packages" in folders or "dist-packages" in folders


def is_library_module(module_name: str) -> bool:
    """Return True if a module belongs to Python, an installed library or polarmap."""
    file = getattr(sys.modules.get(module_name), "__file__", None)
    if file is None:
        return module_name in sys.builtin_module_names or module_name in sys.stdlib_module_names
    return is_installed_file(file) and module_name not in MAIN_MODULES


# Cache: module name -> True if the module is the user's own code.
_user_module_cache: dict[str, bool] = {}


def _is_user_module(module_name: Any) -> bool:
    """Return True if a module is the user's own code and workers import it from a file."""
    is_user_module: bool | None = _user_module_cache.get(module_name)
    if is_user_module is None:
        if module_name not in sys.modules:
            return False
        is_user_module = _user_module_cache[module_name] = (
            module_name not in MAIN_MODULES and not is_library_module(module_name)
        )
    return is_user_module and not _is_pickled_by_value(module_name)


def _is_pickled_by_value(module_name: str) -> bool:
    """Return True if a module or its package is registered with cloudpickle to be pickled by value."""
    registered = cloudpickle.list_registry_pickle_by_value()
    while module_name and module_name not in registered:
        module_name = module_name.rpartition(".")[0]
    return bool(module_name)


def select_user_objects(objects: Iterable[Any]) -> list[Any]:
    """Return only those functions, classes and modules that are part of the user's code."""
    user_objects = []
    for each_object in objects:
        module_name: Any = (
            each_object.__name__
            if type(each_object) is types.ModuleType
            else getattr(each_object, "__module__", None)
        )
        if _user_module_cache.get(module_name, True) and _is_user_module(module_name):
            user_objects.append(each_object)
    return user_objects


def collect_module_state(reached_objects: Sequence[Any], by_value: bool = False) -> list[ModuleStateItem]:
    """Return the current values of all globals and attributes that functions use, even indirectly.

    Only the user's own modules are searched. Workers import them from files, so the values there may differ.
    The result is cached until a value changes.

    Parameters
    ----------
    reached_objects : sequence
        The functions, classes and modules that the pickle of the user's function f contains.
    by_value : bool
        True if polarmap's worker code is part of the pickle.
    """
    if not select_user_objects(reached_objects):
        return []
    # Identify a function by its code object, because the function itself may be re-created for each map.
    kept_alive = [getattr(each_object, "__code__", each_object) for each_object in reached_objects]
    cache_key = by_value, *map(id, kept_alive)
    walk = _walk_cache.get(cache_key)
    if walk is None or not walk.is_up_to_date():
        if len(_walk_cache) >= MAX_CACHED_WALKS:
            _walk_cache.clear()
        walk = _walk_cache[cache_key] = _ModuleStateWalk(reached_objects, kept_alive)
    return walk.items


class _ModuleStateWalk:
    """A graph search for all globals and attributes that functions use, directly or indirectly.

    The search also records what is needed to detect later changes of the values.

    Parameters
    ----------
    reached_objects : sequence
        The functions, classes and modules from which the search starts.
    kept_alive : sequence
        Objects to keep alive, so that their `id` is not reused.

    Attributes
    ----------
    items : list of ModuleStateItem
        The values that were found.
    """

    def __init__(self, reached_objects: Sequence[Any], kept_alive: Sequence[Any]) -> None:
        self._kept_alive = kept_alive
        # (module name, path) -> (description, value) of each value found.
        self._described_values: dict[tuple[str, str], tuple[Any, Any]] = {}
        self._queue, self._visited_ids = list[Any](), set[int]()
        # All attribute names that occur in the visited code.
        self._attribute_names = set[str]()
        # The names of globals and attributes that functions assign to, by module.
        self._assigned_names: dict[str, set[str]] = {}
        self._modules: dict[str, types.ModuleType] = {}
        self._is_dynamic = False
        # The (namespace, name, value) of each name found, to detect whether the name gets another value.
        self._bindings: list[tuple[Any, str, Any]] = []
        # Each visited namespace and its number of names, to detect new names.
        self._namespace_sizes: list[tuple[Any, int]] = []
        # Each function found, with its code, defaults and number of attributes, to detect changes of these.
        self._function_codes: list[tuple[Any, ...]] = []
        # The module name, path, value and fingerprint of each mutable value, to detect changes in place.
        self._mutable_values: list[tuple[str, str, Any, Any]] = []
        for each_object in reached_objects:
            if isinstance(each_object, types.FunctionType) and not is_importable_by_name(each_object):
                # cloudpickle already sends this function's globals by value, so do not collect them.
                self._record_names(each_object)
            else:
                self._queue.append(each_object)
        while self._queue or self._add_named_module_attributes():
            if self._queue:
                self._visit_object(self._queue.pop())
        namespaces = map(vars, self._modules.values())
        self._namespace_sizes += [(namespace, len(namespace)) for namespace in namespaces]
        self.items = [
            self._make_item(*module_and_path, *description_and_value)
            for module_and_path, description_and_value in self._described_values.items()
        ]
        self._described_values.clear()

    def is_up_to_date(self) -> bool:
        """Return True if no value has changed since it was found.

        Immutable values are compared by identity, mutable values by a fingerprint of their contents.
        """
        for namespace, name, value in self._bindings:
            if namespace.get(name) is not value:
                return False
        for namespace, size in self._namespace_sizes:
            if len(namespace) != size:
                return False
        for function, code, defaults, keyword_defaults, size in self._function_codes:
            if function.__code__ is not code or len(function.__dict__) != size:
                return False
            if function.__defaults__ is not defaults or function.__kwdefaults__ is not keyword_defaults:
                return False
        for module, path, value, fingerprint in self._mutable_values:
            if describe_value(module, path, value).fingerprint != fingerprint:
                return False
        return True

    def _visit_object(self, value: Any) -> None:
        if id(value) in self._visited_ids:
            return
        self._visited_ids.add(id(value))
        if isinstance(value, types.ModuleType):
            if _is_user_module(value.__name__):
                self._modules[value.__name__] = value
        elif isinstance(value, type):
            self._visit_class(value)
        else:
            self._visit_function(value)

    def _visit_function(self, value: Any) -> None:
        """Collect the values of the globals to which a user's function refers."""
        function = value
        while isinstance(function, LRU_CACHE_TYPE):
            function = function.__wrapped__
        if not isinstance(function, types.FunctionType) or is_library_module(function.__module__ or ""):
            return
        code_names, module_name = self._record_names(function), str(function.__globals__.get("__name__"))
        if not _is_user_module(module_name) or vars(sys.modules[module_name]) is not function.__globals__:
            return
        self._modules.setdefault(module_name, sys.modules[module_name])
        self._assigned_names.setdefault(module_name, set()).update(code_names.assigned_globals)
        outer_name, _, _ = getattr(value, "__qualname__", "").partition(".")
        names = code_names.global_names
        if value.__module__ == module_name and "<" not in outer_name:
            names = names | {outer_name}
        for name in sorted(names & function.__globals__.keys()):
            self._add_value(module_name, name, function.__globals__, function.__globals__[name])

    def _record_names(self, function: types.FunctionType) -> CodeNames:
        """Record and return the names to which a function's code refers."""
        code_names = analyze_code(function.__code__)
        if not is_library_module(function.__module__ or ""):
            self._attribute_names |= code_names.attribute_names
            looked_up_names = code_names.global_names | code_names.attribute_names
            self._is_dynamic |= bool(DYNAMIC_LOOKUP_NAMES & looked_up_names)
            self._visit_imports(function, code_names.imported_names)
        return code_names

    def _visit_imports(self, function: types.FunctionType, imported_names: Iterable[str]) -> None:
        """Queue the modules that a function's code imports, to be visited later.

        The names may be absolute, or relative to any package that contains the function, so each name is
        looked up in both ways. Parent packages that are part of an imported name are also queued.
        """
        package = str(function.__globals__.get("__package__") or "").split(".")
        base_packages = [package[:depth] for depth in range(len(package) + 1)]
        for base_package, name in itertools.product(base_packages, sorted(imported_names)):
            parts = [*base_package, *filter(None, name.split("."))]
            lengths = range(len(base_package) + bool(name), len(parts) + 1)
            module_names = {".".join(parts[:length]) for length in lengths}
            self._queue += [sys.modules[item] for item in sorted(module_names & sys.modules.keys())]

    def _visit_class(self, user_class: type) -> None:
        """Collect the values of the attributes of a user's class, and queue its base classes."""
        self._queue += [*user_class.__bases__, type(user_class)]
        module_name = user_class.__module__
        if not _is_user_module(module_name) or "<" in user_class.__qualname__:
            return
        resolved: Any = sys.modules[module_name]
        for name in user_class.__qualname__.split("."):
            namespace, resolved = vars(resolved), vars(resolved).get(name)
            if not isinstance(resolved, type):
                return
        if resolved is not user_class:
            return
        self._add_value(module_name, user_class.__qualname__, namespace, user_class)
        self._namespace_sizes.append((vars(user_class), len(vars(user_class))))
        for name in list_settable_attributes(user_class):
            attributes = vars(user_class)
            self._add_value(module_name, f"{user_class.__qualname__}.{name}", attributes, attributes[name])

    def _add_named_module_attributes(self) -> bool:
        """Collect the module attributes that the visited code may use, as in `module.attribute`.

        These are the attributes whose names occur in the code, or all attributes if the code looks up names
        at run time. Return True if this has found new objects to visit.
        """
        for module_name, module in list(self._modules.items()):
            names = vars(module).keys() - MODULE_ATTRIBUTES
            for name in sorted(names if self._is_dynamic else names & self._attribute_names):
                self._add_value(module_name, name, vars(module), vars(module)[name])
        return bool(self._queue)

    def _add_value(self, module_name: str, path: str, namespace: Any, value: Any) -> None:
        """Collect a value, and queue the functions, classes and modules to which it refers.

        `path` is the name of the value in its module, with dots for an attribute of a class or instance, for
        example "Config.limit". `namespace` is the dict that contains the value.
        """
        if (module_name, path) in self._described_values or path in MODULE_ATTRIBUTES:
            return
        if isinstance(value, (types.FunctionType, type, types.ModuleType)):
            defining_module = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
            if str(defining_module).partition(".")[0] == "polarmap":
                # Do not send polarmap's own objects, because workers may have another version of polarmap.
                return
        description = describe_value(module_name, path, value)
        self._described_values[module_name, path] = description, value
        self._queue += description.reached
        self._bindings.append((namespace, path.rpartition(".")[2], value))
        for function in _list_functions(value):
            defaults = function.__defaults__, function.__kwdefaults__
            self._function_codes.append((function, function.__code__, *defaults, len(function.__dict__)))
        is_fixed = (
            description.kind in (CLASS, OPAQUE)
            or type(value) in IMMUTABLE_TYPES
            or _is_fixed_by_code(value, description)
        )
        if not is_fixed:
            self._mutable_values.append((module_name, path, value, description.fingerprint))
        if description.kind == OPAQUE:
            self._add_opaque_members(module_name, path, value)

    def _add_opaque_members(self, module_name: str, path: str, value: Any) -> None:
        """Collect the attributes of an instance, or the items of a dict, one by one.

        This is done if the instance or dict cannot be pickled as a whole.
        """
        is_dict = type(value) is dict
        if not (is_dict or _is_user_module(type(value).__module__)) or id(value) in self._visited_ids:
            return
        self._visited_ids.add(id(value))
        namespace = value if is_dict else getattr(value, "__dict__", {})
        self._namespace_sizes.append((namespace, len(namespace)))
        for name, member in list(namespace.items()):
            if isinstance(name, str) and name.isidentifier():
                self._add_value(module_name, f"{path}.{name}", namespace, member)

    def _make_item(
        self, module_name: str, path: str, description: ValueDescription, value: Any
    ) -> ModuleStateItem:
        is_assigned = path in self._assigned_names.get(module_name, ())
        is_empty = type(value) in CONTAINER_TYPES and not value
        if description.kind == OPAQUE and not is_assigned:
            _check_object_unchanged_since_import(module_name, path, value)
        return ModuleStateItem(module_name, path, *description[:3], is_assigned or is_empty)


def _check_object_unchanged_since_import(module_name: str, path: str, value: Any) -> None:
    """Raise CodeError if an object that cannot be pickled has been replaced since the first map.

    Such an object is not sent. Workers use the object that is created when they import the module, which
    corresponds only to the original object.
    """
    if type(value) in STATELESS_TYPES or type(value).__module__.startswith("numpy.random"):
        return
    # The module's spec shows whether the module was reloaded, because `importlib.reload` creates a new spec.
    module_spec = getattr(sys.modules[module_name], "__spec__", None)
    seen_spec, first_object_ref = _first_seen_objects.get((module_name, path), (None, None))
    if first_object_ref is None or seen_spec is not module_spec:
        try:
            first_object_ref = weakref.ref(value)
        except TypeError:
            first_object_ref = partial(lambda held_object: held_object, value)
        _first_seen_objects[module_name, path] = module_spec, first_object_ref
    elif first_object_ref() is not value:
        raise CodeError(
            f"f refers to {module_name}.{path}, a {type(value).__name__} that was replaced since the first "
            f"map and cannot be sent to workers. {MISMATCH_ADVICE.format(module_name)}"
        )


def _list_functions(value: Any) -> list[types.FunctionType]:
    """Return the Python functions behind a function, method or property."""
    value_type = type(value)
    if value_type is property:
        candidates = [value.fget, value.fset, value.fdel]
    else:
        candidates = [value.__func__ if value_type in (staticmethod, classmethod) else value]
    return [candidate for candidate in candidates if type(candidate) is types.FunctionType]


def _is_fixed_by_code(value: Any, description: ValueDescription) -> bool:
    """Return True if changes of a function or class can be detected without computing a fingerprint.

    This is the case if it has no mutable state, such as a closure. It can then change only if the object
    itself or its code is replaced.
    """
    functions = _list_functions(value)
    if not (description.contains_code and functions):
        return not description.contains_code and (bool(functions) or issubclass(type(value), type))
    return not any(
        function.__closure__
        or function.__kwdefaults__
        or function.__dict__
        or not IMMUTABLE_TYPES.issuperset(default_types)
        for function, default_types in [
            (function, map(type, function.__defaults__ or ())) for function in functions
        ]
    )


# For each unpicklable object that the first map found: (module name, path) -> (module spec, reference).
_first_seen_objects: dict[tuple[str, str], tuple[Any, Any]] = {}
_walk_cache: dict[tuple[bool | int, ...], _ModuleStateWalk] = {}
