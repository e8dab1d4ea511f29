"""Start Ray on this machine with settings for tests."""

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
STORE_BYTES = 128 << 20  # Bytes of the object store; by default, Ray takes a third of the memory.
# Ray ends its daemon, and with it this process, if agents do not start or reply in time.
PATIENCE = {
    "agent_register_timeout_ms": 300_000,
    "health_check_timeout_ms": 300_000,
    "worker_register_timeout_seconds": 300,
}


def start(ray: Any) -> None:
    """Start a cluster whose workers can import functions of tests, unless Ray is initialized already."""
    if ray.is_initialized():
        return
    with pytest.MonkeyPatch.context() as patched:
        # A `runtime_env` would need an agent that starts every worker, and idle workers again.
        patched.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        options = {"num_cpus": CPUS, "object_store_memory": STORE_BYTES, "_system_config": PATIENCE}
        ray.init(include_dashboard=False, log_to_driver=False, **options)


@contextmanager
def ends_with_it(ray: Any) -> Iterator[None]:
    """Shut down Ray at the end of the context, without usage reports and authentication.

    Ray's logs are in a separate folder with a short path, as its sockets require; they remain if Ray ends
    this process.
    """
    with pytest.MonkeyPatch.context() as patched:
        folder = tempfile.mkdtemp(prefix="polarmap-ray-", dir="/tmp")
        # Runs after Ray's exit handler, which writes into the folder.
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        patched.setenv("RAY_TMPDIR", folder)
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("RAY_AUTH_MODE", "disabled")
        yield
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray leaves unreaped processes, which cause warnings.
            ray.shutdown()
            gc.collect()
