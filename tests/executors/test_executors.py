"""What `executor=` may be, and what each of it means."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import polarmap
from polarmap.errors import ExecutorError
from polarmap.executors import MissingExecutor, resolve_executor, to_picklable_spec
from polarmap.executors.interface import JobSpec, MapExecutor, Session
from polarmap.executors.resolved import ResolvedExecutor
from polarmap.executors.temp_folders import get_process_temp_folder
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor


class Pool:
    """Of some other library."""

    def submit(self, call: Any, *arguments: Any) -> Future[Any]:
        raise NotImplementedError


class OwnExecutor:
    """Of a user's own class, which says no more than it has to."""

    name, worker_spec = "own", None

    def open(self, job_spec: JobSpec) -> Session:
        return ReplayExecutor().open(job_spec)


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        (None, "processes here"),
        ("localhost", "localhost"),
        (Pool(), "Pool"),
        (OwnExecutor(), "own"),
        ("ray://head:10001", "Ray"),
    ],
)
def test_it_says_what_it_is(choice: Any, name: str) -> None:
    executor = resolve_executor(choice)
    assert isinstance(executor, ResolvedExecutor) and isinstance(executor, MapExecutor)
    assert executor.name == name
    assert executor.workers_by_host == {}


def test_a_resolved_executor_is_returned_as_it_is() -> None:
    with polarmap.Executor() as calls:
        for executor in (ReplayExecutor(), calls, polarmap.Pool(), resolve_executor("localhost")):
            assert resolve_executor(executor) is executor


def test_an_executor_of_a_users_own_class_runs_maps() -> None:
    y = polarmap.coded_map(np.negative, np.eye(4), blocks=4, tasks=6, executor=OwnExecutor())
    np.testing.assert_allclose(y.concatenate(), -np.eye(4))
    assert y.report.executor == "own"
    busy = OwnExecutor()
    busy.is_local, busy.workers_by_host = True, {"a": 2}  # type: ignore[attr-defined]
    executor = resolve_executor(busy)
    assert (executor.is_local, executor.workers_by_host) == (True, {"a": 2})


def questions(executor: ResolvedExecutor) -> dict[str, Any]:
    """Return the answers of an executor to all questions but its faults."""
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
def test_fault_injection_answers_as_the_executor_that_it_wraps(choice: str, stack: ExitStack) -> None:
    spec = CHOICES[choice]()
    if hasattr(spec, "__exit__"):
        stack.enter_context(spec)
    faulty = FaultyExecutor(FaultyExecutor(spec, {0: Fault("kill")}), {1: Fault("raise")})
    assert questions(resolve_executor(faulty)) == questions(resolve_executor(spec))
    assert resolve_executor(faulty).faults == {0: Fault("kill"), 1: Fault("raise")}
    assert resolve_executor(spec).faults == {}


@pytest.mark.parametrize("choice", ["default", "pool", "threads", "replay"])
def test_an_executor_of_calls_answers_as_the_executor_that_it_uses(choice: str, stack: ExitStack) -> None:
    spec = CHOICES[choice]()
    if hasattr(spec, "__exit__"):
        stack.enter_context(spec)
    calls = stack.enter_context(polarmap.Executor(FaultyExecutor(spec, {2: Fault("raise")})))
    assert questions(calls) == questions(resolve_executor(spec))
    assert calls.faults == {2: Fault("raise")}


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


# --- persistent workers ---


def test_only_a_configuration_prefers_persistent_workers(tmp_path: Path) -> None:
    config = tmp_path / "here.yaml"
    config.write_text("lithops: {backend: localhost, storage: localhost}")
    for choice in (None, Pool(), "localhost", ReplayExecutor(), FaultyExecutor("localhost")):
        assert not resolve_executor(choice).prefers_persistent_workers
    executor = resolve_executor(FaultyExecutor(config, {0: Fault("kill")}))
    assert executor.prefers_persistent_workers
    persistent, close = executor.with_persistent_workers(3)
    assert persistent.has_persistent_workers and not persistent.is_local
    assert (persistent.max_workers, persistent.faults) == (3, {0: Fault("kill")})
    assert persistent.name == "persistent workers on lithops/localhost"
    close()
    with pytest.raises(ExecutorError, match="closed"):
        polarmap.coded_map(np.negative, np.eye(4), executor=persistent)


def test_who_has_workers_keeps_them_and_takes_no_number() -> None:
    for choice in (None, Pool(), ReplayExecutor(), polarmap.Pool()):
        executor = resolve_executor(choice)
        kept, close = executor.with_persistent_workers()
        close()
        assert kept is executor
    with pytest.raises(ExecutorError, match="executor=Pool has workers of its own: leave workers= out"):
        resolve_executor(Pool()).with_persistent_workers(2)
    own, close = resolve_executor(None).with_persistent_workers(2)
    assert own is not resolve_executor(None)
    assert own.max_workers == 2
    close()


def test_the_default_executor_gives_way_to_that_of_stored_data() -> None:
    other = ReplayExecutor()
    stored = SimpleNamespace(coded_blocks=None, executor=other)
    default = resolve_executor(None)
    assert default.choose_for(stored) is other
    assert default.choose_for(SimpleNamespace(coded_blocks=None, executor=None)) is default
    assert resolve_executor("localhost").choose_for(stored) is not other
    faulty = resolve_executor(FaultyExecutor(None, {1: Fault("raise")})).choose_for(stored)
    assert (faulty.name, faulty.faults) == ("replay", {1: Fault("raise")})


def test_a_column_that_is_called_executor_chooses_no_executor() -> None:
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"executor": np.arange(8.0), "b": np.ones(8)})
    y = polarmap.coded_map(lambda rows: 2.0 * rows, table, blocks=4)
    np.testing.assert_allclose(np.asarray(y.concatenate()), 2.0 * table.to_numpy())


def test_arrays_stay_beside_the_workers_that_read_them(tmp_path: Path) -> None:
    functions = SimpleNamespace(
        compute_handler=None, internal_storage=None, config={"lithops": {"backend": "localhost"}}
    )
    in_memory, in_file = np.zeros(2), np.memmap(tmp_path / "A", shape=2, mode="w+")
    choose = partial(lambda spec, data: resolve_executor(spec).choose_storage(data))
    assert choose("localhost", in_memory) == get_process_temp_folder() / "arrays"
    assert choose(None, in_file) == get_process_temp_folder() / "arrays"
    assert choose(None, in_memory) is None
    assert choose(FaultyExecutor(functions), in_memory) is functions
    assert choose(Pool(), in_memory) is None


def test_an_executor_that_cannot_be_pickled_leaves_its_name_behind() -> None:
    assert repr(to_picklable_spec(ReplayExecutor())) == "<ReplayExecutor, left behind>"
    missing = to_picklable_spec(FaultyExecutor(ReplayExecutor()))
    assert isinstance(missing, MissingExecutor)
    assert to_picklable_spec(missing) is missing
