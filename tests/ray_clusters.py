"""Ray on this machine, as tests have it."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CPUS = 4
STORE_BYTES = 128 << 20  # of memory, of which Ray takes a third else
# Ray ends its daemon, and with it this process, if agents do not start or answer in time.
PATIENCE = {
    "agent_register_timeout_ms": 300_000,
    "health_check_timeout_ms": 300_000,
    "worker_register_timeout_seconds": 300,
}


def start(ray: Any) -> None:
    """Let there be a cluster, whose workers find functions of tests."""
    if ray.is_initialized():
        return
    with pytest.MonkeyPatch.context() as patched:
        # Not as their `runtime_env`, for which an agent makes every worker, the idle ones anew.
        patched.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        options = {"num_cpus": CPUS, "object_store_memory": STORE_BYTES, "_system_config": PATIENCE}
        ray.init(include_dashboard=False, log_to_driver=False, **options)


@contextmanager
def ends_with_it(ray: Any) -> Iterator[None]:
    """Whatever cluster there is ends, and nothing is sent to or kept from anybody.

    Its logs lie outside the folder of the session, and with a short path, as sockets do: they stay if Ray
    ends this process.
    """
    with pytest.MonkeyPatch.context() as patched:
        folder = tempfile.mkdtemp(prefix="polarmap-ray-", dir="/tmp")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # after Ray, which writes at its end
        patched.setenv("RAY_TMPDIR", folder)
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("RAY_AUTH_MODE", "disabled")
        yield
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of processes that Ray does not wait for
            ray.shutdown()
            gc.collect()
