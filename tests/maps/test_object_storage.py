"""Maps of coded arrays whose data and results both stay on a real S3 server."""

from __future__ import annotations

import time

import numpy as np
import pytest

import polarmap
from polarmap.arrays import Stored
from polarmap.arrays.stores import open_store
from polarmap.testing import Fault, FaultyExecutor
from polarmap.worker.retries import retry_request

pytestmark = pytest.mark.parametrize("server", ["s3"], indirect=True)


def test_chained_maps_stay_in_the_bucket(config):
    A, B = np.random.default_rng(0).standard_normal((2, 600, 30))
    coded = polarmap.encode(A, blocks=2, tasks=4, name="A", storage=config)
    assert coded.executor == config  # no executor needs to be named
    first = polarmap.coded_map(lambda block: block @ B[:30], coded, out=Stored("AB"), timeout=100)
    first.array.repair()  # restore the late blocks of this array, so that the next map can lose two blocks
    faulty = FaultyExecutor(None, {0: Fault("sleep", 600), 1: Fault("kill")})
    second = polarmap.coded_map(
        lambda block: 2 * block, first, out=Stored("AB2"), executor=faulty, timeout=100
    )
    np.testing.assert_allclose(second.concatenate(), 2 * A @ B[:30], rtol=1e-9, atol=1e-9)
    second.array.repair()
    assert second.array.check().ok
    for name in polarmap.arrays.list_coded(config):
        polarmap.open_coded(name, config).delete()
    assert open_store(config).keys("polarmap/") == []


def test_workers_encode_raw_objects_in_place(config):
    # Each block consists of several raw objects.
    A, rows = np.random.default_rng(0).standard_normal((60, 50)), 10
    store, keys = open_store(config), [f"mine/{index}" for index in range(60 // rows)]
    for index, key in enumerate(keys):
        store.put(key, A[rows * index : rows * (index + 1)].tobytes())
    raw = polarmap.arrays.RawObjects(keys, A.shape, A.dtype, rows=rows)
    coded = polarmap.encode(raw, blocks=3, tasks=5, name="A", storage=config, executor=config)
    assert {part.key.split("/")[0] for index in range(3) for part in coded.block_segments(index)} == {"mine"}
    assert coded.check().ok
    store.delete(["mine/3", "mine/4"])
    np.testing.assert_allclose(coded[:], A, rtol=1e-10, atol=1e-10)
    store.delete(store.keys("mine/"))


def test_a_map_may_begin_while_its_storage_restarts(server, config, monkeypatch):
    A = np.random.default_rng(0).standard_normal((60, 30))
    options = {"blocks": 2, "tasks": 3, "executor": config, "timeout": 100}
    polarmap.coded_map(np.sum, A, **options)
    monkeypatch.setattr(retry_request, "__defaults__", (90.0,))  # the server starts slowly on a busy machine
    pauses = []

    def launch_at_first(seconds):
        if not pauses:
            server.launch()
        pauses.append(seconds)
        time.sleep(seconds)

    monkeypatch.setattr("polarmap.worker.retries.sleep", launch_at_first)
    server.kill()
    try:
        y = polarmap.coded_map(np.sum, A, **options)
    finally:
        if not pauses:
            server.launch()
        server.wait()
    assert pauses
    assert sum(y) == pytest.approx(A.sum())


def test_large_results_are_returned_and_leave_no_objects(config):
    A = np.arange(16.0)

    def spread(block):
        return np.repeat(block[:, None], 1 << 17, axis=1)  # 8 MB

    before = {*open_store(config).keys("")}
    y = polarmap.coded_map(spread, A, blocks=2, tasks=3, executor=config, timeout=100)
    for result, block in zip(y, np.split(A, 2), strict=True):
        np.testing.assert_allclose(result, spread(block))
        assert result.flags.writeable
    leftover_prefixes = {key.partition("/")[0] for key in {*open_store(config).keys("")} - before}
    # The server keeps the first object, and Lithops keeps its metadata of the interpreter.
    assert leftover_prefixes <= {"ready", "lithops.runtimes"}
