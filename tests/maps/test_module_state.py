"""f runs with the state that the caller's modules have on the driver, not with the state of their files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import module_states

ROOT = Path(__file__).resolve().parents[2]
VERBS = "coded,hedged,submitted,called"


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modules")
    module_states.write_modules(folder)
    return folder


def run(command: list[str], modules: Path) -> Any:
    """Run a program and return the JSON value in its last line of output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MODULES_OF_USER": str(modules)}
    program = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert not program.returncode, program.stderr[-3000:]
    return json.loads(program.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("pool", "verbs", "only"),
    [
        ("default", f"{VERBS},joblib", ""),
        ("pool", "coded", ""),
        ("new interpreters", VERBS, ""),
        ("executor", "coded,called", ""),
        ("threads", "coded", ""),
        ("processes", VERBS, ""),
        ("localhost", "coded", ""),
        ("lithops localhost", "coded", "program that names"),
        ("dask", "coded,called", ""),
    ],
)
def test_f_sees_the_module_state_of_the_driver(pool: str, verbs: str, only: str, modules: Path) -> None:
    # 144 of these 204 cases once gave wrong results that were reported as verified.
    assert run([str(ROOT / "tests" / "module_states.py"), pool, verbs, only], modules) == {}


PROGRAM = """
import importlib, json, os, pathlib, signal, sys, threading
import numpy as np
import polarmap

folder = pathlib.Path(os.environ["MODULES_OF_USER"])
sys.path.insert(0, str(folder))
sys.dont_write_bytecode = True
A = 1.0 + np.arange(24.0).reshape(12, 2)
answers = {}

def factor(f, **options):
    factors = polarmap.coded_map(f, A, blocks=4, tasks=5, **options).concatenate() / A
    return sorted(set(factors.round(9).ravel().tolist()))
"""


def run_program(text: str, folder: Path, **sources: str) -> Any:
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    program = folder / "program.py"
    program.write_text(f"{PROGRAM}{text}\nprint(json.dumps(answers))\n")
    return run([str(program)], folder)


OLD = "SCALE = 2.0\ndef helper(b): return b * SCALE\ndef f(b): return helper(b)\n"
NEW = """
class Times:
    def __init__(self, by): self.by = by
    def __call__(self, b): return b * self.by
SCALE = 3.0
times = Times(SCALE)
def another(b): return times(b)
def helper(b, *more): return another(b)
def f(b): return helper(b, 1)
"""
POOLS = pytest.mark.parametrize("fork", [True, False], ids=["forked", "new interpreters"])


@POOLS
def test_f_sees_the_edited_and_reloaded_module_of_the_driver(fork: bool, tmp_path: Path) -> None:
    text = f"""
import edited
with polarmap.Pool(workers=2, fork={fork}) as pool:
    answers["before"] = factor(edited.f, executor=pool)
    (folder / "edited.py").write_text({NEW!r})
    importlib.reload(edited)
    answers["after"] = factor(edited.f, executor=pool)
    answers["class"] = factor(edited.times, executor=pool)
    (folder / "edited.py").write_text({OLD!r})
    importlib.reload(edited)
    answers["again"] = factor(edited.f, executor=pool)
"""
    expected = {"before": [2.0], "after": [3.0], "class": [3.0], "again": [2.0]}
    assert run_program(text, tmp_path, edited=OLD) == expected


@POOLS
def test_map_does_not_mix_old_and_new_code_after_an_edit(fork: bool, tmp_path: Path) -> None:
    text = f"""
import edited
with polarmap.Pool(workers=2, fork={fork}) as pool:
    answers["before"] = factor(edited.f, executor=pool)
    (folder / "edited.py").write_text({NEW!r})
    process = polarmap.hedged_map(lambda _: os.getpid(), [0], executor=pool)[0]
    os.kill(process, signal.SIGKILL)
    answers["after"] = [factor(edited.f, executor=pool) for _ in range(5)]
"""
    assert run_program(text, tmp_path, edited=OLD) == {"before": [2.0], "after": [[2.0]] * 5}


def test_state_that_cannot_be_sent_is_refused_by_name(tmp_path: Path) -> None:
    text = """
import opaque, cloudpickle, threading
def error_of(f):
    try:
        return factor(f)
    except polarmap.errors.PolarmapError as error:
        return str(error)
answers["same"] = [factor(f) for f in (opaque.f, opaque.g, opaque.h)]
opaque.connection = (number for number in range(3))
answers["opaque.connection"] = error_of(opaque.f)
opaque.connection = None
opaque.held.lock = threading.Lock()
answers["opaque.held.lock"] = error_of(opaque.g)
opaque.generator = (number for number in range(3))
answers["opaque.generator"] = error_of(opaque.h)
cloudpickle.register_pickle_by_value(opaque)
opaque.SCALE = 3.0
answers["by value"] = factor(opaque.f)
"""
    source = """
import threading
lock, connection, generator, SCALE = threading.Lock(), None, (n for n in ()), 2.0
class Held:
    def __init__(self): self.key, self.lock = threading.Lock(), None
held = Held()
def f(b): return b * SCALE if connection is None else b
def g(b): return b * SCALE if held.lock is None else b
def h(b):
    with lock: return b * SCALE if generator else b
"""
    output = run_program(text, tmp_path, opaque=source)
    assert output.pop("same") == [[2.0]] * 3
    assert output.pop("by value") == [3.0]
    assert len(output) == 3
    for name, error in output.items():
        assert name in error
        assert "cloudpickle.register_pickle_by_value(opaque)" in error


CACHES = """
import functools
SCALE, CACHE, MODEL, LOADS = 2.0, {}, None, 0
def loaded():
    global MODEL, LOADS
    if MODEL is None:
        MODEL, LOADS = (SCALE for _ in range(10**6)), LOADS + 1
    return next(MODEL)
@functools.lru_cache
def cached(): return SCALE
def f(b): return b * CACHE.setdefault("scale", SCALE)
def g(b): return b * loaded()
def h(b): return b * cached()
def loads(b): return b * 0 + (loaded() and LOADS)
"""


def test_caches_on_workers_are_kept_until_the_state_of_f_changes(tmp_path: Path) -> None:
    text = """
import caches
with polarmap.Pool(workers=1) as pool:
    for scale in (2.0, 3.0):
        caches.SCALE = scale
        for name in ("f", "g", "h"):
            answers[f"{name} {scale}"] = [factor(getattr(caches, name), executor=pool) for _ in range(2)]
    caches.SCALE = 4.0
    count = lambda x: list(polarmap.hedged_map(lambda b: caches.loads(b) + x, [0.0, 0.0], executor=pool))
    answers["loads"] = [count(x) for x in range(3)]
"""
    output = run_program(text, tmp_path, caches=CACHES)
    assert output.pop("loads") == [[1.0 + x] * 2 for x in range(3)]
    assert output == {f"{name} {scale}": [[scale]] * 2 for name in "fgh" for scale in (2.0, 3.0)}


def test_caches_filled_on_the_driver_are_no_error(tmp_path: Path) -> None:
    text = """
import caches
answers["here"] = caches.g(1.0)
answers["there"] = factor(caches.g)
"""
    assert run_program(text, tmp_path, caches=CACHES) == {"here": 2.0, "there": [2.0]}


def test_f_of_another_map_does_not_see_what_f_has_set_in_a_module(tmp_path: Path) -> None:
    text = """
import edited
def sets(b):
    edited.SCALE = 5.0
    return b * edited.SCALE
with polarmap.Pool(workers=1) as pool:
    for _ in range(2):
        answers.setdefault("sets", []).append(factor(sets, executor=pool))
        answers.setdefault("reads", []).append(factor(lambda b: edited.f(b), executor=pool))
        answers.setdefault("names", []).append(factor(lambda b: b * edited.SCALE, executor=pool))
"""
    output = run_program(text, tmp_path, edited=OLD)
    assert output == {"sets": [[5.0]] * 2, "reads": [[2.0]] * 2, "names": [[2.0]] * 2}


def test_concurrent_maps_each_see_the_state_at_their_start(tmp_path: Path) -> None:
    text = """
import edited
for kind, executor in {"pool": polarmap.Pool(workers=2), "executor": polarmap.Executor(workers=2)}.items():
    futures = []
    for scale in (1.0, 2.0, 3.0, 4.0) * 5:
        edited.SCALE = scale
        futures.append(polarmap.submit(polarmap.coded_map, edited.f, A, blocks=4, tasks=5, executor=executor))
    edited.SCALE = 7.0
    factors = [np.unique((future.result(60).concatenate() / A).round(9)).tolist() for future in futures]
    answers[kind] = factors == [[scale] for scale in (1.0, 2.0, 3.0, 4.0)] * 5 or factors
with polarmap.Executor(workers=2) as executor:
    calls = []
    for scale in (1.0, 2.0, 3.0, 4.0) * 25:
        edited.SCALE = scale
        calls.append(executor.submit(edited.f, 1.0))
    answers["calls"] = [call.result(60) for call in calls] == [1.0, 2.0, 3.0, 4.0] * 25
"""
    assert run_program(text, tmp_path, edited=OLD) == {"pool": True, "executor": True, "calls": True}


def test_items_are_sent_with_the_state_of_their_classes(tmp_path: Path) -> None:
    text = """
import items
items.Item.scale = items.SCALE = 3.0
work = [items.Item(number) for number in range(4)]
answers["hedged"] = list(polarmap.hedged_map(lambda item: item.value(), work))
answers["many"] = sum(polarmap.hedged_map(lambda item: item.value(), work * 100))
answers["star"] = list(polarmap.hedged_map(lambda g, x: g(x), [(items.times, 1.0)], star=True))
with polarmap.Executor(workers=2) as executor:
    answers["map"] = list(executor.map(lambda item: item.value(), work))
    answers["submit"] = executor.submit(lambda item: item.value(), work[1]).result()
"""
    source = """
SCALE = 2.0
class Item:
    scale = 2.0
    def __init__(self, number): self.number = number
    def value(self): return self.number * self.scale * SCALE
def times(x): return x * SCALE
"""
    values = [0.0, 9.0, 18.0, 27.0]
    expected = {"hedged": values, "many": 5400.0, "star": [3.0], "map": values, "submit": 9.0}
    assert run_program(text, tmp_path, items=source) == expected


def test_random_generators_belong_to_each_worker(tmp_path: Path) -> None:
    text = """
import draws
with polarmap.Pool(workers=2, fork=False) as pool:
    for number in range(2):
        draws.generator.normal()
        drawn = polarmap.hedged_map(draws.draw, list(range(6)), executor=pool)
    answers["draws"] = len(set(drawn))
"""
    source = """
import time
import numpy as np
generator = np.random.default_rng()
def draw(item):
    time.sleep(0.01)
    return generator.normal()
"""
    assert run_program(text, tmp_path, draws=source) == {"draws": 6}
