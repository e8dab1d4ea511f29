"""Check maps on four Dask machines while one is slow, cut or killed. `make test-network` runs this."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from testbed.cluster import EngineNetwork, dask_network
from testbed.machines import Machine, missing_rights, wait_until

pytestmark = pytest.mark.network

SMALL = 8_000  # Bytes of a block.


@pytest.fixture(scope="module")
def cluster() -> Iterator[EngineNetwork]:
    if reason := missing_rights():
        pytest.skip(reason)
    with dask_network() as one:
        yield one


@pytest.fixture(autouse=True)
def _warm(cluster: EngineNetwork) -> None:
    """Restore the network and open a new pool for each test."""
    cluster.net.restore()
    cluster.wait_for_workers()
    assert cluster.driver.call("open_pool")["is_right"]


def check(reply: dict[str, Any]) -> None:
    assert (reply["error"], reply["is_right"]) == ("", True)


def is_among(machine: Machine, hosts: Iterable[str]) -> bool:
    """Return whether a machine is one of these hosts, which are named as in reports."""
    return any(host.split(" ")[0] == machine.name for host in hosts)


@pytest.mark.parametrize("options", [{"delay": 0.05}, {"rate": 10e6}, {"loss": 0.02}], ids=str)
def test_a_slow_machine_changes_no_result(cluster: EngineNetwork, options: dict[str, float]) -> None:
    cluster.workers[0].cable.configure(**options)
    for block_bytes in (SMALL, 500_000):
        check(cluster.driver.call("run", block_bytes=block_bytes))


def test_a_machine_that_is_cut_between_maps_is_not_awaited(cluster: EngineNetwork) -> None:
    cluster.workers[0].cable.configure(is_cut=True)
    check(cluster.driver.call("run", block_bytes=SMALL))
    assert cluster.workers[0].cable.is_cut  # The machine was cut during the whole map.


@pytest.mark.parametrize("are_workers_lost", [False, True])
def test_a_machine_that_is_cut_for_a_while_is_used_again(
    cluster: EngineNetwork, are_workers_lost: bool
) -> None:
    machine = cluster.workers[0]

    def has_workers() -> bool:
        return is_among(machine, cluster.driver.call("workers_by_host")["workers"])

    def is_used() -> bool:
        reply = cluster.driver.call("run", block_bytes=SMALL)
        check(reply)
        return is_among(machine, reply["hosts"])

    machine.cable.configure(is_cut=True)
    check(cluster.driver.call("run", block_bytes=SMALL))
    if are_workers_lost:
        wait_until(lambda: not has_workers(), 60.0)
    machine.cable.configure()
    wait_until(is_used, 90.0)


def test_large_results_of_a_slow_machine_are_not_awaited(cluster: EngineNetwork) -> None:
    machine = cluster.workers[0]
    machine.cable.configure(rate=8e6)
    before = machine.cable.up.n_bytes
    check(cluster.driver.call("run", block_bytes=SMALL, result_bytes=8_000_000))
    assert machine.cable.up.n_bytes - before < 8 * 8_000_000


def test_a_killed_process_is_replaced_while_a_map_runs(cluster: EngineNetwork) -> None:
    machine = cluster.workers[0]
    before = machine.cable.down.n_bytes
    cluster.driver.start("run", block_bytes=2_000_000)
    wait_until(lambda: machine.cable.down.n_bytes > before + 100_000)
    assert cluster.kill_tasks(machine) + machine.kill("dask_worker") > 0
    check(cluster.driver.result())
    cluster.restart_workers()


def test_maps_without_a_pool_do_not_wait_for_a_machine_that_is_cut(cluster: EngineNetwork) -> None:
    check(cluster.driver.call("run", block_bytes=SMALL, on_client=True))
    cluster.workers[0].cable.configure(is_cut=True)
    check(cluster.driver.call("run", block_bytes=SMALL, on_client=True))
