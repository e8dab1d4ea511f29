"""Maps over Dask collections, which are cut and encoded on the cluster without a copy on the driver.

A `LocalCluster` of threads runs the tasks. tests/maps/test_clusters.py also covers Ray.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import dask.array
import distributed
import numpy as np
import pytest
from pool_processes import until

import polarmap
from polarmap import CodedOperator, Pool, coded_map
from polarmap.codes import PolarCode
from polarmap.errors import CodeError, ExecutorError
from polarmap.executors import dask as dask_engine
from polarmap.executors import resolve_executor
from polarmap.executors.dask import DaskEngine
from polarmap.testing import Fault, FaultyExecutor

A = np.random.default_rng(0).standard_normal((62, 5))
X = np.arange(5.0)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Yield a client of a Dask cluster whose two workers are threads of this process."""
    sizes: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 4, "processes": False, "memory_limit": 0}
    with distributed.LocalCluster(**sizes, dashboard_address=":0") as cluster, cluster.get_client() as client:
        yield client


@pytest.fixture(params=["tasks", "stay"])
def executor(request: pytest.FixtureRequest, client: Any) -> Iterator[Any]:
    if request.param == "tasks":
        yield client
        return
    with Pool(client, workers=6) as pool:
        yield pool


def product(block: Any) -> Any:
    block *= 2  # the map must pass a private copy: other tasks read the same block
    return block @ X


@pytest.fixture
def no_block_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a block is sent to the driver."""
    fetch = DaskEngine.fetch_values

    def fetched(self: DaskEngine, references: Any) -> Any:
        values = fetch(self, references)
        assert not any(isinstance(value, np.ndarray) for value in values)
        return values

    monkeypatch.setattr(DaskEngine, "fetch_values", fetched)


@pytest.mark.usefixtures("no_block_is_fetched")
def test_chunks_of_an_array_become_the_blocks(executor: Any) -> None:
    data = dask.array.from_array(A, chunks=(16, 2))
    faulty = FaultyExecutor(executor, {1: Fault("raise", attempts=9)})
    for where, recovered in ((executor, None), (faulty, (1,))):
        y = coded_map(product, data, executor=where, verify=False)
        np.testing.assert_allclose(y.concatenate(), 2 * A @ X)
        assert (y.report.k, y.report.n, y.report.padding) == (4, 6, 2)
        assert recovered is None or set(recovered) <= set(y.report.recovered)
    y = coded_map(product, data, code=PolarCode(5, 3), executor=executor, schedule="on_demand", verify=False)
    np.testing.assert_allclose(y.concatenate(), 2 * A @ X)
    np.testing.assert_array_equal(data.compute(), A)


@pytest.mark.usefixtures("no_block_is_fetched")
def test_operator_encodes_a_matrix_once_on_the_cluster(
    executor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, counts = [], list[int]()
    call = DaskEngine.submit_call
    monkeypatch.setattr(
        DaskEngine,
        "submit_call",
        lambda *arguments, **options: calls.append(1) or call(*arguments, **options),
    )
    matrix = dask.array.from_array(A, chunks=(16, 2))
    with CodedOperator(matrix, blocks=4, tasks=6, executor=executor, verify=False) as operator:
        for _ in range(3):
            np.testing.assert_allclose(operator @ X, A @ X)
            np.testing.assert_allclose(operator.T @ (A @ X), A.T @ (A @ X))
            counts.append(len(calls))
    assert counts[0] == counts[-1] > 0
    matrix = dask.array.where(matrix > 2, np.nan, matrix)
    with (
        CodedOperator(matrix, executor=executor) as operator,
        pytest.raises(CodeError, match="A has no parity"),
    ):
        operator @ X


def test_operator_is_exact_for_integers_and_refuses_overflow(client: Any) -> None:
    matrix = dask.array.from_array(np.arange(24).reshape(8, 3), chunks=(2, 3))
    with CodedOperator(matrix, blocks=4, executor=client) as operator:
        assert (operator @ np.arange(3)).tolist() == (np.arange(24).reshape(8, 3) @ np.arange(3)).tolist()
    large = CodedOperator(matrix * 2**58, blocks=4, executor=client)
    with large, pytest.raises(CodeError, match="do not fit into 64 bits"):
        large @ np.ones(3)


def test_unreferenced_data_and_parity_are_released(client: Any, executor: Any) -> None:
    y = coded_map(product, dask.array.from_array(A, chunks=(16, 5)), executor=executor)
    np.testing.assert_allclose(y.concatenate(), 2 * A @ X)
    del y

    def are_gone() -> bool:
        gc.collect()
        names = client.run_on_scheduler(lambda dask_scheduler: list(map(str, dask_scheduler.tasks)))
        return not any(name.startswith(("polarmap-data-", "polarmap-task-")) for name in names)

    assert until(are_gone)


def test_futures_are_blocks(executor: Any, client: Any) -> None:
    data = client.scatter([A[:31], A[31:]], hash=False)
    np.testing.assert_allclose(coded_map(product, data, executor=executor).concatenate(), 2 * A @ X)


def test_waiting_for_data_raises_when_the_scheduler_dies(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, gate = DaskEngine(client), distributed.Event("gate", client=client)
    monkeypatch.setattr(dask_engine, "SCHEDULER_TIMEOUT", 0.05)
    [pending] = data.submit_call(gate.wait)
    reasons = ["its scheduler is gone", ""]
    monkeypatch.setattr(data, "get_unavailable_reason", reasons.pop)
    try:
        with pytest.raises(ExecutorError, match="no data of Dask: its scheduler is gone"):
            data.make_worker_reference_names([pending])
    finally:
        gate.set()


def test_encoding_tasks_use_the_options_of_the_executor(client: Any) -> None:
    here, _ = client.scheduler_info()["workers"]
    data = DaskEngine(client.get_executor(workers=[here], allow_other_workers=False))
    references = data.submit_call(divmod, 7, 2, n_outputs=2)
    assert data.fetch_values(references) == [3, 1]
    assert [list(where) for where in client.who_has(references).values()] == [[here]] * 2


def test_unknown_chunk_sizes_are_computed(client: Any) -> None:
    data = dask.array.from_array(A, chunks=(16, 5))
    data = data[data[:, 0] > 0]
    y = coded_map(product, data, executor=client)
    np.testing.assert_allclose(y.concatenate(), 2 * A[A[:, 0] > 0] @ X)


def test_data_frame_is_used_as_an_array(client: Any) -> None:
    pytest.importorskip("pyarrow", reason="Dask's data frames need it")
    import dask.dataframe
    import pandas as pd

    data = dask.dataframe.from_pandas(pd.DataFrame(A), npartitions=4)
    np.testing.assert_allclose(coded_map(product, data, executor=client).concatenate(), 2 * A @ X)


def test_other_data_and_executors_are_not_partitioned(client: Any) -> None:
    assert resolve_executor(client).partition([A], None) is None
    assert resolve_executor(client).partition(dask.array.ones(()), None) is None
    assert resolve_executor(None).partition(dask.array.from_array(A), None) is None
    y = coded_map(np.negative, dask.array.from_array(A), blocks=4, executor=polarmap.testing.ReplayExecutor())
    np.testing.assert_allclose(y.concatenate(), -A)


def test_blocks_that_would_be_empty_are_refused(client: Any) -> None:
    with pytest.raises(CodeError, match="62 rows do not fill 60 blocks: use blocks=31"):
        coded_map(product, dask.array.from_array(A), blocks=60, executor=client)
    with pytest.raises(CodeError, match="no rows"):
        coded_map(product, dask.array.ones((0, 3)), executor=client)
