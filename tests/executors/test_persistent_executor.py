"""Executors with persistent workers, and where their workers read arrays. test_pool.py runs maps on them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from foreign_executors import Pool

import polarmap
from polarmap.errors import ExecutorError
from polarmap.executors import resolve_executor
from polarmap.executors.temp_folders import get_process_temp_folder
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor


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


def test_executor_with_workers_keeps_them_and_refuses_a_number() -> None:
    for choice in (None, Pool(), ReplayExecutor(), polarmap.Pool()):
        executor = resolve_executor(choice)
        persistent, close = executor.with_persistent_workers()
        close()
        assert persistent is executor
    with pytest.raises(ExecutorError, match="executor=Pool manages its workers itself: leave workers= out"):
        resolve_executor(Pool()).with_persistent_workers(2)
    own, close = resolve_executor(None).with_persistent_workers(2)
    assert own is not resolve_executor(None)
    assert own.max_workers == 2
    close()


def test_arrays_are_stored_near_the_workers_that_read_them(tmp_path: Path) -> None:
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
