"""Tests of tasks in futures: cancelling them by a flag or by removing a folder, and their block cache."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import stored_calls
from pool_processes import until
from predicates import assert_only_asks

from polarmap.worker import future_tasks
from polarmap.worker.future_tasks import FolderCancelToken, ThreadCancelToken, run_task_in_future
from polarmap.worker.task_records import BlockRef, TaskReply, TaskRequest

TICKET = TaskRequest(3, 1, None, None, None)


def folder_link(tmp_path: Path) -> FolderCancelToken:
    folder = tmp_path / "link"
    folder.mkdir()
    return FolderCancelToken.from_folder(str(folder))


def run_test_task(f: Any, block: Any, ticket: TaskRequest = TICKET) -> TaskReply:
    message = run_task_in_future(f, block, ticket, ThreadCancelToken(), 1)
    assert message is not None
    assert isinstance(message.header, TaskReply)
    assert message.header.error or message.data == np.negative(np.arange(3)).tobytes()
    return message.header


@pytest.mark.parametrize("f", [np.negative, cloudpickle.dumps(np.negative)])
@pytest.mark.parametrize("block", [np.arange(3), partial(np.arange, 3)])
def test_tasks_accept_functions_and_blocks_in_two_forms(f: Any, block: Any) -> None:
    assert run_test_task(f, block).layout == (("<i8", (3,)),)


def test_invalid_function_bytes_are_an_error_of_the_task() -> None:
    assert run_test_task(b"no pickle", 1).error is not None


def test_cancelled_tasks_do_not_start_and_sleeping_tasks_are_abandoned() -> None:
    link, began = ThreadCancelToken(), threading.Event()
    assert_only_asks(link, link.is_cancelled)

    def f(block: Any) -> Any:
        began.set()
        time.sleep(60)

    threading.Thread(target=lambda: began.wait(60) and link.cancel()).start()
    before = time.monotonic()
    assert run_task_in_future(f, 1, TICKET, link, 1) is None
    assert began.is_set()
    assert run_task_in_future(f, 1, TICKET, link, 1) is None
    assert time.monotonic() - before < 30


def test_a_removed_folder_cancels_tasks_on_the_same_machine(tmp_path: Path) -> None:
    link = folder_link(tmp_path)
    assert not link.is_cancelled()
    assert os.listdir(link.folder) == []
    os.rmdir(link.folder)
    assert link.is_cancelled()
    assert not link._replace(machine_id=("elsewhere", 0, 0)).is_cancelled()


# --- blocks cached in a foreign process -------------------------------------------------------

VALUES = np.arange(40_000.0)  # large enough to be mapped


@pytest.fixture
def stored(tmp_path: Path) -> BlockRef:
    return stored_calls.stored(tmp_path, VALUES)


def test_a_block_is_mapped_once_and_evicted_after_a_while(
    stored: BlockRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    until_now = future_tasks.get_shared_block_cache()
    monkeypatch.setattr(future_tasks, "CACHE_SECONDS", 3.0)
    future_tasks.get_shared_block_cache.cache_clear()
    blocks = future_tasks.get_shared_block_cache()
    assert blocks is not until_now
    with ThreadPoolExecutor(8) as threads:
        loaded = list(
            threads.map(
                lambda _: future_tasks.load_cached_block(stored, ("array",), writable=False), range(160)
            )
        )
    for block in loaded:
        np.testing.assert_array_equal(block, VALUES)
        assert not block.flags.writeable
    assert len(blocks) == 1
    reads = blocks.n_reads
    future_tasks.load_cached_block(stored, ("array",), writable=False)
    assert blocks.n_reads == reads <= 8  # Each thread reads the block at most once.
    assert until(lambda: future_tasks.get_shared_block_cache() is not blocks)


def test_a_forked_process_starts_with_an_empty_cache(stored: BlockRef) -> None:
    blocks = future_tasks.get_shared_block_cache()
    future_tasks.load_cached_block(stored, ("array",), writable=False)
    child = os.fork()
    if not child:
        os._exit(len(future_tasks.get_shared_block_cache()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(blocks) == 1


def test_a_block_whose_file_was_removed_is_evicted_immediately(stored: BlockRef, tmp_path: Path) -> None:
    future_tasks.get_shared_block_cache.cache_clear()
    blocks = future_tasks.get_shared_block_cache()
    future_tasks.load_cached_block(stored, ("array",), writable=False)
    (tmp_path / "block").unlink()
    assert until(lambda: not len(blocks))
    assert until(lambda: future_tasks.get_shared_block_cache() is not blocks)
