"""Check the table of steps: the cells of a row, actions in turns, and the bare-socket baseline."""

from __future__ import annotations

from functools import partial
from operator import methodcaller

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

import benchmarks
from benchmarks import Row, time_in_turns
from benchmarks.bare_sockets import SocketPool
from benchmarks.numpy_estimators import with_numpy_products
from benchmarks.steps import SUBJECTS, main
from polarmap.glm import Ridge


def test_a_row_is_compared_with_the_median_of_its_baseline() -> None:
    row = Row("a step", [1.0, 2.0, 9.0], "numpy", [4.0, 0.5, 8.0], "1.5")
    assert row.format_cells() == ("a step", "2.00 (9.00)", "numpy", "4.00 (8.00)", "0.500 (2.25)", "1.5")


def test_actions_take_turns_and_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "PAUSE_SECONDS", 0)
    calls: list[str] = []
    actions = [partial(calls.append, name) for name in "ab"]
    assert [len(taken) for taken in time_in_turns(actions, 2)] == [2, 2]
    assert calls == ["a", "b"] * 3
    calls.clear()
    assert [len(taken) for taken in time_in_turns(actions, 1, n_steps=2)] == [2, 2]
    assert calls == [*"aaaabbbb"] * 2


def test_bare_sockets_map_coded_blocks() -> None:
    A = np.random.default_rng(0).standard_normal((6, 5, 4))
    with SocketPool(A, 8, 2) as sockets:
        for x in np.eye(4):  # Late results of an earlier map must not count as results of this map.
            assert np.allclose(sockets.map(methodcaller("dot", x)), A @ x)


def test_an_estimator_with_numpy_products_finds_the_same_solution() -> None:
    X, y = load_diabetes(return_X_y=True)
    plain = with_numpy_products(Ridge()).fit(X, y)
    assert np.allclose(plain.coef_, np.linalg.solve(*normal_equations(X, y)), rtol=1e-6)
    assert plain.operator.n_products > 0


def normal_equations(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the normal equations of a ridge regression with penalty 1 and an intercept."""
    X = X - X.mean(axis=0)
    return X.T @ X + np.eye(X.shape[1]), X.T @ (y - y.mean())


def test_subjects_are_chosen_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SUBJECTS, "maps", lambda turns: iter([Row("a map", [3.0], "numpy", [2.0])]))
    monkeypatch.setattr("sys.argv", ["steps", "maps"])
    main()
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["a", "map", "3.00"]
    monkeypatch.setattr("sys.argv", ["steps", "mops"])
    with pytest.raises(SystemExit):
        main()
    assert "unknown: mops" in capsys.readouterr().err
