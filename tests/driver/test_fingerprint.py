"""Tests of fingerprints: a change of any object that f refers to changes the fingerprint of f."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import operator
import os
import sys
import tempfile
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from driver.test_function_properties import get_verification, power, times

from polarmap.driver.fingerprint import compute_function_fingerprint
from polarmap.driver.function_properties import LINEAR_OR_AFFINE, FunctionProperty
from polarmap.errors import NotLinearError


def apply_both(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda block: first(block) + second(block)


def with_options(options: dict[str, Any]) -> Callable[[Any], Any]:
    return lambda block: options["scale"] * block ** options["power"]


def with_default(exponent: int) -> Callable[..., Any]:
    def f(block: Any, power: int = exponent) -> Any:
        return block**power

    return f


def with_keyword(exponent: int) -> Callable[..., Any]:
    def f(block: Any, *, power: int = exponent) -> Any:
        return block**power

    return f


def inside_a_lambda(exponent: int) -> Callable[[Any], Any]:
    return lambda block: (lambda x: x**exponent)(block)


def inner(block: Any) -> Any:
    return 2 * block


def recursive(block: Any, depth: int = 2) -> Any:
    return block if depth == 0 else recursive(block, depth - 1)


class Power:
    def __init__(self, exponent: int) -> None:
        self.exponent = exponent

    def __call__(self, block: Any) -> Any:
        return block**self.exponent

    def method(self, block: Any) -> Any:
        return block**self.exponent

    def other(self, block: Any) -> Any:
        return block * self.exponent


SAME = {
    "one function": lambda: inner,
    "arrays of the same values": lambda: times(np.arange(5.0)),
    "arrays inside containers": lambda: with_options({"scale": np.arange(3.0), "power": 1}),
    "defaults": lambda: with_default(1),
    "ufunc": lambda: np.negative,
    "numpy function": lambda: np.fft.fft,
    "builtin": lambda: sum,
    "partial": lambda: functools.partial(np.sum, axis=0),
    "method": lambda: Power(2).method,
    "callable object": lambda: Power(2),
    "recursive": lambda: recursive,
    "operator": lambda: operator.methodcaller("sum", axis=0),
    "two helpers": lambda: apply_both(power(1), power(2)),
    "none at all": lambda: with_options({"scale": None, "power": 1}),
}
DIFFERENT = {
    "constants": (lambda block: 2 * block, lambda block: 3 * block),
    "names": (lambda block: block.sum(), lambda block: block.max()),
    "types of constants": (power(1), power(1.0)),
    "lambdas inside": (inside_a_lambda(1), inside_a_lambda(2)),
    "keyword defaults": (with_keyword(1), with_keyword(2)),
    "shapes of arrays": (times(np.ones(5)), times(np.ones((5, 2)))),
    "dtypes of arrays": (times(np.ones(5)), times(np.ones(5, "f4"))),
    "helpers": (apply_both(power(1), power(2)), apply_both(power(1), power(3))),
    "items": (with_options({"scale": 1, "power": 1}), with_options({"scale": 1, "power": 2})),
    "functions in containers": (
        with_options({"scale": [power(1), power(1)], "power": 1}),
        with_options({"scale": [power(1), power(2)], "power": 1}),
    ),
    "ufuncs": (np.negative, np.square),
    "numpy functions": (np.sum, np.max),
    "builtins": (sum, max),
    "partials": (functools.partial(np.sum, axis=0), functools.partial(np.sum, axis=1)),
    "functions of partials": (functools.partial(np.sum, axis=0), functools.partial(np.max, axis=0)),
    "methods": (Power(2).method, Power(2).other),
    "objects of methods": (Power(1).method, Power(2).method),
    "method callers": (operator.methodcaller("sum"), operator.methodcaller("max")),
}


@pytest.mark.parametrize("name", SAME)
def test_an_equal_function_that_is_created_again_is_trusted(name: str) -> None:
    assert compute_function_fingerprint(SAME[name]()) == compute_function_fingerprint(SAME[name]())


@pytest.mark.parametrize("name", DIFFERENT)
def test_functions_that_differ_have_different_fingerprints(name: str) -> None:
    first, other = DIFFERENT[name]
    assert compute_function_fingerprint(first) != compute_function_fingerprint(other)
    assert compute_function_fingerprint(first) == compute_function_fingerprint(first)


def test_redefining_a_class_changes_the_fingerprint() -> None:
    def define(exponent: int) -> Callable[[Any], Any]:
        class Local:
            def __call__(self, block: Any) -> Any:
                return block**exponent

        return lambda block: Local()(block)

    assert compute_function_fingerprint(define(1)) != compute_function_fingerprint(define(2))


def test_a_variable_that_is_assigned_later_changes_the_fingerprint() -> None:
    f = lambda block: block * later  # noqa: E731
    before = compute_function_fingerprint(f)
    later = 2
    assert compute_function_fingerprint(f) != before


def test_objects_are_compared_by_their_attributes_and_not_by_their_pickles() -> None:
    class Unpicklable(Power):
        def __reduce__(self) -> Any:
            raise TypeError("no")

    assert compute_function_fingerprint(Unpicklable(1)) != compute_function_fingerprint(Unpicklable(2))
    assert compute_function_fingerprint(Unpicklable(1)) is not None


@pytest.mark.parametrize(
    "inside", [threading.Lock(), (n for n in [1]), weakref.ref(Power), np.frompyfunc(abs, 1, 1)]
)
def test_a_function_that_cannot_be_fingerprinted_is_not_trusted(inside: Any) -> None:
    f = times(inside)
    assert compute_function_fingerprint(f) is None
    FunctionProperty(f, LINEAR_OR_AFFINE, ()).remember_value()
    assert FunctionProperty(f, LINEAR_OR_AFFINE, ()).value is None


# --- objects that f refers to change between two maps ------------------------------------------------

Change = Callable[[int], Any]  # sets the exponent to 1 or 2
NEVER_TRUSTED = {"attribute by name", "globals by name", "exec", "module's dictionary", "sys.modules"} | {
    *("numbers of a generator", "generic function", "weak reference")
}
# Changes that setting the exponent to 1 again does not undo.
ONE_WAY = {"code replaced", "set", "generic function"} | {
    *("function of numpy", "function of a module of numpy")
}
EXPONENT = 1


def setter(owner: Any, name: str) -> Change:
    return lambda p: setattr(owner, name, p)


def item(owner: Any, key: Any) -> Change:
    return lambda p: operator.setitem(owner, key, p)


def module_of(source: str, name: str = "reached") -> Any:
    """Create and import a module of user code from its source."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(source, module.__dict__)
    return module


class Holder:
    p = 1

    def __init__(self, p: Any = 1) -> None:
        self.own = p

    def __call__(self, block: Any) -> Any:
        return block**self.own

    @property
    def read(self) -> Any:
        return self.own


class OwnArray(np.ndarray):
    p = 1


class SlottedArray(np.ndarray):
    __slots__ = ("p",)


def getattr_p(owner: Any) -> int:
    try:
        return int(owner.p)
    except AttributeError:
        return 1


def set_p(array: Any) -> Any:
    array.p = 1
    return array


def memory_map() -> Any:
    with tempfile.TemporaryFile() as file:
        return set_p(np.memmap(file, float, "w+", shape=(5,)))


def module_of_library(source: str) -> Any:
    """Create and import a module whose file is in the folder of installed libraries."""
    module = module_of("")
    module.__file__ = f"{os.path.dirname(np.__file__)}/../reached.py"
    exec(compile(source, module.__file__, "exec"), module.__dict__)
    return module


UNPATCHED: list[tuple[Any, str, Any]] = []


def patched(owner: Any, name: str, value: Any) -> None:
    UNPATCHED.append((owner, name, vars(owner)[name]))
    setattr(owner, name, value)


# For each kind of object that f can refer to: the type of a value, and a function that builds f and its
# change.
CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], tuple[Callable[[Any], Any], Change]]]] = {
    "global": (int, lambda _: (lambda b: b**EXPONENT, item(globals(), "EXPONENT"))),
    "attribute of a class": (int, lambda _: (lambda b: b**Holder.p, setter(Holder, "p"))),
    "attribute of a metaclass": (
        lambda: type("Kind", (type,), {"p": 1})("Made", (), {}),
        lambda obj: (lambda b: b**obj.p, setter(type(obj), "p")),
    ),
    "attribute of an instance": (
        Holder,
        lambda obj: (lambda b: b**obj.own, setter(obj, "own")),
    ),
    "array in an instance, in place": (
        lambda: Holder(np.ones(5)),
        lambda obj: (obj, lambda p: obj.own.fill(p)),
    ),
    "property": (Holder, lambda obj: (lambda b: b**obj.read, setter(obj, "own"))),
    "__call__ replaced": (
        lambda: type("Kind", (), {"__call__": lambda self, b: b}),
        lambda kind: (kind(), lambda p: setattr(kind, "__call__", lambda self, b: b**p)),
    ),
    "default arguments, replaced": (
        lambda: with_default(1),
        lambda f: (f, lambda p: setattr(f, "__defaults__", (p,))),
    ),
    "code replaced": (
        lambda: power(1),
        lambda f: (f, lambda p: setattr(f, "__code__", (lambda b: f and b**2).__code__)),
    ),
    "containers in containers": (
        lambda: {"a": [{"p": 1}]},
        lambda obj: (lambda b: b ** obj["a"][0]["p"], item(obj["a"][0], "p")),
    ),
    "subclass of a container": (
        lambda: type("Own", (dict,), {})(p=1),
        lambda obj: (lambda b: b ** obj["p"], item(obj, "p")),
    ),
    "container of the library": (
        lambda: collections.deque([1]),
        lambda obj: (lambda b: b ** obj[0], item(obj, 0)),
    ),
    "set": (
        lambda: {"linear"},
        lambda obj: (lambda b: b if "linear" in obj else b**2, lambda p: obj.clear()),
    ),
    "function of numpy": (
        int,
        lambda _: (lambda b: np.positive(b), lambda p: patched(np, "positive", np.square)),
    ),
    "function of a module of numpy": (
        int,
        lambda _: (lambda b: np.fft.fft(b), lambda p: patched(np.fft, "fft", np.square)),
    ),
    "enum": (
        lambda: enum.Enum("Numbers", {"ONE": 1}),
        lambda obj: (lambda b: b**obj.ONE.value, setter(obj.ONE, "_value_")),
    ),
    "attribute of an array": (
        lambda: np.ones(5).view(OwnArray),
        lambda obj: (lambda b: b**obj.p, setter(obj, "p")),
    ),
    "attribute of an array of objects": (
        lambda: np.array([1], object).view(OwnArray),
        lambda obj: (lambda b: b**obj.p, setter(obj, "p")),
    ),
    "slot of an array": (
        lambda: np.ones(5).view(SlottedArray),
        lambda obj: (lambda b: b ** getattr_p(obj), setter(obj, "p")),
    ),
    "attribute of a matrix": (
        lambda: set_p(np.ones((5, 5)).view(np.matrix)),
        lambda obj: (lambda b: b**obj.p, setter(obj, "p")),
    ),
    "attribute of a record array": (
        lambda: set_p(np.ones(5).view(np.recarray)),
        lambda obj: (lambda b: b**obj.p, setter(obj, "p")),
    ),
    "attribute of a memory map": (memory_map, lambda obj: (lambda b: b**obj.p, setter(obj, "p"))),
    "global of an installed package": (
        lambda: module_of_library("options = {'p': 1}\ndef helper(b): return b ** options['p']"),
        lambda module: (module.helper, item(module.options, "p")),
    ),
    "global that an installed package rebinds": (
        lambda: module_of_library("p = 1\ndef deep(): return p\ndef helper(b): return b ** deep()"),
        lambda module: (lambda b: module.helper(b), setter(module, "p")),
    ),
    "errors of numpy": (
        int,
        lambda _: (
            lambda b: b ** (1 if np.geterr()["under"] == "ignore" else 2),
            lambda p: np.seterr(under="ignore" if p == 1 else "warn"),
        ),
    ),
    "memory of a view": (
        lambda: np.ones((5, 2))[:, 0],
        lambda view: (lambda b: b**view, lambda p: view.base.fill(p)),
    ),
    "array of objects": (
        lambda: np.array([1], object),
        lambda obj: (lambda b: b ** obj[0], lambda p: obj.fill(p)),
    ),
    "vectorized function": (lambda: [1], lambda obj: (np.vectorize(lambda x: x ** obj[0]), item(obj, 0))),
    "attribute of a module": (
        lambda: module_of("p = 1"),
        lambda module: (lambda b: b**module.p, setter(module, "p")),
    ),
    "attribute of a class of a module without a file": (
        lambda: module_of("class Kind:\n    p = 1").Kind,
        lambda kind: (lambda b: b**kind.p, setter(kind, "p")),
    ),
    "flag that a helper in a module reads": (
        lambda: module_of("p = 1\ndef helper(b): return b ** p"),
        lambda module: (lambda b: module.helper(b), setter(module, "p")),
    ),
    "module with a __getattr__": (
        lambda: module_of("inside = {'p': 1}\ndef __getattr__(name): return inside[name]"),
        lambda module: (lambda b: b**module.p, item(module.inside, "p")),
    ),
    "attribute by name": (int, lambda _: (lambda b: b ** getattr(Holder, "".join("p")), setter(Holder, "p"))),
    "globals by name": (int, lambda _: (lambda b: b ** globals()["EXPONENT"], item(globals(), "EXPONENT"))),
    "module's dictionary": (
        lambda: module_of("p = 1"),
        lambda module: (lambda b: b ** module.__dict__["p"], setter(module, "p")),
    ),
    "exec": (
        lambda: module_of("p = 1"),
        lambda module: (
            lambda b: exec("from reached import p", names := {}) or b ** names["p"],
            setter(module, "p"),
        ),
    ),
    "sys.modules": (
        lambda: module_of("p = 1"),
        lambda module: (lambda b: b ** sys.modules["reached"].p, setter(module, "p")),
    ),
    "method of a base class": (
        lambda: type("Base", (), {"method": lambda self, b: b}),
        lambda base: (
            type("Derived", (base,), {"__call__": lambda self, b: self.method(b)})(),
            lambda p: setattr(base, "method", lambda self, b: b**p),
        ),
    ),
    "field of a dataclass": (
        dataclasses.make_dataclass("Fields", [("p", int, 1)], frozen=True),
        lambda obj: (lambda b: b**obj.p, lambda p: object.__setattr__(obj, "p", p)),
    ),
    "method of a container": (
        lambda: {"p": 1},
        lambda obj: (functools.partial(lambda get, b: b ** get("p"), obj.get), item(obj, "p")),
    ),
    "getter of a module": (
        lambda: (module_of("p = 1"), operator.attrgetter("p")),
        lambda pair: (lambda b: b ** pair[1](pair[0]), setter(pair[0], "p")),
    ),
    "weak reference": (
        Holder,
        lambda obj: (
            functools.partial(lambda seen, b: b ** seen().own, weakref.ref(obj)),
            setter(obj, "own"),
        ),
    ),
    "numbers of a generator": (
        lambda: [1],
        lambda obj: (
            functools.partial(lambda numbers, b: b ** next(numbers), (obj[0] for _ in iter(int, 1))),
            item(obj, 0),
        ),
    ),
}


def change(name: str) -> Callable[[Any], Any]:
    """Return a decorator that registers a change that does not fit into an expression."""

    def register(make: Any) -> Any:
        CHANGES[name] = (int, lambda _: make())
        return make

    return register


@change("slot")
def _() -> Any:
    @dataclasses.dataclass(slots=True)
    class Slotted:
        __p: int = 1

        def __call__(self, b: Any) -> Any:
            return b**self.__p

    slotted = Slotted()
    return slotted, setter(slotted, "_Slotted__p")


@change("cached property")
def _() -> Any:
    class Cached:
        p = 1
        read = functools.cached_property(lambda self: self.p)

    Cached.read.__set_name__(Cached, "read")
    return lambda b: b ** Cached().read, setter(Cached, "p")


@change("attribute of a function")
def _() -> Any:
    def g() -> None: ...

    g.p = 1  # type: ignore[attr-defined]
    return lambda b: b**g.p, setter(g, "p")  # type: ignore[attr-defined]


@change("nonlocal")
def _() -> Any:
    exponent = 1

    def set_it(p: int) -> None:
        nonlocal exponent
        exponent = p

    return lambda b: b**exponent, set_it


@change("cached helper")
def _() -> Any:
    inside = [1]
    helper = functools.lru_cache(lambda: inside[0])

    def set_it(p: int) -> None:
        helper.cache_clear()
        inside[0] = p

    return lambda b: b ** helper(), set_it


@change("attribute of a module in a package")
def _() -> Any:
    module = module_of("")
    module.inner = module_of("p = 1", "reached.inner")
    return lambda b: b**module.inner.p, setter(module.inner, "p")


@change("name imported inside")
def _() -> Any:
    module = module_of("p = 1")

    def f(b: Any) -> Any:
        from reached import p

        return b**p

    return f, setter(module, "p")


@change("relative import")
def _() -> Any:
    package = module_of("__path__ = []", "above")
    package.inner = module_of("p = 1", "above.inner")
    user = module_of(
        "__package__ = 'above.beside'\ndef f(b):\n    from .. import inner\n    return b ** inner.p"
    )
    return user.f, setter(package.inner, "p")


@change("environment, as a mapping")
def _() -> Any:
    os.environ["POLARMAP_TEST"] = "1"
    return lambda b: b ** int(os.environ["POLARMAP_TEST"]), lambda p: item(os.environ, "POLARMAP_TEST")(
        str(p)
    )


@change("generic function")
def _() -> Any:
    @functools.singledispatch
    def generic(b: Any) -> Any:
        return b

    return lambda b: generic(b), lambda p: generic.register(np.ndarray, np.square)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_an_object_that_f_refers_to_is_noticed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A version that trusted f here returned results off by 0.67, with an error bound of 1e-15.
    monkeypatch.setattr(Holder, "p", 1)
    monkeypatch.setitem(globals(), "EXPONENT", 1)
    monkeypatch.setenv("POLARMAP_TEST", "1")
    owner, make = CHANGES[name]
    f, change_it = make(owner())
    assert get_verification(f, surplus=False) == "local"
    assert get_verification(f, surplus=False) == ("local" if name in NEVER_TRUSTED else "earlier")
    try:
        change_it(2)
        with pytest.raises(NotLinearError):
            get_verification(f, surplus=False)
        if name not in ONE_WAY:
            change_it(1)
            assert get_verification(f, surplus=False) in ("local", "earlier")
    finally:
        while UNPATCHED:
            setattr(*UNPATCHED.pop())
        for module_name in ("reached", "reached.inner", "above", "above.inner"):
            sys.modules.pop(module_name, None)
