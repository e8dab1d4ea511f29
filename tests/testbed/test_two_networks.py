"""Check a driver whose default route leads to a network that workers cannot reach.

`make test-network` runs these tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed.cluster import DaskNetwork, EngineNetwork, RayNetwork, engine_network, worker_names
from testbed.machines import OTHER_SUBNET, missing_rights, wait_until

pytestmark = pytest.mark.network


@pytest.fixture(scope="module", params=[DaskNetwork, RayNetwork])
def cluster(request: pytest.FixtureRequest) -> Iterator[EngineNetwork]:
    if reason := missing_rights():
        pytest.skip(reason)
    if request.param is RayNetwork:
        pytest.importorskip("ray")
    with engine_network(request.param, ["driver", "scheduler", *worker_names(2)], ["driver"]) as one:
        yield one


def test_workers_call_at_the_address_of_the_connection_to_the_engine(cluster: EngineNetwork) -> None:
    assert cluster.driver.call("open_pool", workers=4)["is_right"]
    hosts = cluster.driver.call("hosts")["hosts"]
    assert hosts[0] == cluster.net["driver"].address
    # The address of the default route is tried, too.
    assert any(host.startswith(OTHER_SUBNET) for host in hosts)
    # There are workers on both machines.
    wait_until(lambda: len(cluster.driver.call("workers_by_host")["workers"]) == 2, 120.0)
    reply = cluster.driver.call("run", block_bytes=8000)
    assert (reply["error"], reply["is_right"]) == ("", True)
