"""Values of `executor=`, which are recognized without importing the library that created them.

tests/test_structure.py checks that no library is imported.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from polarmap.executors.executor_specs import (
    is_config_path,
    is_dask_client,
    is_lithops_executor,
    is_localhost_spec,
    is_ray_spec,
)


def ray_makes() -> None: ...  # `ray_module.make_remote` is a partial of a function with this module and name


ray_makes.__module__ = "ray._private.worker"


class Functions:
    compute_handler = internal_storage = None


Dask = type("ClientExecutor", (), {"__module__": "distributed.cfexecutor", "_client": None})
Client = type("Client", (), {"__module__": "distributed.client", "get_executor": None})
OwnClient = type("OwnClient", (Client,), {"__module__": "mine"})
Cluster = type("LocalCluster", (), {"__module__": "distributed.deploy.local"})


@pytest.mark.parametrize(
    ("choice", "meant"),
    [
        (None, None),
        ("localhost", is_localhost_spec),
        ("localhost.yaml", is_config_path),
        (b"localhost.yaml", is_config_path),
        (Path("localhost"), is_config_path),
        (Dask(), is_dask_client),
        (ModuleType("ray"), is_ray_spec),
        (partial(ray_makes, options={"num_cpus": 1}), is_ray_spec),
        ("ray://head:10001", is_ray_spec),
        (ModuleType("rays"), None),
        (partial(int), None),
        (Functions(), is_lithops_executor),
        (Client(), is_dask_client),
        (OwnClient(), is_dask_client),
        (Cluster(), None),
        (ThreadPoolExecutor, None),
        (3, None),
    ],
)
def test_each_spec_is_recognized_as_one_kind_at_most(choice: Any, meant: Any) -> None:
    matching = [
        predicate
        for predicate in (is_localhost_spec, is_config_path, is_dask_client, is_ray_spec, is_lithops_executor)
        if predicate(choice)
    ]
    assert matching == ([] if meant is None else [meant])
