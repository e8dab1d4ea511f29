"""What functions were found to be (linear, acting on rows): only the first map of each has to find out."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import types
import weakref
from collections.abc import Sequence
from typing import Any

import cloudpickle
import numpy as np

LINEAR = "linear or affine in its block"
_identities: dict[int, tuple[weakref.ref[Any], int]] = {}  # id -> the living object that has it, its number
_numbers = itertools.count()


class TrustedFunctions:
    """What functions were found to be on data of such dtypes, by their code and constants."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}

    def recall(self, f: Any, what: str, dtypes: Sequence[np.dtype[Any]] = ()) -> Any:
        """What was noted of f, or of a function of the same code and constants, on data of such dtypes."""
        return self._found.get(_key(f, what, dtypes)) if self._found else None

    def note(self, f: Any, what: str, dtypes: Sequence[np.dtype[Any]] = (), value: Any = True) -> None:
        """Remember what f was found to be on data of such dtypes."""
        self._found[_key(f, what, dtypes)] = value

    def clear(self) -> None:
        """Forget every function."""
        self._found.clear()


class Trust:
    """Whether f was known to be what the code assumes of it before a map, looked up when it is first asked.

    One for all codewords of a map: what is found out in one of them is no reason to trust f in the others.

    Parameters
    ----------
    memory : TrustedFunctions
    f : callable
    assumption : str
        Of the code.
    dtypes : list of dtype
        Of the data.
    is_ours : bool
        True by construction.
    """

    def __init__(
        self, memory: TrustedFunctions, f: Any, assumption: str, dtypes: Sequence[Any], is_ours: bool
    ) -> None:
        self._memory, self._f, self._assumption = memory, f, assumption
        self._dtypes, self._is_ours = list(dtypes), is_ours

    @functools.cached_property
    def is_known(self) -> bool:
        """Whether this map need not find out."""
        return self._is_ours or bool(self._memory.recall(self._f, self._assumption, self._dtypes))

    def note_passed(self) -> None:
        """Remember for later maps that f is what the code assumes."""
        if not self.is_known:
            self._memory.note(self._f, self._assumption, self._dtypes)


TRUSTED = TrustedFunctions()  # what maps of this process found, unless their options name another memory


def _key(f: Any, what: str, dtypes: Sequence[np.dtype[Any]]) -> str:
    return "\n".join([what, *(dtype.str for dtype in dtypes), fingerprint(f)])


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
    if isinstance(value, type):  # a class may be defined anew under its old name
        return [f"{value.__module__}.{value.__qualname__} {_identity(value)}"]
    if isinstance(value, (types.ModuleType, types.BuiltinFunctionType, np.ufunc)):
        return [f"{getattr(value, '__module__', '')}.{value.__name__}"]
    try:
        return [type(value).__qualname__, hashlib.sha256(cloudpickle.dumps(value)).hexdigest()]
    except Exception:
        return [type(value).__qualname__, str(_identity(value))]


def _identity(value: Any) -> int:
    """A number that no other object ever has; one that cannot be watched gets a new one each time.

    An id is given out again when its object is gone.
    """
    known = _identities.get(id(value))
    if known is not None and known[0]() is value:
        return known[1]
    number = next(_numbers)
    with contextlib.suppress(TypeError):
        _identities[id(value)] = weakref.ref(value, _forgetting(id(value), number)), number
    return number


def _forgetting(place: int, number: int) -> Any:
    """What is called when the object of that id dies: the id may belong to another one by then."""

    def forget_it(_: Any) -> None:
        if _identities.get(place, (None, None))[1] == number:
            del _identities[place]

    return forget_it


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
