"""Tests that the state of a user's modules is described, and reproduced in another process."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polarmap.worker.module_state import (
    CLASS,
    CODE,
    DATA,
    MAX_SENT_ARRAY_BYTES,
    OPAQUE,
    ModuleStateError,
    ModuleStateItem,
    apply_module_state,
    describe_value,
    digest_code,
    get_process_token,
)

NAME = "module_of_a_user"
DRIVER = -1, "another process"


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Return a function that creates the module from source, as on a driver or worker."""

    def make_module(source: str) -> Any:
        module = types.ModuleType(NAME)
        monkeypatch.setitem(sys.modules, NAME, module)
        exec(source, vars(module))
        return module

    return make_module


def describe_items(module: Any, *paths: str) -> list[tuple[Any, ...]]:
    """Return the items that a driver sends for the objects at `paths` in a module."""
    state_items = []
    for path in paths:
        value: Any = module
        for name in path.split("."):
            value = vars(value)[name]
        kind, fingerprint, payload, *_ = describe_value(NAME, path, value)
        state_items.append(tuple(ModuleStateItem(NAME, path, kind, fingerprint, payload, False)))
    return pickle.loads(pickle.dumps(state_items))


def test_functions_are_compared_by_their_bytecode() -> None:
    one = compile("def f(x):\n    return x in {'a', 'b', 'c'}", "one.py", "exec")
    other = compile("\n\ndef f(x):\n    return x in {'a', 'b', 'c'}", "other.py", "exec")
    third = compile("def f(x):\n    return x in {'a', 'b', 'd'}", "one.py", "exec")
    assert digest_code(one) == digest_code(other) != digest_code(third)


def test_order_of_a_constant_set_does_not_matter() -> None:
    one, other, third = (frozenset(numbers) for numbers in ([0, 8], [8, 0], [0, 16]))
    assert list(one) != list(other)  # 0 and 8 have the same place in the hash table.
    code = compile("x in {0, 8}", "", "eval")
    digests = [digest_code(code.replace(co_consts=(constant,))) for constant in (one, other, third)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("source", "path", "kind"),
    [
        ("a = [1]", "a", DATA),
        ("def a(): pass", "a", CODE),
        ("class a: pass", "a", CLASS),
        ("import threading; a = threading.Lock()", "a", OPAQUE),
        ("import numpy; a = numpy.random.default_rng()", "a", OPAQUE),
        ("import sys; a = sys.stderr", "a", OPAQUE),
        ("a = list(range(10**6))", "a", OPAQUE),
        ("def b(): pass\na = b", "a", DATA),
    ],
)
def test_kinds_of_values(source: str, path: str, kind: str, make: Callable[[str], Any]) -> None:
    assert describe_value(NAME, path, vars(make(source))[path]).kind == kind


@pytest.mark.parametrize("change", [lambda a: a.fill(3), lambda a: a.__setitem__(777, 1), np.random.shuffle])
def test_a_large_array_is_compared_and_not_sent(change: Callable[[Any], Any]) -> None:
    array = np.arange(MAX_SENT_ARRAY_BYTES // 8 + 5.0)
    before = describe_value(NAME, "a", array)
    assert before == describe_value(NAME, "a", array.copy())
    change(array)
    after = describe_value(NAME, "a", array)
    assert before.payload is after.payload is None
    assert before.fingerprint != after.fingerprint


def test_functions_keep_their_identity(make: Callable[[str], Any]) -> None:
    source = "import functools\ndef plain(b): return b * {0}\n@functools.cache\ndef cached(): return {0}"
    source += "\nclass Kind:\n    @staticmethod\n    def method(b): return b * {0}\n    rate = {0}\n"
    source += "held = [plain]"
    state_items = describe_items(
        make(source.format(3)), "held", "Kind", "Kind.method", "Kind.rate", "plain", "cached"
    )
    worker = make(source.format(2))
    before = dict(vars(worker))
    assert worker.cached() == 2
    apply_module_state(DRIVER, state_items)
    assert all(vars(worker)[name] is before[name] for name in ("plain", "cached", "Kind", "held"))
    assert (worker.plain(1), worker.held[0](1), worker.Kind.method(1), worker.Kind.rate) == (3, 3, 3, 3)
    assert worker.cached() == 3


def test_attributes_of_a_class_that_the_driver_lacks_are_removed(make: Callable[[str], Any]) -> None:
    state_items = describe_items(make("class Kind:\n    a = 1"), "Kind", "Kind.a")
    worker = make("class Kind:\n    a = 1\n    def __len__(self): return 3")
    apply_module_state(DRIVER, state_items)
    assert not hasattr(worker.Kind, "__len__")


def test_the_driver_process_is_not_changed(make: Callable[[str], Any]) -> None:
    state_items = describe_items(make("a = 3"), "a")
    module = make("a = 2")
    apply_module_state(get_process_token(), state_items)
    assert module.a == 2
    apply_module_state(DRIVER, state_items)
    assert module.a == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_a_forked_process_is_not_the_driver_process() -> None:
    mark = get_process_token()
    child = os.fork()
    if not child:
        os._exit(get_process_token() == mark)
    assert os.waitpid(child, 0)[1] == 0
    assert get_process_token() == mark


def test_state_that_the_process_has_filled_in_is_kept_until_the_driver_changes_it(
    make: Callable[[str], Any],
) -> None:
    cache, scale = describe_items(make("cache, scale = {}, 2"), "cache", "scale")
    worker = make("cache, scale = {}, 2")
    cache = *cache[:-1], True
    apply_module_state(DRIVER, [cache, scale])
    worker.cache["a"] = 1
    worker.scale = 7
    apply_module_state(DRIVER, [cache, scale])
    assert (worker.cache, worker.scale) == ({"a": 1}, 2)
    (other,) = describe_items(types.SimpleNamespace(scale=3), "scale")
    apply_module_state(DRIVER, [cache, other])
    assert (worker.cache, worker.scale) == ({}, 3)


@pytest.mark.parametrize("value", [threading.Lock(), functools.partial(print, threading.Lock())])
def test_state_that_cannot_be_sent_is_refused(value: Any, make: Callable[[str], Any]) -> None:
    driver = make("a = None")
    driver.a = value
    state_items = describe_items(driver, "a")
    make("a = None")
    with pytest.raises(ModuleStateError, match=rf"{NAME}\.a, .*register_pickle_by_value\({NAME}\)"):
        apply_module_state(DRIVER, state_items)


def test_a_missing_module_raises_only_if_f_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = pickle.dumps(3)
    apply_module_state(
        DRIVER, [("no_such_module", "a", DATA, hashlib.sha256(payload).digest(), payload, False)]
    )


def test_module_state_is_restored_on_workers_without_polarmap(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.py").write_text("a, held = 2, [1]\ndef helper(b): return b * a\n")
    (tmp_path / "driver.py").write_text(f"""
import sys
import {NAME} as module
from polarmap.executors.pickling import pickle_function
module.a, module.helper.__defaults__ = 3, (1.0,)
pickle_function(lambda: module.helper(), "here")
sys.stdout.buffer.write(pickle_function(lambda: module.helper(), "there", by_value=True))
""")
    worker = "import pickle, sys; sys.modules['polarmap'] = None; print(pickle.load(sys.stdin.buffer)())"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]),
    }
    program = [sys.executable, str(tmp_path / "driver.py")]
    data = subprocess.run(program, env=environment, capture_output=True, check=True, timeout=60).stdout
    process = subprocess.run(
        [sys.executable, "-c", worker], env=environment, input=data, capture_output=True, timeout=60
    )
    assert process.stdout.strip() == b"3.0", process.stderr.decode()
