"""What f reaches in modules of the caller's, as it is on the driver now: it travels with f.

Code names what it reaches: globals, attributes of modules and of classes. What it names while it runs
(`getattr`, `globals()`) may be anything in the modules that it reaches. Modules of Python, of installed
libraries and of polarmap are left out, and so are those that cloudpickle sends by value.
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

# What reaches things by names that are made while it runs.
DYNAMIC = {"__import__", "attrgetter", "eval", "exec", "getattr", "globals", "locals", "vars"} | {
    *("__dict__", "__globals__", "import_module", "modules")
}
IMMUTABLE = {int, float, complex, bool, str, bytes, type(None), types.BuiltinFunctionType, types.ModuleType}
CONTAINERS = {dict, list, set, OrderedDict, defaultdict, deque}
# Any two of a type are as good as each other.
HAVE_NO_STATE = {type(threading.Lock()), type(threading.RLock()), random.Random}
REMEMBERED = 64  # states of different functions
OF_MODULES = {
    "__builtins__",
    "__cached__",
    "__doc__",
    "__file__",
    "__loader__",
    "__name__",
    "__package__",
} | {*("__path__", "__spec__", "__annotations__", "__getattr__", "__dir__", RECORD_ATTRIBUTE)}


class Code(NamedTuple):
    """What a function does, the names by which it reaches more, and the globals that it assigns."""

    digest: str
    names: frozenset[str]
    attributes: frozenset[str]
    imports: frozenset[str]
    assigned: frozenset[str]


@functools.lru_cache(maxsize=1000)
def read_code(code: types.CodeType) -> Code:
    """Return the digest and the names of code, and of what is inside."""
    inner = [read_code(one) for one in code.co_consts if isinstance(one, types.CodeType)]
    found: dict[str, set[str]] = {"names": set(), "attributes": set(), "imports": set(), "assigned": set()}
    for one in dis.get_instructions(code):
        if one.opcode in dis.hasname:
            is_global = "GLOBAL" in one.opname or one.opname.endswith("_NAME")
            kind = "imports" if one.opname == "IMPORT_NAME" else "names" if is_global else "attributes"
            found[kind].add(one.argval)
            if one.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                found["assigned"].add(one.argval)
    sets = {kind: frozenset(own.union(*(getattr(one, kind) for one in inner))) for kind, own in found.items()}
    return Code(digest_code(code), **sets)


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    """Return what the names of files begin with that are not the caller's."""
    ours = os.path.dirname(os.path.dirname(__file__))
    known = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    known |= {ours, *site.getsitepackages(), site.getusersitepackages()}
    return ("<frozen", *(os.path.join(folder, "") for folder in known))


def is_installed(file: str) -> bool:
    """Tell whether a file of code belongs to Python, to an installed library or to polarmap."""
    if file.startswith(_installed_folders()):
        return True
    folders = file.replace("\\", "/").split("/")  # of another environment, which PYTHONPATH may name
    return "site-packages" in folders or "dist-packages" in folders


def is_library(name: str) -> bool:
    """Tell whether a module does, by its name."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return name in sys.builtin_module_names or name in sys.stdlib_module_names
    return is_installed(file) and name not in MAIN_MODULES


_known: dict[str, bool] = {}  # whether a module of this name is the caller's


def _is_own(name: Any) -> bool:
    """Tell whether a module is the caller's, and imported by workers."""
    known: bool | None = _known.get(name)
    if known is None:
        if name not in sys.modules:
            return False
        known = _known[name] = name not in MAIN_MODULES and not is_library(name)
    return known and not _travels_by_value(name)


def _travels_by_value(name: str) -> bool:
    """Tell whether cloudpickle sends a module by value, as the caller has asked for."""
    registered = cloudpickle.list_registry_pickle_by_value()
    while name and name not in registered:
        name = name.rpartition(".")[0]
    return bool(name)


def own(reached: Iterable[Any]) -> list[Any]:
    """Return those of some functions, classes and modules that are of modules of the caller's."""
    found = []
    for one in reached:
        name: Any = one.__name__ if type(one) is types.ModuleType else getattr(one, "__module__", None)
        if _known.get(name, True) and _is_own(name):
            found.append(one)
    return found


def state_of(reached: Sequence[Any], by_value: bool = False) -> list[ModuleStateItem]:
    """Return all that functions, classes and modules reach in modules of the caller's, as it is now.

    The state is described anew where something has changed.

    reached : what a pickler of f has come across.
    by_value : whether what runs on workers travels with it.
    """
    if not own(reached):
        return []
    # A function that travels by value may be made anew for each map: its code is the same.
    held = [getattr(one, "__code__", one) for one in reached]
    key = by_value, *map(id, held)
    walk = _walks.get(key)
    if walk is None or not walk.is_current():
        if len(_walks) >= REMEMBERED:
            _walks.clear()
        walk = _walks[key] = _Walk(reached, held)
    return walk.state


class _Walk:
    """The state that functions, classes and modules reach, and what tells whether it has changed since.

    Parameters
    ----------
    reached : where it begins.
    held : is kept, so that no other object gets the identity of one of these.

    Attributes
    ----------
    state : list of Item
    """

    def __init__(self, reached: Sequence[Any], held: Sequence[Any]) -> None:
        self._held = held
        self._values: dict[tuple[str, str], tuple[Any, Any]] = {}  # description and value of each name
        self._queue, self._seen = list[Any](), set[int]()
        self._attributes = set[str]()  # that code names, of whatever
        self._assigned: dict[str, set[str]] = {}  # globals and attributes that functions of a module assign
        self._modules: dict[str, types.ModuleType] = {}
        self._is_dynamic = False
        self._bound: list[tuple[Any, str, Any]] = []  # namespace, name and value
        self._sizes: list[tuple[Any, int]] = []  # of namespaces
        self._codes: list[tuple[Any, ...]] = []  # function, code, defaults and count of attributes
        self._mutable: list[tuple[str, str, Any, Any]] = []  # module, path, value and fingerprint
        for one in reached:
            if isinstance(one, types.FunctionType) and not is_importable_by_name(one):
                self._note_names(one)  # it travels with the globals that it names
            else:
                self._queue.append(one)
        while self._queue or self._add_attributes_of_modules():
            if self._queue:
                self._visit(self._queue.pop())
        self._sizes += [(vars(one), len(vars(one))) for one in self._modules.values()]
        self.state = [self._item(*name, *known) for name, known in self._values.items()]
        self._values.clear()

    def is_current(self) -> bool:
        """Tell whether nothing has changed: what cannot change in place is the same object."""
        for namespace, name, value in self._bound:
            if namespace.get(name) is not value:
                return False
        for namespace, size in self._sizes:
            if len(namespace) != size:
                return False
        for function, code, defaults, by_name, size in self._codes:
            if function.__code__ is not code or len(function.__dict__) != size:
                return False
            if function.__defaults__ is not defaults or function.__kwdefaults__ is not by_name:
                return False
        for module, path, value, fingerprint in self._mutable:
            if describe_value(module, path, value).fingerprint != fingerprint:
                return False
        return True

    def _visit(self, value: Any) -> None:
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, types.ModuleType):
            if _is_own(value.__name__):
                self._modules[value.__name__] = value
        elif isinstance(value, type):
            self._visit_class(value)
        else:
            self._visit_function(value)

    def _visit_function(self, value: Any) -> None:
        """Add the globals that code names, if they are those of a module of the caller's."""
        function = value
        while isinstance(function, LRU_CACHE_TYPE):
            function = function.__wrapped__
        if not isinstance(function, types.FunctionType) or is_library(function.__module__ or ""):
            return
        code, module = self._note_names(function), str(function.__globals__.get("__name__"))
        if not _is_own(module) or vars(sys.modules[module]) is not function.__globals__:
            return
        self._modules.setdefault(module, sys.modules[module])
        self._assigned.setdefault(module, set()).update(code.assigned)
        first, _, _ = getattr(value, "__qualname__", "").partition(".")
        names = {first, *code.names} if value.__module__ == module and "<" not in first else code.names
        for name in sorted(names & function.__globals__.keys()):
            self._add(module, name, function.__globals__, function.__globals__[name])

    def _note_names(self, function: types.FunctionType) -> Code:
        """Note what code names of whatever modules are reached."""
        code = read_code(function.__code__)
        if not is_library(function.__module__ or ""):
            self._attributes |= code.attributes
            self._is_dynamic |= bool(DYNAMIC & (code.names | code.attributes))
            self._visit_imports(function, code.imports)
        return code

    def _visit_imports(self, function: types.FunctionType, names: Iterable[str]) -> None:
        """Add the modules that code imports, absolutely or relative to its package.

        The packages around a module are added too, but not those that only a relative import would pass.
        """
        package = str(function.__globals__.get("__package__") or "").split(".")
        places = [package[:depth] for depth in range(len(package) + 1)]
        for place, name in itertools.product(places, sorted(names)):
            parts = [*place, *filter(None, name.split("."))]
            prefixes = {".".join(parts[:count]) for count in range(len(place) + bool(name), len(parts) + 1)}
            self._queue += [sys.modules[one] for one in sorted(prefixes & sys.modules.keys())]

    def _visit_class(self, kind: type) -> None:
        """Add the attributes of a class of the caller's, and those of its bases."""
        self._queue += [*kind.__bases__, type(kind)]
        module = kind.__module__
        if not _is_own(module) or "<" in kind.__qualname__:
            return
        found: Any = sys.modules[module]
        for name in kind.__qualname__.split("."):
            namespace, found = vars(found), vars(found).get(name)
            if not isinstance(found, type):
                return
        if found is not kind:
            return
        self._add(module, kind.__qualname__, namespace, kind)
        self._sizes.append((vars(kind), len(vars(kind))))
        for name in list_settable_attributes(kind):
            self._add(module, f"{kind.__qualname__}.{name}", vars(kind), vars(kind)[name])

    def _add_attributes_of_modules(self) -> bool:
        """Add what any code names of every module reached; whether that leads on."""
        for module, value in list(self._modules.items()):
            names = vars(value).keys() - OF_MODULES
            for name in sorted(names if self._is_dynamic else names & self._attributes):
                self._add(module, name, vars(value), vars(value)[name])
        return bool(self._queue)

    def _add(self, module: str, path: str, namespace: Any, value: Any) -> None:
        """Add a name of a module, or of a class or instance in it."""
        if (module, path) in self._values or path in OF_MODULES:
            return
        if isinstance(value, (types.FunctionType, type, types.ModuleType)):
            home = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
            if str(home).partition(".")[0] == "polarmap":  # workers may have another copy of it
                return
        described = describe_value(module, path, value)
        self._values[module, path] = described, value
        self._queue += described.reached
        self._bound.append((namespace, path.rpartition(".")[2], value))
        for one in _functions_of(value):
            defaults = one.__defaults__, one.__kwdefaults__
            self._codes.append((one, one.__code__, *defaults, len(one.__dict__)))
        is_fixed = (
            described.kind in (CLASS, OPAQUE) or type(value) in IMMUTABLE or _is_fixed(value, described)
        )
        if not is_fixed:
            self._mutable.append((module, path, value, described.fingerprint))
        if described.kind == OPAQUE:
            self._add_opaque(module, path, value)

    def _add_opaque(self, module: str, path: str, value: Any) -> None:
        """Add the attributes of an instance, or the items of a dict, that cannot be pickled as a whole."""
        is_dict = type(value) is dict
        if not (is_dict or _is_own(type(value).__module__)) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        namespace = value if is_dict else getattr(value, "__dict__", {})
        self._sizes.append((namespace, len(namespace)))
        for name, one in list(namespace.items()):
            if isinstance(name, str) and name.isidentifier():
                self._add(module, f"{path}.{name}", namespace, one)

    def _item(self, module: str, path: str, described: ValueDescription, value: Any) -> ModuleStateItem:
        is_assigned = path in self._assigned.get(module, ())
        is_empty = type(value) in CONTAINERS and not value
        if described.kind == OPAQUE and not is_assigned:
            _check_is_the_first(module, path, value)
        return ModuleStateItem(module, path, *described[:3], is_assigned or is_empty)


def _check_is_the_first(module: str, path: str, value: Any) -> None:
    """Raise CodeError if what cannot be sent is another object than that with which the module was imported.

    An object counts as that if the first map found it there.
    """
    if type(value) in HAVE_NO_STATE or type(value).__module__.startswith("numpy.random"):
        return
    version = getattr(sys.modules[module], "__spec__", None)  # `importlib.reload` makes another one
    seen, first = _first_seen.get((module, path), (None, None))
    if first is None or seen is not version:
        try:
            first = weakref.ref(value)
        except TypeError:
            first = partial(lambda same: same, value)
        _first_seen[module, path] = version, first
    elif first() is not value:
        raise CodeError(
            f"f reaches {module}.{path}, which is another {type(value).__name__} than before, and cannot be "
            f"sent to workers. {MISMATCH_ADVICE.format(module)}"
        )


def _functions_of(value: Any) -> list[types.FunctionType]:
    """Return the functions that a function, method or property consists of."""
    kind = type(value)
    if kind is property:
        parts = [value.fget, value.fset, value.fdel]
    else:
        parts = [value.__func__ if kind in (staticmethod, classmethod) else value]
    return [one for one in parts if type(one) is types.FunctionType]


def _is_fixed(value: Any, described: ValueDescription) -> bool:
    """Tell whether a function or class is the same as long as it is the same object with the same code."""
    functions = _functions_of(value)
    if not (described.contains_code and functions):
        return not described.contains_code and (bool(functions) or issubclass(type(value), type))
    return not any(
        one.__closure__ or one.__kwdefaults__ or one.__dict__ or not IMMUTABLE.issuperset(kinds)
        for one, kinds in [(one, map(type, one.__defaults__ or ())) for one in functions]
    )


_first_seen: dict[tuple[str, str], tuple[Any, Any]] = {}  # version of the module, and the object
_walks: dict[tuple[bool | int, ...], _Walk] = {}
