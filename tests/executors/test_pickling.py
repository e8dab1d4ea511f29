"""Pickled functions, which contain the modules and the state that they need."""

from __future__ import annotations

import ast
import importlib
import pickle
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import cloudpickle
import pytest

import polarmap.worker
from polarmap.executors.pickling import find_referenced_modules, pickle_function, pickle_worker_code_by_value
from polarmap.testing import Fault
from polarmap.worker.retries import retry_request
from polarmap.worker.worker_entry import DriverAddress, make_worker_task


def test_unpickled_function_works_and_tracebacks_name_its_line() -> None:
    f = pickle.loads(pickle_function(lambda block: 1 / block, "a pool"))
    assert f(2) == 0.5
    with pytest.raises(ZeroDivisionError) as raised:
        f(0)
    traceback_text = "".join(traceback.format_tb(raised.value.__traceback__))
    assert __file__ in traceback_text
    assert "lambda block: 1 / block" in traceback_text


def test_pickles_are_deterministic() -> None:
    def f(block: float) -> float:
        return max(map(lambda one: one + block, [1.0]))  # noqa: C417

    first = pickle_function(f, "a pool")
    assert all(pickle_function(f, "a pool") == first for _ in range(3))


def test_only_imported_modules_below_the_roots_are_named() -> None:
    several = ["polarmap.errors", "polarmap.nowhere", "polarmap_not", "os.path", "scipy", 1.5, "a polarmap"]
    assert find_referenced_modules(pickle_function(several, "a pool"), ["polarmap", "scipy"]) <= {
        "polarmap.errors",
        "scipy",
    }
    assert "polarmap.errors" in find_referenced_modules(pickle_function(several, "a pool"), ["polarmap"])
    large = [b"\x8c" * 10_000, [float(number) for number in range(10_000)], pickle_function]
    assert find_referenced_modules(pickle_function(large, "a pool"), ["polarmap"]) == {
        "polarmap.executors.pickling"
    }


def test_names_of_modules_may_have_any_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    # The UTF-8 bytes of "Д" contain 0x94, the pickle opcode that follows every name.
    for name in ("päckchen", "päckchen.tür", "päckchen.ДД"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        names = find_referenced_modules(pickle_function([name, 1], "a pool"), ["päckchen"])
        assert names == {name}


def test_outermost_context_unregisters_worker_modules() -> None:
    with pickle_worker_code_by_value():
        with pickle_worker_code_by_value():
            pass
        assert "polarmap.worker" in cloudpickle.list_registry_pickle_by_value()
    assert "polarmap.worker" not in cloudpickle.list_registry_pickle_by_value()


WORKER_FILES = sorted(Path(polarmap.worker.__file__).parent.glob("[a-z]*.py"))


def first_lines_of_docstrings(file: Path) -> Iterator[str]:
    kinds = ast.FunctionDef, ast.ClassDef
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, kinds) and node.name != "Fault" and (docstring := ast.get_docstring(node)):
            yield docstring.splitlines()[0]


def sent_worker() -> bytes:
    """Return the pickled program of a persistent worker, with all other worker modules imported."""
    for file in WORKER_FILES:
        importlib.import_module(f"polarmap.worker.{file.stem}")
    with pickle_worker_code_by_value():
        return cloudpickle.dumps(make_worker_task(DriverAddress((), b"", None, "", 1, 1)))


def test_docstrings_of_the_worker_are_not_sent() -> None:
    lines = [line for file in WORKER_FILES for line in first_lines_of_docstrings(file)]
    assert len(lines) > 200
    program = sent_worker()
    assert [line for line in lines if line.encode() in program] == []


def test_docstrings_of_user_functions_are_kept() -> None:
    def f(block: float) -> float:
        """Return the block."""
        return block

    with pickle_worker_code_by_value():
        assert pickle.loads(pickle_function(f, "a cloud", by_value=True)).__doc__ == "Return the block."
    assert Fault.__doc__


def code_within(code: CodeType) -> dict[str, CodeType]:
    inner = [inner_code for inner_code in code.co_consts if isinstance(inner_code, CodeType)]
    return {
        name: inner_code
        for code in inner
        for name, inner_code in {code.co_name: code, **code_within(code)}.items()
    }


def test_lines_in_tracebacks_of_the_worker_are_those_of_its_files() -> None:
    sent_worker()
    sent: Any = pickle.loads(pickle_function(retry_request, "a cloud", by_value=True))
    assert sent is not retry_request
    file = Path(sys.modules[retry_request.__module__].__file__ or "")
    of_file = code_within(compile(file.read_text(), str(file), "exec"))["retry_request"]
    assert list(sent.__code__.co_lines()) == list(of_file.co_lines())
    assert sent.__code__.co_filename == str(file)
    assert sent.__doc__ is None
