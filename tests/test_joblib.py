"""Check joblib's Parallel on polarmap's workers: results, errors, lost workers, scikit-learn's searches."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed
from pool_processes import until
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

import polarmap
import polarmap.joblib
from polarmap.driver.call_queue import CallQueue
from polarmap.errors import ExecutorError


def squares(count: int, **options: Any) -> list[int]:
    results: list[int] = Parallel(**options)(delayed(pow)(number, 2) for number in range(count))
    return results


@pytest.mark.parametrize("n_jobs", [1, 2, 7, -1, None])
def test_results_come_in_order(n_jobs: int | None) -> None:
    with joblib.parallel_config(backend="polarmap", n_jobs=n_jobs):
        assert squares(100) == [number**2 for number in range(100)]


def test_calls_run_on_the_given_executor() -> None:
    with ThreadPoolExecutor(3) as pool, joblib.parallel_config(backend="polarmap", executor=pool, n_jobs=3):
        assert set(Parallel()(delayed(os.getpid)() for _ in range(5))) == {os.getpid()}
        assert squares(5) == [0, 1, 4, 9, 16]  # The pool is still open.
    with joblib.parallel_config(backend="polarmap", n_jobs=2):
        assert os.getpid() not in Parallel()(delayed(os.getpid)() for _ in range(5))


def test_no_more_calls_run_at_a_time_than_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> int:
        return 1 // number

    limit_in_flight = CallQueue.limit_in_flight

    def limit_and_note(calls: CallQueue, max_in_flight: int) -> None:
        limit_in_flight(calls, max_in_flight)
        limits.append(calls._policy._max_in_flight)

    monkeypatch.setattr(CallQueue, "limit_in_flight", limit_and_note)
    for n_jobs in (2, 3):
        limits: list[int] = []
        with joblib.parallel_config(backend="polarmap", n_jobs=n_jobs), Parallel() as parallel:
            assert parallel(delayed(fail)(number) for number in (1, 2)) == [1, 0]
            with pytest.raises(ZeroDivisionError):
                parallel(delayed(fail)(number) for number in (1, 0))
        assert len(limits) > 1  # The exception has led to another executor.
        assert set(limits) == {n_jobs}


def test_results_can_be_returned_as_a_generator() -> None:
    with joblib.parallel_config(backend="polarmap", n_jobs=2):
        assert list(squares(20, return_as="generator")) == [number**2 for number in range(20)]
        assert sorted(squares(20, return_as="generator_unordered")) == [number**2 for number in range(20)]


def test_an_error_of_a_call_is_raised_and_later_calls_work() -> None:
    def fail(number: int) -> int:
        if number == 3:
            raise ZeroDivisionError("three")
        return number

    with joblib.parallel_config(backend="polarmap", n_jobs=2):
        with pytest.raises(ZeroDivisionError, match="three"):
            Parallel()(delayed(fail)(number) for number in range(10))
        with Parallel(
            pre_dispatch="all", batch_size=1
        ) as parallel:  # Otherwise joblib keeps calls for the next run.
            with pytest.raises(ZeroDivisionError, match="three"):
                parallel(delayed(fail)(number) for number in range(10))
            assert parallel(delayed(abs)(-number) for number in range(4)) == [0, 1, 2, 3]


def test_a_call_whose_worker_dies_is_retried(tmp_path: Path) -> None:
    def die_once(number: int) -> int:
        mark = tmp_path / "died"
        if number == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with joblib.parallel_config(backend="polarmap", n_jobs=2):
        assert Parallel(batch_size=1)(delayed(die_once)(number) for number in range(5)) == [0, 1, 2, 3, 4]


def test_a_retry_waits_for_the_retry_delay(tmp_path: Path) -> None:
    def die_once() -> float:
        if not (tmp_path / "died").exists():
            (tmp_path / "died").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return time.time() - float((tmp_path / "died").read_text())

    with joblib.parallel_config(backend="polarmap", n_jobs=2, retry_delay=1.0):
        [seconds] = Parallel()([delayed(die_once)()])
    assert seconds >= 1.0


def test_parallel_inside_parallel() -> None:
    def inner(number: int) -> int:
        return int(sum(Parallel(n_jobs=2)(delayed(abs)(one) for one in range(number))))

    with joblib.parallel_config(backend="polarmap", n_jobs=2):
        assert Parallel()(delayed(inner)(number) for number in range(4)) == [0, 0, 1, 3]


def test_scikit_learn_grid_search_gives_the_same_scores() -> None:
    X, y = load_iris(return_X_y=True)
    search = GridSearchCV(LogisticRegression(max_iter=500), {"C": [0.1, 1.0, 10.0]}, cv=3)
    sequential_scores = search.fit(X, y).cv_results_["mean_test_score"]
    with joblib.parallel_config(backend="polarmap", n_jobs=2):
        parallel_scores = search.fit(X, y).cv_results_["mean_test_score"]
    np.testing.assert_allclose(parallel_scores, sequential_scores)


def test_no_thread_is_left_behind() -> None:
    with joblib.parallel_config(backend="polarmap", n_jobs=2):
        squares(4)
        before = threading.active_count()
        for _ in range(5):
            squares(4)
    assert until(lambda: threading.active_count() <= before)


def test_wrong_options_are_rejected() -> None:
    def with_options(**options: Any) -> Callable[[], list[int]]:
        def call() -> list[int]:
            with joblib.parallel_config(backend="polarmap", n_jobs=2, **options):
                return squares(3)

        return call

    with pytest.raises(ExecutorError, match="nowhere"):
        with_options(executor="nowhere")()
    with pytest.raises(polarmap.errors.CodeError, match="backups must be 0 or more"):
        with_options(backups=-1)()
    with pytest.raises(polarmap.errors.CodeError, match="retry_delay must be a finite number"):
        with_options(retry_delay=-1)()
    with (
        joblib.parallel_config(backend="polarmap", n_jobs=0),
        pytest.raises(ValueError, match="n_jobs == 0"),
    ):
        squares(3)
