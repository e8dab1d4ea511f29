"""Maps of stored arrays on real object storage that loses parts or restarts."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import psutil
import pytest
from array_data import random_array

import polarmap


@pytest.mark.parametrize("server", ["redis"], indirect=True)
def test_a_stored_array_is_mapped_with_stragglers_and_damage(server, config):
    A, x = random_array((240, 60)), np.arange(60.0)
    coded = polarmap.encode(A, blocks=2, tasks=4, name="a", storage=config)
    coded.store.delete([coded.block_segments(1)[0].key])
    faults = {0: polarmap.testing.Fault("sleep", 600)}
    executor = polarmap.testing.FaultyExecutor(config, faults)
    y = polarmap.coded_map(lambda block: block @ x, coded, executor=executor, timeout=100)
    np.testing.assert_allclose(y.concatenate(), A @ x, rtol=1e-9, atol=1e-9)
    assert {0, 1} <= set(y.report.recovered)


@pytest.mark.timeout(300)
def test_map_survives_an_outage_longer_than_its_job(s3_server, tmp_path):
    # No task can write its status while the storage is down. The driver only sees that the processes ended.
    config = s3_server.config(tmp_path / "s3.yaml")
    A, x = random_array((240, 60)), np.arange(60.0)
    coded = polarmap.encode(A, blocks=2, tasks=3, name="a", storage=config)
    started, over = tmp_path / "started", tmp_path / "over"

    def f(block):
        started.touch()
        deadline = time.monotonic() + 60.0
        while not over.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return block @ x

    def bounce():
        while not started.exists():
            time.sleep(0.02)
        lines = psutil.process_iter(["ppid", "cmdline"])  # the command line of a zombie is None
        children = [process for process in lines if process.info["ppid"] == os.getpid()]
        runners = [process for process in children if "lithops.localhost" in str(process.info["cmdline"])]
        s3_server.kill()
        over.touch()
        psutil.wait_procs(runners, timeout=150)
        s3_server.start()

    thread = threading.Thread(target=bounce)
    thread.start()
    y = polarmap.coded_map(f, coded, executor=config, retries=5, timeout=250)
    thread.join()
    np.testing.assert_allclose(y.concatenate(), A @ x, rtol=1e-9, atol=1e-9)
    assert any(
        "ended without reporting" in str(failure) for task in y.report.tasks for failure in task.failures
    )
    coded.delete()
