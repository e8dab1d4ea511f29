"""Which functions count as the same, so that only the first use of each waits to be verified."""

from __future__ import annotations

import functools
import gc
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polarmap import ReplayExecutor, coded_map
from polarmap.errors import NotLinearError
from polarmap.run.trusted import LINEAR, TRUSTED, fingerprint

DATA = np.random.default_rng(0).standard_normal((12, 5))
SCALE = 2.0
WEIGHTS = np.ones(5)


def times(x: Any) -> Callable[[Any], Any]:
    return lambda block: block @ x


def power(exponent: Any) -> Callable[[Any], Any]:
    return lambda block: block**exponent


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


def uses_scale(block: Any) -> Any:
    return SCALE * block


def uses_weights(block: Any) -> Any:
    return block @ WEIGHTS


def uses_inner(block: Any) -> Any:
    return inner(block)


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
    "arrays of other values": lambda: times(np.random.default_rng().standard_normal(5)),
    "arrays inside containers": lambda: with_options(
        {"scale": np.random.default_rng().random(3), "power": 1}
    ),
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
    "closures": (power(1), power(2)),
    "types of constants": (power(1), power(1.0)),
    "lambdas inside": (inside_a_lambda(1), inside_a_lambda(2)),
    "defaults": (with_default(1), with_default(2)),
    "keyword defaults": (with_keyword(1), with_keyword(2)),
    "shapes of arrays": (times(np.ones(5)), times(np.ones((5, 2)))),
    "dtypes of arrays": (times(np.ones(5)), times(np.ones(5, "f4"))),
    "first helpers": (apply_both(power(1), power(3)), apply_both(power(2), power(3))),
    "second helpers": (apply_both(power(1), power(2)), apply_both(power(1), power(3))),
    "first items": (with_options({"scale": 1, "power": 1}), with_options({"scale": 2, "power": 1})),
    "last items": (with_options({"scale": 1, "power": 1}), with_options({"scale": 1, "power": 2})),
    "functions in containers": (
        with_options({"scale": [power(1), power(1)], "power": 1}),
        with_options({"scale": [power(1), power(2)], "power": 1}),
    ),
    "callables": (power(np.square), power(np.abs)),
    "ufuncs": (np.negative, np.square),
    "numpy functions": (np.sum, np.max),
    "builtins": (sum, max),
    "partials": (functools.partial(np.sum, axis=0), functools.partial(np.sum, axis=1)),
    "functions of partials": (functools.partial(np.sum, axis=0), functools.partial(np.max, axis=0)),
    "methods": (Power(2).method, Power(2).other),
    "objects of methods": (Power(1).method, Power(2).method),
    "callable objects": (Power(1), Power(2)),
    "method callers": (operator.methodcaller("sum"), operator.methodcaller("max")),
}


@pytest.mark.parametrize("name", SAME)
def test_made_again_it_is_the_same_function(name: str) -> None:
    assert fingerprint(SAME[name]()) == fingerprint(SAME[name]())


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_may_make_it_non_linear_makes_another_function(name: str) -> None:
    one, other = DIFFERENT[name]
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(one)


def test_a_global_number_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(uses_scale)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert fingerprint(uses_scale) != before


def test_a_global_array_counts_by_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(uses_weights)
    monkeypatch.setitem(globals(), "WEIGHTS", np.zeros(5))
    assert fingerprint(uses_weights) == before
    monkeypatch.setitem(globals(), "WEIGHTS", np.zeros((5, 5)))
    assert fingerprint(uses_weights) != before


def test_a_global_function_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(uses_inner)
    monkeypatch.setitem(globals(), "inner", abs)
    assert fingerprint(uses_inner) != before


def test_a_class_defined_anew_under_its_name_counts() -> None:
    def define(exponent: int) -> Callable[[Any], Any]:
        class Local:
            def __call__(self, block: Any) -> Any:
                return block**exponent

        return lambda block: Local()(block)

    assert fingerprint(define(1)) != fingerprint(define(2))


def test_a_variable_without_a_value_yet_does_no_harm() -> None:
    f = lambda block: block * later  # noqa: E731
    before = fingerprint(f)
    later = 2
    assert fingerprint(f) != before


def test_what_cannot_be_pickled_counts_as_itself() -> None:
    class Unpicklable(Power):
        def __reduce__(self) -> Any:
            raise TypeError("no")

    one, other = Unpicklable(1), Unpicklable(1)
    assert fingerprint(one) == fingerprint(one)
    assert fingerprint(one) != fingerprint(other)


def test_note_and_forget() -> None:
    f = times(np.ones(3))
    floats, integers = [np.dtype(float)], [np.dtype(int)]
    assert TRUSTED.recall(f, LINEAR, floats) is None
    TRUSTED.note(f, LINEAR, floats)
    assert TRUSTED.recall(times(np.zeros(3)), LINEAR, floats) is True
    assert TRUSTED.recall(times(np.zeros(4)), LINEAR, floats) is None
    assert TRUSTED.recall(f, LINEAR, integers) is None
    assert TRUSTED.recall(f, "another thing", floats) is None
    TRUSTED.clear()
    assert TRUSTED.recall(f, LINEAR, floats) is None


def how_verified(f: Callable[[Any], Any], surplus: bool) -> str:
    """A map that loses two of four blocks and, without surplus, all of the parity it can."""
    seconds = dict.fromkeys([0, 1] if surplus else [0, 1, 6], math.inf)
    options = {"blocks": 4, "workers": 7, "timeout": 100}
    return coded_map(f, DATA, executor=ReplayExecutor(seconds), **options).report.verified


@pytest.mark.parametrize(("surplus", "how"), [(True, "parity"), (False, "local")])
def test_the_next_map_trusts_what_this_one_verified(surplus: bool, how: str) -> None:
    assert how_verified(times(np.ones(5)), surplus) == how
    assert how_verified(times(np.zeros(5)), surplus=False) == "earlier"


@pytest.mark.parametrize("seconds", [{}, dict.fromkeys([4, 5, 6], math.inf)], ids=["parity", "here"])
def test_a_function_is_verified_although_nothing_is_decoded(seconds: dict[int, float]) -> None:
    f = times(np.ones(5))
    options = {"blocks": 4, "workers": 7, "timeout": 100, "executor": ReplayExecutor(seconds)}
    report = coded_map(f, DATA, **options).report
    assert (report.verified, report.residual is not None) == ("not needed", True)
    assert how_verified(f, surplus=False) == "earlier"


def test_what_is_known_of_a_function_dies_with_it() -> None:
    """An id is given out again, and must not make another function known."""
    numbers = set()
    gc.freeze()  # what other tests have left is not looked through fifty times
    try:
        for turn in range(50):
            made = type("Local", (), {"turn": turn})
            numbers.add(fingerprint(made))
            del made
            gc.collect()
    finally:
        gc.unfreeze()
    assert len(numbers) == 50


def test_a_function_that_failed_is_not_verified() -> None:
    for _ in range(2):
        with pytest.raises(NotLinearError):
            how_verified(power(2), surplus=False)


def test_a_non_linear_relative_of_a_verified_function_is_found_out() -> None:
    assert how_verified(apply_both(power(1), power(1)), surplus=False) == "local"
    with pytest.raises(NotLinearError):
        how_verified(apply_both(power(1), power(2)), surplus=False)
