"""Ray on this machine, as tests have it."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CPUS = 4
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
        ray.init(num_cpus=CPUS, include_dashboard=False, log_to_driver=False, _system_config=PATIENCE)


@contextmanager
def ends_with_it(ray: Any) -> Iterator[None]:
    """Whatever cluster there is ends, and nothing is sent to or kept from anybody."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("RAY_AUTH_MODE", "disabled")
        yield
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of processes that Ray does not wait for
            ray.shutdown()
            gc.collect()
