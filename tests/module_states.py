"""Modules of a user, functions that reach their state, and changes of that state by the program.

Run as a program, it maps each case on one kind of pool. Its driver imports the modules from a separate
folder.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import operator
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import polarmap

SOURCES = {
    "mymodel.py": """
import functools, threading
from dataclasses import dataclass
import numpy as np
import mypackage.inner
from mypackage import inner

NUMBER, NUMBERS, OPTIONS, ARRAY, NOTHING = 2.0, [2.0], {"a": {"b": 2.0}}, np.full(3, 2.0), None
NAMES, TUPLE = {"two"}, (1, (2.0,))
LOCK = threading.Lock()

class Base:
    rate = 2.0

class Config(Base):
    def __init__(self):
        self.value, self.lock = 2.0, threading.Lock()
    def times(self, b): return b * 2.0
    @property
    def size(self): return 2.0
    @staticmethod
    def double(b): return b * 2.0

@dataclass
class Plain:
    value: float = 2.0
    def __call__(self, b): return b * self.value
    def method(self, b): return b * NUMBER

class Slots:
    __slots__ = ("value",)
    def __init__(self): self.value = 2.0

HELD = {"lock": threading.Lock(), "value": 2.0}
config, plain, slots = Config(), Plain(), Slots()

def decorate(function):
    @functools.wraps(function)
    def call(b): return function(b)
    return call

def make(count): return lambda b: b * count * NUMBER / 2

def helper(b, factor=2.0): return b * factor
@functools.cache
def table(): return NUMBER
@decorate
def decorated(b): return helper(b)
HANDLERS = {"helper": helper}
partial = functools.partial(helper)
made = make(2.0)

def number(b): return b * NUMBER
def numbers(b): return b * NUMBERS[0]
def options(b): return b * OPTIONS["a"]["b"]
def array(b): return b * ARRAY[0]
def nothing(b): return b * (NOTHING or 2.0)
def names(b): return b * (2.0 if "two" in NAMES else 3.0)
def a_tuple(b): return b * TUPLE[1][0]
def with_helper(b): return helper(b)
def with_handler(b): return HANDLERS["helper"](b)
def with_partial(b): return partial(b)
def with_made(b): return made(b)
def with_decorated(b): return decorated(b)
def cached(b): return b * table()
def rate(b): return b * Config.rate
def value(b): return b * config.value
def held(b): return b * HELD["value"]
def of_plain(b): return b * plain.value
def of_slots(b): return b * slots.value
def of_new(b): return b * Plain().value
def method(b): return config.times(b)
def size(b): return b * config.size
def double(b): return Config.double(b)
def of_inner(b): return b * inner.NUMBER
def of_package(b): return b * mypackage.inner.deep.NUMBER
def dynamic(b): return b * globals()["NUM" + "BER"]
def by_name(b): return b * getattr(config, "value")
def imports(b):
    from mypackage.inner import NUMBER
    return b * NUMBER
def locked(b):
    with LOCK:
        return b * NUMBER
""",
    "mypackage/__init__.py": "",
    "mypackage/inner.py": "from mypackage import deep\nNUMBER = 2.0\n",
    "mypackage/deep.py": "NUMBER = 2.0\n",
    "myuser.py": "from mymodel import NUMBER, number, helper\n"
    "def copied(b): return b * NUMBER\n"
    "def called(b): return number(b)\n"
    "def helped(b): return helper(b)\n",
}
Function = Callable[[Any], Any]
Change = Callable[[float], object]


def times_three(b: Any, factor: float = 3.0) -> Any:
    return b * factor


def cases() -> dict[str, tuple[Function, Change]]:
    """Return functions that multiply by a number in module state, each with a setter of that number."""
    m: Any = importlib.import_module("mymodel")
    user: Any = importlib.import_module("myuser")
    inner: Any = importlib.import_module("mypackage.inner")
    before = {name: vars(m)[name] for name in ("helper", "times", "partial", "made") if name in vars(m)}
    times, double, size = (vars(m.Config)[name] for name in ("times", "double", "size"))

    def attribute(owner: Any, name: str) -> Change:
        return lambda to: setattr(owner, name, to)

    def either(owner: Any, name: str, two: Any, three: Any) -> Change:
        return lambda to: setattr(owner, name, two if to == 2.0 else three)

    number = attribute(m, "NUMBER")
    helper = either(m, "helper", before["helper"], times_three)
    return {
        "number": (m.number, number),
        "list": (m.numbers, lambda to: operator.setitem(m.NUMBERS, 0, to)),
        "list, replaced": (m.numbers, lambda to: setattr(m, "NUMBERS", [to])),
        "dict in a dict": (m.options, lambda to: operator.setitem(m.OPTIONS["a"], "b", to)),
        "array, in place": (m.array, lambda to: m.ARRAY.fill(to)),
        "array, replaced": (m.array, lambda to: setattr(m, "ARRAY", np.full(2, to))),
        "None": (m.nothing, either(m, "NOTHING", None, 3.0)),
        "set": (m.names, lambda to: m.NAMES.add("two") if to == 2.0 else m.NAMES.discard("two")),
        "tuple": (m.a_tuple, lambda to: setattr(m, "TUPLE", (1, (to,)))),
        "function of the program": (m.with_helper, helper),
        "function without a name": (m.with_helper, either(m, "helper", before["helper"], lambda b: b * 3.0)),
        "function of a library": (
            m.with_helper,
            either(m, "helper", before["helper"], partial(np.multiply, 3.0)),
        ),
        "default argument": (m.with_helper, lambda to: setattr(before["helper"], "__defaults__", (to,))),
        "function in a dict": (
            m.with_handler,
            lambda to: operator.setitem(m.HANDLERS, "helper", before["helper"] if to == 2.0 else times_three),
        ),
        "partial": (m.with_partial, either(m, "partial", before["partial"], partial(times_three))),
        "closure": (m.with_made, either(m, "made", before["made"], m.make(3.0))),
        "decorated function": (m.with_decorated, helper),
        "cached function": (m.cached, lambda to: [number(to), m.table.cache_clear()]),
        "attribute of a base class": (m.rate, attribute(m.Base, "rate")),
        "attribute of an instance with a lock": (m.value, attribute(m.config, "value")),
        "dict with a lock": (m.held, lambda to: operator.setitem(m.HELD, "value", to)),
        "attribute of an instance": (m.of_plain, attribute(m.plain, "value")),
        "slot of an instance": (m.of_slots, attribute(m.slots, "value")),
        "default of a dataclass": (m.of_new, lambda to: setattr(m.Plain.__init__, "__defaults__", (to,))),
        "method": (m.method, either(m.Config, "times", times, lambda self, b: b * 3.0)),
        "property": (m.size, either(m.Config, "size", size, property(lambda self: 3.0))),
        "static method": (m.double, either(m.Config, "double", double, staticmethod(times_three))),
        "attribute of a submodule": (m.of_inner, attribute(inner, "NUMBER")),
        "attribute of a module in a module": (m.of_package, attribute(inner.deep, "NUMBER")),
        "imported in f": (m.imports, attribute(inner, "NUMBER")),
        "name made while it runs": (m.dynamic, number),
        "attribute by name": (m.by_name, attribute(m.config, "value")),
        "beside a lock": (m.locked, number),
        "name imported from": (user.copied, attribute(user, "NUMBER")),
        "behind a name imported from": (user.called, number),
        "function imported from": (user.helped, either(user, "helper", before["helper"], times_three)),
        "method of an instance as f": (m.Plain().method, number),
        "function of the program that names a module": (lambda b: b * m.NUMBER, number),
        "function of the program that names a function": (lambda b: m.number(b), number),
        "function of the program that reaches deep": (
            lambda b: b * m.mypackage.inner.deep.NUMBER,
            attribute(inner.deep, "NUMBER"),
        ),
    }


# --- as a program ------------------------------------------------------------------------------------


A = 1.0 + np.arange(24.0).reshape(12, 2)


def coded(f: Function, **options: Any) -> Any:
    return polarmap.coded_map(f, A, blocks=4, tasks=5, **options).concatenate()


def hedged(f: Function, **options: Any) -> Any:
    return np.concatenate(list(polarmap.hedged_map(f, A, blocks=3, **options)))


def submitted(f: Function, **options: Any) -> Any:
    future = polarmap.submit(polarmap.coded_map, f, A, blocks=4, tasks=5, **options)
    return future.result(60).concatenate()


def called(f: Function, **options: Any) -> Any:
    with contextlib.ExitStack() as stack:
        executor = options.get("executor")
        if not isinstance(executor, polarmap.Executor):
            executor = stack.enter_context(polarmap.Executor(executor))
        calls = [executor.submit(f, A[:6]), *executor.map(f, [A[6:9], A[9:]])]
        return np.concatenate([calls[0].result(60), *calls[1:]])


def with_joblib(f: Function, executor: Any = None) -> Any:
    joblib = importlib.import_module("joblib")
    importlib.import_module("polarmap.joblib")  # The import registers the backend.
    with joblib.parallel_config(backend="polarmap", n_jobs=2, executor=executor):
        return np.concatenate(joblib.Parallel()(joblib.delayed(f)(block) for block in (A[:5], A[5:])))


MAPS = {"coded": coded, "hedged": hedged, "submitted": submitted, "called": called, "joblib": with_joblib}


@contextlib.contextmanager
def pool_of(name: str) -> Iterator[dict[str, Any]]:
    """Yield the options of maps on the pool of this name."""
    with contextlib.ExitStack() as stack:
        if name == "default":
            stack.callback(polarmap.shutdown)
            yield {}
            return
        pools: dict[str, Callable[[], Any]] = {
            "pool": lambda: polarmap.Pool(workers=2),
            "new interpreters": lambda: polarmap.Pool(workers=2, fork=False),
            "executor": lambda: polarmap.Executor(workers=2),
            "threads": lambda: ThreadPoolExecutor(2),
            "processes": lambda: ProcessPoolExecutor(2),
            "localhost": lambda: polarmap.Pool("localhost", workers=2),
        }
        if name in pools:
            yield {"executor": stack.enter_context(pools[name]())}
        elif name == "dask":
            from distributed import Client, LocalCluster

            cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
            yield {"executor": stack.enter_context(Client(stack.enter_context(cluster)))}
        else:
            yield {"executor": name.removeprefix("lithops ")}


def check(name: str, verbs: str, only: str) -> dict[str, Any]:
    """Return the factor and the wrong result or error of each wrong case; empty if all are right."""
    wrong = dict[str, Any]()
    with pool_of(name) as options:
        for case, (f, change) in cases().items():
            for verb in verbs.split(","):
                if only and only not in case:
                    continue
                for factor in (2.0, 3.0, 2.0):
                    change(factor)
                    assert np.allclose(f(A), factor * A), f"{case} itself is wrong"
                    try:
                        result = MAPS[verb](f, **options)
                        if not np.allclose(result, factor * A):
                            wrong[f"{case}: {verb}"] = [factor, float(np.ravel(result / A)[0])]
                    except Exception as error:
                        wrong[f"{case}: {verb}"] = [factor, f"{type(error).__name__}: {error}"]
    return wrong


def write_modules(folder: Path) -> None:
    for name, source in SOURCES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(source)


if __name__ == "__main__":
    assert math.isclose(1.0, 1.0)
    sys.path.insert(0, os.environ["MODULES_OF_USER"])
    name, verbs, only = sys.argv[1:]
    print(json.dumps(check(name, verbs, only)))
