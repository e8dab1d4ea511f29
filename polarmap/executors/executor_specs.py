"""Recognize the kind of executor that an `executor=` argument stands for, by its type and attributes.

This does not import Dask, Ray or Lithops.
"""

from __future__ import annotations

import os
from functools import partial
from types import ModuleType
from typing import Any

from polarmap.clouds.limits import BACKENDS
from polarmap.errors import ExecutorError


def is_localhost_spec(executor_spec: Any) -> bool:
    """Return True if the argument is "localhost", which selects Lithops with processes on this machine."""
    return isinstance(executor_spec, str) and executor_spec == "localhost"


def is_config_path(executor_spec: Any) -> bool:
    """Return True if the argument is a path, or a string other than "localhost" and "ray://...".

    Such an argument can only be the path of a Lithops configuration file.
    """
    is_text = isinstance(executor_spec, (str, bytes, os.PathLike))
    return is_text and not (is_localhost_spec(executor_spec) or is_ray_spec(executor_spec))


def is_dask_client(executor_spec: Any) -> bool:
    """Return True if the argument is a Dask client or the result of `client.get_executor()`."""
    modules = [base_class.__module__.partition(".")[0] for base_class in type(executor_spec).__mro__]
    return "distributed" in modules and (
        hasattr(executor_spec, "get_executor") or hasattr(executor_spec, "_client")
    )


def is_ray_spec(executor_spec: Any) -> bool:
    """Return True if the argument stands for a Ray cluster.

    It may be the module `ray`, the result of `ray.remote(num_cpus=..., memory=...)`, or "ray://...".
    """
    if isinstance(executor_spec, str):
        return executor_spec.startswith("ray://")
    if isinstance(executor_spec, ModuleType):
        return executor_spec.__name__ == "ray"
    return isinstance(executor_spec, partial) and executor_spec.func.__module__.startswith("ray.")


def is_lithops_executor(executor_spec: Any) -> bool:
    """Return True if the argument is a `lithops.FunctionExecutor`."""
    return hasattr(executor_spec, "compute_handler") and hasattr(executor_spec, "internal_storage")


def is_lithops_spec(executor_spec: Any) -> bool:
    """Return True if the argument stands for Lithops.

    It may be "localhost", the path of a configuration file, or a FunctionExecutor.
    """
    return (
        is_localhost_spec(executor_spec)
        or is_config_path(executor_spec)
        or is_lithops_executor(executor_spec)
    )


def check_config_path(config_path: str | bytes | os.PathLike[Any]) -> None:
    """Raise ExecutorError unless a path exists or has the extension of a YAML file.

    The error message says what the user may have meant, for example a thread pool.
    """
    path = os.fspath(config_path)
    if isinstance(path, bytes):
        raise ExecutorError(f"executor={path!r} is no path that Lithops takes: pass a str")
    if path.endswith((".yaml", ".yml")) or os.path.isfile(path):
        return
    if path in BACKENDS:
        raise ExecutorError(
            f"executor={path!r}: pass a configuration of it, which `polarmap config show {path}` prints for "
            f"you to fill in, as executor='{path}.yaml'"
        )
    pool_class_name = "ProcessPoolExecutor" if "proc" in path.lower() else "ThreadPoolExecutor"
    raise ExecutorError(
        f"executor={path!r} is neither 'localhost' nor a file: pass a pool, as "
        f"concurrent.futures.{pool_class_name}(8), or the path of a Lithops YAML file"
    )
