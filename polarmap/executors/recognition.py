"""Convert the `executor=` argument to an executor, and import Dask, Ray or Lithops only if needed."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from polarmap.errors import ExecutorError
from polarmap.executors.executor_specs import (
    check_config_path,
    is_config_path,
    is_dask_client,
    is_lithops_spec,
    is_localhost_spec,
    is_ray_spec,
)
from polarmap.executors.futures import EngineExecutor, FuturesExecutor
from polarmap.executors.interface import MapExecutor
from polarmap.executors.resolved import CustomExecutor, ExecutorHandle, ResolvedExecutor

if TYPE_CHECKING:
    from polarmap.executors.lithops_invocations import LithopsSource


def recognize_executor(executor_spec: Any) -> ResolvedExecutor:
    """Convert an `executor=` argument to a `ResolvedExecutor`, depending on its type.

    This does not start any workers. A `ResolvedExecutor` is returned unchanged. Raises ExecutorError, with
    advice on what to pass instead, if the argument is not an executor.
    """
    if isinstance(executor_spec, ResolvedExecutor):
        return executor_spec
    if isinstance(executor_spec, ExecutorHandle):
        return executor_spec.resolve()
    if isinstance(executor_spec, (ThreadPoolExecutor, ProcessPoolExecutor)):
        return FuturesExecutor(executor_spec)
    if isinstance(executor_spec, type):
        class_name = executor_spec.__name__
        raise ExecutorError(f"executor={class_name} is a class: pass an instance, {class_name}(...)")
    if isinstance(executor_spec, MapExecutor):
        return CustomExecutor(executor_spec)
    if is_lithops_spec(executor_spec):
        from polarmap.executors.lithops import LithopsExecutor

        return LithopsExecutor(make_lithops_source(executor_spec))
    if is_dask_client(executor_spec):
        from polarmap.executors.dask import DaskEngine

        return EngineExecutor(DaskEngine, executor_spec)
    if is_ray_spec(executor_spec):
        from polarmap.executors.ray import RayEngine

        return EngineExecutor(RayEngine, executor_spec)
    if hasattr(executor_spec, "submit"):
        return FuturesExecutor(executor_spec)
    raise ExecutorError(
        f"executor={executor_spec!r:.200} is not an executor: pass None or 'localhost', the path "
        "of a Lithops YAML file, a lithops.FunctionExecutor, a Dask client, ray, or a "
        "concurrent.futures executor"
    )


def make_lithops_source(executor_spec: Any) -> LithopsSource:
    """Return a `LithopsSource`, which opens Lithops FunctionExecutors, for an `executor=` argument.

    The argument is "localhost", the path of a Lithops configuration file, or a FunctionExecutor. Raises
    ExecutorError if the path is not a valid configuration file.
    """
    from polarmap.executors.lithops_invocations import LithopsSource

    if is_localhost_spec(executor_spec):
        return LithopsSource.for_localhost()
    if not is_config_path(executor_spec):
        return LithopsSource.from_executor(executor_spec)
    check_config_path(executor_spec)
    return LithopsSource.from_config(executor_spec)
