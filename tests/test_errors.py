from __future__ import annotations

import inspect
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from polarmap import coded_map, errors
from polarmap.codes import PolarCode
from polarmap.testing import ReplayExecutor

BUILTINS = {
    "CodeError": ValueError,
    "ModelError": ValueError,
    "ExecutorError": RuntimeError,
    "WorkerLostError": BrokenExecutor,
    "LimitError": ValueError,
    "FunctionExitError": RuntimeError,
    "NotLinearError": ValueError,
    "NotDecodableError": RuntimeError,
    "CodedTimeoutError": TimeoutError,
    "DeadlineExceededError": TimeoutError,
    "StorageError": RuntimeError,
    "MissingObjectError": LookupError,
}
DATA = np.ones((6, 2))


def public_errors() -> dict[str, type[Exception]]:
    members = inspect.getmembers(errors, inspect.isclass)
    own_classes = {name: cls for name, cls in members if cls.__module__ == errors.__name__}
    return {name: cls for name, cls in own_classes.items() if issubclass(cls, Exception)}


def test_error_classes_match_the_tree_in_the_module_docstring() -> None:
    assert public_errors().keys() == {"PolarmapError", *BUILTINS}
    assert errors.__doc__ is not None
    for name, builtin in BUILTINS.items():
        drawn = next(line for line in errors.__doc__.splitlines() if f"── {name} " in line)
        assert f"({builtin.__name__})" in drawn


@pytest.mark.parametrize("name", BUILTINS)
def test_every_error_is_a_polarmap_error_and_the_fitting_builtin(name: str) -> None:
    error = public_errors()[name]
    assert issubclass(error, errors.PolarmapError)
    assert issubclass(error, BUILTINS[name])
    assert error.__doc__


def test_a_base_exception_is_replaced_even_if_str_raises() -> None:
    class MuteExit(BaseException):
        def __str__(self) -> str:
            raise ValueError("no words")

    error = MuteExit()
    annotated = errors.annotate_exception("task 3 of 4", error)
    assert str(annotated).startswith("task 3 of 4 raised MuteExit. This error replaces it")
    assert annotated.__cause__ is error
    ordinary = KeyError("x")
    assert errors.annotate_exception("task 3 of 4", ordinary) is ordinary


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": "3"}, "timeout must be a positive number, not '3'"),
        ({"rtol": 0.0}, "rtol must be a positive number, not 0.0"),
        ({"retries": -1}, "retries must be 0 or more, not -1"),
        ({"retries": 1.5}, "retries must be 0 or more, not 1.5"),
        ({"retries": None}, "retries must be 0 or more, not None"),
        ({"verify": 2}, "verify must be 'auto', True or False, not 2"),
        (
            {"code": "x"},
            "code must be 'auto', 'rotation', 'arikan', SecretSharing() or a code such as PolarCode(n, k), "
            "not 'x'",
        ),
        ({"blocks": 0}, "blocks must be a positive integer, not 0"),
        ({"tasks": 2.5, "blocks": 2}, "tasks must be a positive integer, not 2.5"),
        ({"blocks": 7}, "blocks=7 is more than the 6 rows of the data; use blocks <= 6"),
        ({"blocks": 3, "tasks": 3}, "tasks=3 leaves no parity for 3 blocks: use tasks > 3"),
        ({"tasks": 1}, "tasks=1 leaves no parity for 1 blocks: use tasks > 1"),
        ({"code": PolarCode(8, 4), "blocks": 3}, "does not fit 3 blocks on 8 tasks"),
        ({"code": PolarCode(8, 3), "tasks": 9}, "does not fit 3 blocks on 9 tasks"),
        ({"code": PolarCode(9, 7)}, "blocks=7 is more than the 6 rows"),
        ({"blocks": 2, "tasks": 10**6}, "1000000"),
    ],
)
def test_error_messages_name_the_bad_option_and_its_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.CodeError) as caught:
        coded_map(np.sum, DATA, **{"executor": ReplayExecutor()} | options)
    assert message in str(caught.value)


@pytest.mark.parametrize("f", [3, None, "sum", DATA])
def test_f_must_be_callable(f: Any) -> None:
    with pytest.raises(errors.CodeError, match=f"f must be callable, not {type(f).__name__}"):
        coded_map(f, DATA, executor=ReplayExecutor())


def test_rotation_kernel_rejects_integers() -> None:
    with pytest.raises(errors.CodeError, match="rotation kernel does not support int64 blocks"):
        coded_map(np.sum, np.arange(6), code="rotation", executor=ReplayExecutor())


@pytest.mark.parametrize("workers", [4, 8])
def test_numpy_scalars_are_accepted_as_options(workers: int) -> None:
    options = {"blocks": np.int64(3), "tasks": np.int32(workers), "retries": np.uint8(0)}
    numbers = {"timeout": np.float32(100), "rtol": np.float64(1e-9), "verify": np.True_}
    result = coded_map(np.sum, DATA, executor=ReplayExecutor(), **options, **numbers)
    assert list(result) == [4.0, 4.0, 4.0]


def test_a_warning_names_the_line_that_called_polarmap() -> None:
    A = np.arange(12.0).reshape(6, 2)
    with ThreadPoolExecutor(3) as pool, pytest.warns(RuntimeWarning, match="parity equations") as caught:
        coded_map(np.square, A, blocks=2, tasks=3, executor=pool)
    assert [warning.filename for warning in caught] == [__file__]


def test_a_warning_of_a_model_names_the_line_that_fits_it() -> None:
    glm = pytest.importorskip("polarmap.glm")
    X = np.random.default_rng(0).standard_normal((12, 2))
    with ThreadPoolExecutor(3) as pool, pytest.warns(match="max_iter=1 ") as caught:
        glm.LogisticRegression(max_iter=1, blocks=2, tasks=3, executor=pool).fit(X, X[:, 0] > 0)
    assert caught[-1].filename == __file__
