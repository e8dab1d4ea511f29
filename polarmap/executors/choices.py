"""What a caller may mean by an executor, told by what it looks like: nothing is imported for it."""

from __future__ import annotations

import os
from functools import partial
from types import ModuleType
from typing import Any

from polarmap.clouds.limits import BACKENDS
from polarmap.errors import ExecutorError


def is_localhost(choice: Any) -> bool:
    """Whether it means Lithops on this machine."""
    return isinstance(choice, str) and choice == "localhost"


def is_path(choice: Any) -> bool:
    """Whether it names a configuration."""
    is_text = isinstance(choice, (str, bytes, os.PathLike))
    return is_text and not (is_localhost(choice) or is_of_ray(choice))


def is_of_dask(choice: Any) -> bool:
    """Whether it is a Dask client, or what `client.get_executor()` gives."""
    modules = [one.__module__.partition(".")[0] for one in type(choice).__mro__]
    return "distributed" in modules and (hasattr(choice, "get_executor") or hasattr(choice, "_client"))


def is_of_ray(choice: Any) -> bool:
    """Whether it is the module `ray`, what `ray.remote(num_cpus=..., memory=...)` gives, or "ray://..."."""
    if isinstance(choice, str):
        return choice.startswith("ray://")
    if isinstance(choice, ModuleType):
        return choice.__name__ == "ray"
    return isinstance(choice, partial) and choice.func.__module__.startswith("ray.")


def is_of_lithops(choice: Any) -> bool:
    """Whether it is a `lithops.FunctionExecutor`."""
    return hasattr(choice, "compute_handler") and hasattr(choice, "internal_storage")


def is_for_lithops(choice: Any) -> bool:
    """Whether it is something that Lithops runs: "localhost", a configuration or a FunctionExecutor."""
    return is_localhost(choice) or is_path(choice) or is_of_lithops(choice)


def check_path(choice: str | bytes | os.PathLike[Any]) -> None:
    """ExecutorError for a word where a pool or a configuration is meant."""
    path = os.fspath(choice)
    if isinstance(path, bytes):
        raise ExecutorError(f"executor={path!r} is no path that Lithops takes: pass a str")
    if path.endswith((".yaml", ".yml")) or os.path.isfile(path):
        return
    if path in BACKENDS:
        raise ExecutorError(
            f"executor={path!r}: pass a configuration of it, which `polarmap config show {path}` prints for "
            f"you to fill in, as executor='{path}.yaml'"
        )
    pool = "ProcessPoolExecutor" if "proc" in path.lower() else "ThreadPoolExecutor"
    raise ExecutorError(
        f"executor={path!r} is neither 'localhost' nor a file: pass a pool, as concurrent.futures.{pool}(8), "
        "or the path of a Lithops YAML file"
    )
