"""A task in a pool: left when it is cancelled, by memory or by a folder that goes."""

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

from polarmap.worker import io_pools
from polarmap.worker.io_pools import FolderLink, ThreadLink, run_in_pool
from polarmap.worker.messages import Reply, StoredBlock, Ticket

TICKET = Ticket(3, 1, None, None, None)


def folder_link(tmp_path: Path) -> FolderLink:
    folder = tmp_path / "link"
    folder.mkdir()
    return FolderLink.to(str(folder))


def told(f: Any, block: Any, ticket: Ticket = TICKET) -> Reply:
    message = run_in_pool(f, block, ticket, ThreadLink(), 1)
    assert message is not None
    assert isinstance(message.header, Reply)
    assert message.header.error or message.data == np.negative(np.arange(3)).tobytes()
    return message.header


@pytest.mark.parametrize("f", [np.negative, cloudpickle.dumps(np.negative)])
@pytest.mark.parametrize("block", [np.arange(3), partial(np.arange, 3)])
def test_functions_and_blocks_come_in_two_kinds(f: Any, block: Any) -> None:
    assert told(f, block).layout == (("<i8", (3,)),)


def test_bytes_that_are_no_function_are_an_error_of_the_task() -> None:
    assert told(b"no pickle", 1).error is not None


def test_what_is_cancelled_is_not_begun_and_what_sleeps_is_left() -> None:
    link, began = ThreadLink(), threading.Event()

    def f(block: Any) -> Any:
        began.set()
        time.sleep(60)

    threading.Thread(target=lambda: began.wait(60) and link.cancel()).start()
    before = time.monotonic()
    assert run_in_pool(f, 1, TICKET, link, 1) is None
    assert began.is_set()
    assert run_in_pool(f, 1, TICKET, link, 1) is None
    assert time.monotonic() - before < 30


def test_a_folder_that_is_gone_cancels_where_it_can_be_seen(tmp_path: Path) -> None:
    link = folder_link(tmp_path)
    assert not link.is_cancelled()
    os.rmdir(link.folder)
    assert link.is_cancelled()
    assert not link._replace(machine=("elsewhere", 0, 0)).is_cancelled()


# --- blocks that a process of others keeps -------------------------------------------------------

VALUES = np.arange(40_000.0)  # large enough to be mapped


@pytest.fixture
def stored(tmp_path: Path) -> StoredBlock:
    return stored_calls.stored(tmp_path, VALUES)


def test_a_block_is_mapped_once_and_let_go_soon(stored: StoredBlock, monkeypatch: pytest.MonkeyPatch) -> None:
    until_now = io_pools.pool_blocks()
    monkeypatch.setattr(io_pools, "KEPT_SECONDS", 3.0)
    io_pools.pool_blocks.cache_clear()
    blocks = io_pools.pool_blocks()
    assert blocks is not until_now
    with ThreadPoolExecutor(8) as threads:  # at the same time
        loaded = list(
            threads.map(lambda _: io_pools.kept_block(stored, ("array",), is_private=False), range(160))
        )
    for one in loaded:
        np.testing.assert_array_equal(one, VALUES)
        assert not one.flags.writeable
    assert len(blocks) == 1
    reads = blocks.reads
    io_pools.kept_block(stored, ("array",), is_private=False)
    assert blocks.reads == reads <= 8  # at most once on each thread
    assert until(lambda: io_pools.pool_blocks() is not blocks)


def test_a_forked_process_keeps_nothing_of_the_other(stored: StoredBlock) -> None:
    blocks = io_pools.pool_blocks()
    io_pools.kept_block(stored, ("array",), is_private=False)
    child = os.fork()
    if not child:
        os._exit(len(io_pools.pool_blocks()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(blocks) == 1


def test_a_block_whose_file_is_gone_is_let_go_at_once(stored: StoredBlock, tmp_path: Path) -> None:
    io_pools.pool_blocks.cache_clear()
    blocks = io_pools.pool_blocks()
    io_pools.kept_block(stored, ("array",), is_private=False)
    (tmp_path / "block").unlink()
    assert until(lambda: not len(blocks))
    assert until(lambda: io_pools.pool_blocks() is not blocks)
