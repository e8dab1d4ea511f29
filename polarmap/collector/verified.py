"""Which functions have passed the parity check in this process."""

from __future__ import annotations

import functools
import hashlib
import types
from typing import Any

import cloudpickle
import numpy as np

LINEAR = "linear or affine in its block"
_passed: set[str] = set()


def has_passed(f: Any, assumption: str = LINEAR) -> bool:
    """Whether f, or a function of the same code and constants, was found to be what is assumed of it."""
    return assumption + fingerprint(f) in _passed


def note_passed(f: Any, assumption: str = LINEAR) -> None:
    """Remember that f was found to be what is assumed of it."""
    _passed.add(assumption + fingerprint(f))


def forget() -> None:
    """Forget every function (for tests)."""
    _passed.clear()


def fingerprint(f: Any) -> str:
    """What decides whether f is linear: its code, its constants, the functions it calls.

    Arrays it closes over count by dtype and shape only, so that the lambda of every step of an
    iteration is one function: `lambda block: block @ x` for each new x.

    >>> def step(x): return lambda block: block @ x
    >>> fingerprint(step(np.ones(3))) == fingerprint(step(np.zeros(3)))
    True
    >>> def power(p): return lambda block: block ** p
    >>> fingerprint(power(1)) == fingerprint(power(2))
    False
    """
    return hashlib.sha256("\n".join(_parts(f, {})).encode()).hexdigest()


def _parts(value: Any, seen: dict[int, Any]) -> list[str]:
    """`seen` keeps what was seen alive: an id says nothing once its object is gone."""
    if isinstance(value, np.ndarray):
        return [f"array {value.dtype} {value.shape}"]
    if isinstance(value, (str, bytes, int, float, complex, bool, type(None))):
        return [repr(value)]
    if id(value) in seen:
        return ["again"]
    seen[id(value)] = value
    if isinstance(value, types.FunctionType):
        return _function_parts(value, seen)
    if isinstance(value, types.MethodType):
        return _parts(value.__func__, seen) + _parts(value.__self__, seen)
    if isinstance(value, functools.partial):
        return _parts([value.func, value.args, value.keywords], seen)
    if isinstance(value, (tuple, list)):
        return [part for item in value for part in _parts(item, seen)]
    if isinstance(value, dict):
        return [part for item in value.items() for part in _parts(item, seen)]
    if isinstance(value, type):  # by id: a class may be defined anew under its old name
        return [f"{value.__module__}.{value.__qualname__} {id(value)}"]
    if isinstance(value, (types.ModuleType, types.BuiltinFunctionType, np.ufunc)):
        return [f"{getattr(value, '__module__', '')}.{value.__name__}"]
    try:
        return [type(value).__qualname__, hashlib.sha256(cloudpickle.dumps(value)).hexdigest()]
    except Exception:
        return [type(value).__qualname__, str(id(value))]


def _function_parts(f: types.FunctionType, seen: dict[int, Any]) -> list[str]:
    cells = [cell.cell_contents for cell in f.__closure__ or () if _is_filled(cell)]
    named = [f.__globals__[name] for name in _names(f.__code__) if name in f.__globals__]
    return _code_parts(f.__code__) + _parts([cells, f.__defaults__, f.__kwdefaults__, named], seen)


def _code_parts(code: types.CodeType) -> list[str]:
    """Instructions, names and constants; lambdas inside included."""
    parts = [code.co_code.hex(), repr(code.co_names), repr(code.co_freevars)]
    for constant in code.co_consts:
        parts += _code_parts(constant) if isinstance(constant, types.CodeType) else [repr(constant)]
    return parts


def _names(code: types.CodeType) -> list[str]:
    inner = [name for one in code.co_consts if isinstance(one, types.CodeType) for name in _names(one)]
    return [*code.co_names, *inner]


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
