"""Every public map function on local Dask and Ray clusters, with sleeping and killed workers.

Each test runs on persistent workers and on ordinary tasks of the cluster.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest
import ray_clusters

import polarmap
from polarmap import CodedOperator, Pool, coded_gradient, coded_map, coded_sum, hedged_map
from polarmap.errors import FunctionExitError
from polarmap.glm import Ridge

pytestmark = [
    pytest.mark.engines,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning"),
]
A = np.random.default_rng(0).standard_normal((240, 6))
X = np.arange(6.0)
SLOW = 300.0


@pytest.fixture(scope="module", params=["dask", "ray"])
def engine(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Yield a client of a Dask cluster with two worker processes, or `ray`, connected to a local cluster."""
    if request.param == "ray":
        import ray

        with ray_clusters.ends_with_it(ray):
            ray_clusters.start(ray)
            yield ray
        return
    sizes = {"n_workers": 2, "threads_per_worker": 4, "processes": True, "memory_limit": 0}
    with distributed.LocalCluster(**sizes, dashboard_address=":0") as cluster, cluster.get_client() as client:
        yield client


@pytest.fixture(scope="module", params=["stay", "tasks"])
def executor(request: pytest.FixtureRequest, engine: Any) -> Iterator[Any]:
    with ExitStack() as stack:
        yield stack.enter_context(Pool(engine, workers=5)) if request.param == "stay" else engine


def first_to_come(folder: Path, name: str) -> bool:
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def sleeps_or_dies(folder: Path, block: np.ndarray) -> np.ndarray:
    """Return block @ x, except that two calls sleep first and a third kills its own worker process."""
    if first_to_come(folder, "first") or first_to_come(folder, "second"):
        time.sleep(SLOW)
    if first_to_come(folder, "third"):
        os.kill(os.getpid(), signal.SIGKILL)
    return block @ np.arange(6.0)


def test_exits_of_f_do_not_end_the_driver(executor: Any) -> None:
    def f(item: Any) -> Any:
        raise SystemExit(3)

    for verb, options in ((coded_map, {"blocks": 2, "tasks": 3}), (hedged_map, {"blocks": 2})):
        with pytest.raises(FunctionExitError, match=r"of [23] .*raised SystemExit: 3"):
            verb(f, A, executor=executor, retries=0, timeout=SLOW, **options)
    with polarmap.Executor(executor) as calls:
        with pytest.raises(FunctionExitError, match="raised SystemExit: 3"):
            calls.submit(f, 1).result(SLOW)
        with pytest.raises(FunctionExitError, match="raised SystemExit: 3"):
            list(calls.map(f, range(3), timeout=SLOW))


def test_sleeping_and_killed_tasks_are_not_awaited(executor: Any, tmp_path: Path) -> None:
    f = partial(sleeps_or_dies, tmp_path)
    y = coded_map(f, A, blocks=4, tasks=8, executor=executor, verify=False)
    np.testing.assert_allclose(y.concatenate(), A @ X)
    assert (tmp_path / "third").exists()


def cut(engine: Any) -> Any:
    """Store the rows of A on the cluster, as chunks of a Dask array or as Ray objects."""
    if hasattr(engine, "get_executor"):
        import dask.array

        return engine.persist(dask.array.from_array(A, chunks=(60, 3)))
    return [engine.put(block) for block in np.split(A, 4)]


def test_data_on_the_cluster_is_not_copied_to_the_driver(engine: Any, executor: Any, tmp_path: Path) -> None:
    data = cut(engine)
    for f in (partial(sleeps_or_dies, tmp_path), np.negative):
        y = coded_map(f, data, tasks=8, executor=executor, verify=False)
        np.testing.assert_allclose(y.concatenate(), A @ X if f is not np.negative else -A)
        assert y.report.k == 4


def test_operators_models_sums_and_gradients(executor: Any) -> None:
    with CodedOperator(A, blocks=4, tasks=6, executor=executor) as operator:
        for _ in range(3):
            np.testing.assert_allclose(operator @ X, A @ X)
            np.testing.assert_allclose(operator.T @ (A @ X), A.T @ (A @ X))
    y = A @ X
    model = Ridge(alpha=1e-9, executor=executor, fit_intercept=False).fit(A, y)
    np.testing.assert_allclose(model.coef_, X, rtol=1e-6, atol=1e-6)
    total = coded_sum(lambda part: part.T @ part, np.split(A, 6), tolerate=2, executor=executor)
    np.testing.assert_allclose(total.value, A.T @ A)
    result = coded_gradient(lambda z: float(np.sum(z**3)), X, executor=executor)
    np.testing.assert_allclose(result.gradient, 3 * X**2, atol=1e-3)


def test_calls_futures_and_estimates(executor: Any) -> None:
    assert list(hedged_map(len, ["a", "bc"], executor=executor)) == [1, 2]
    future = polarmap.submit(
        polarmap.coded_map, partial(np.multiply, 2), A, blocks=4, tasks=6, executor=executor
    )
    *_, last = future.estimates()
    np.testing.assert_allclose(future.result(SLOW).concatenate(), 2 * A)
    np.testing.assert_allclose(last.concatenate(), 2 * A)
    np.testing.assert_allclose(future.blocks[1].result(SLOW), 2 * A[60:120])
    with polarmap.Executor(executor) as calls:
        assert list(calls.map(abs, [-1, -2])) == [1, 2]
