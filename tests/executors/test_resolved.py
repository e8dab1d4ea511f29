"""Executors that wrap another executor, which must have the same properties as the wrapped executor."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from foreign_executors import OwnExecutor, Pool

import polarmap
from polarmap.executors import resolve_executor
from polarmap.executors.resolved import ResolvedExecutor
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor


def questions(executor: ResolvedExecutor) -> dict[str, Any]:
    """Return all properties of an executor except its faults."""
    facts = ("worker_spec", "is_local", "shares_memory", "pickles_f", "can_batch", "max_workers")
    names = (*facts, "has_persistent_workers", "prefers_persistent_workers", "name", "workers_by_host")
    data = np.ones(3)
    return {name: getattr(executor, name) for name in names} | {
        "storage": executor.choose_storage(data),
        "partition": executor.partition(data, 3),
        "blocks": executor.suggest_n_blocks(1000),
    }


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


CHOICES = {
    "default": lambda: None,
    "localhost": lambda: "localhost",
    "pool": lambda: polarmap.Pool(workers=2),
    "threads": lambda: ThreadPoolExecutor(3),
    "other pool": Pool,
    "replay": ReplayExecutor,
    "own": OwnExecutor,
}


@pytest.mark.parametrize("choice", CHOICES)
def test_fault_injection_has_the_properties_of_the_wrapped_executor(choice: str, stack: ExitStack) -> None:
    spec = CHOICES[choice]()
    if hasattr(spec, "__exit__"):
        stack.enter_context(spec)
    faulty = FaultyExecutor(FaultyExecutor(spec, {0: Fault("kill")}), {1: Fault("raise")})
    assert questions(resolve_executor(faulty)) == questions(resolve_executor(spec))
    assert resolve_executor(faulty).faults == {0: Fault("kill"), 1: Fault("raise")}
    assert resolve_executor(spec).faults == {}


@pytest.mark.parametrize("choice", ["default", "pool", "threads", "replay"])
def test_executor_of_calls_has_the_properties_of_its_underlying_executor(
    choice: str, stack: ExitStack
) -> None:
    spec = CHOICES[choice]()
    if hasattr(spec, "__exit__"):
        stack.enter_context(spec)
    calls = stack.enter_context(polarmap.Executor(FaultyExecutor(spec, {2: Fault("raise")})))
    assert questions(resolve_executor(calls)) == questions(resolve_executor(spec))
    assert resolve_executor(calls).faults == {2: Fault("raise")}


@pytest.mark.parametrize(
    ("choice", "shares_memory", "pickles_f"),
    [
        *[("default", False, True), ("localhost", False, True), ("pool", False, True)],
        *[("threads", True, False), ("other pool", False, True)],
        *[("replay", False, False), ("own", False, False)],
    ],
)
def test_f_is_pickled_unless_tasks_run_in_this_process(
    choice: str, shares_memory: bool, pickles_f: bool, stack: ExitStack
) -> None:
    spec = CHOICES[choice]()
    if hasattr(spec, "__exit__"):
        stack.enter_context(spec)
    executor = resolve_executor(spec)
    assert (executor.shares_memory, executor.pickles_f) == (shares_memory, pickles_f)
