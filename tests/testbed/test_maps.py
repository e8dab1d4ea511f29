"""Maps on four Dask machines of which one is slow, cut or killed. `make test-network` runs this."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from testbed.cluster import DaskNetwork, dask_network
from testbed.machines import missing_rights, wait_until

pytestmark = pytest.mark.network

SMALL = 8_000  # bytes of a block


@pytest.fixture(scope="module")
def cluster() -> Iterator[DaskNetwork]:
    if reason := missing_rights():
        pytest.skip(reason)
    with dask_network() as one:
        yield one


@pytest.fixture(autouse=True)
def _warm(cluster: DaskNetwork) -> None:
    """Each test has a perfect network and a new pool."""
    cluster.net.restore()
    cluster.wait_for_workers()
    assert cluster.driver.call("open_pool")["is_right"]


def check(reply: dict[str, Any]) -> None:
    assert (reply["error"], reply["is_right"]) == ("", True)


@pytest.mark.parametrize("options", [{"delay": 0.05}, {"rate": 10e6}, {"loss": 0.02}], ids=str)
def test_a_slow_machine_changes_no_result(cluster: DaskNetwork, options: dict[str, float]) -> None:
    cluster.workers[0].cable.configure(**options)
    for block_bytes in (SMALL, 500_000):
        check(cluster.driver.call("run", block_bytes=block_bytes))


def test_a_machine_that_is_cut_between_maps_is_not_awaited(cluster: DaskNetwork) -> None:
    cluster.workers[0].cable.configure(is_cut=True)
    check(cluster.driver.call("run", block_bytes=SMALL))
    assert cluster.workers[0].cable.is_cut  # until now


def test_large_results_of_a_slow_machine_are_not_awaited(cluster: DaskNetwork) -> None:
    machine = cluster.workers[0]
    machine.cable.configure(rate=8e6)
    before = machine.cable.up.n_bytes
    check(cluster.driver.call("run", block_bytes=SMALL, result_bytes=8_000_000))
    assert machine.cable.up.n_bytes - before < 8 * 8_000_000


def test_a_killed_process_is_replaced_while_a_map_runs(cluster: DaskNetwork) -> None:
    machine = cluster.workers[0]
    before = machine.cable.down.n_bytes
    cluster.driver.start("run", block_bytes=2_000_000)
    wait_until(lambda: machine.cable.down.n_bytes > before + 100_000)
    assert machine.kill("multiprocessing") + machine.kill("dask_worker") > 0
    check(cluster.driver.result())
    if not machine.processes("dask_worker"):
        cluster.start_worker(machine)


def test_maps_without_a_pool_do_not_wait_for_a_machine_that_is_cut(cluster: DaskNetwork) -> None:
    check(cluster.driver.call("run", block_bytes=SMALL, on_client=True))
    cluster.workers[0].cable.configure(is_cut=True)
    check(cluster.driver.call("run", block_bytes=SMALL, on_client=True))
