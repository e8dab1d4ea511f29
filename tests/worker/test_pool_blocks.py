"""Blocks that a process of others keeps: let go of when they are removed, not used, or their driver died."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polarmap.worker import pool_blocks
from polarmap.worker.messages import StoredBlock
from polarmap.worker.parts import Part, Place
from polarmap.worker.pool_blocks import PoolBlocks

VALUES = np.arange(40_000.0)  # large enough to be mapped
PATIENCE = 50.0


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_blocks, "LOOK_SECONDS", 0.01)


@pytest.fixture
def block(tmp_path: Path) -> StoredBlock:
    path = tmp_path / "scratch" / "x"
    path.parent.mkdir()
    path.write_bytes(VALUES.tobytes())
    layout = ((VALUES.dtype.str, VALUES.shape),)
    return StoredBlock(Place("folder", str(path.parent)), (Part("x", VALUES.nbytes),), ("array",), layout)


def until(is_so: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(is_so())


def watchers() -> int:
    return sum(thread.name == "polarmap-blocks" for thread in threading.enumerate())


def test_a_block_is_mapped_once_and_let_go_when_its_file_is_removed(block: StoredBlock) -> None:
    blocks = PoolBlocks()
    for _ in range(3):
        loaded = blocks.load(block)
        np.testing.assert_array_equal(loaded, VALUES)
        assert not loaded.flags.writeable
    assert blocks.kept.reads == 1
    os.unlink(Path(block.source.place) / "x")
    assert until(lambda: not len(blocks.kept))
    assert until(lambda: not watchers())


def test_what_nobody_uses_is_let_go(block: StoredBlock, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = PoolBlocks()
    blocks.load(block)
    monkeypatch.setattr(pool_blocks, "IDLE_SECONDS", 0.0)
    assert until(lambda: not len(blocks.kept) and not watchers())
    monkeypatch.setattr(pool_blocks, "IDLE_SECONDS", PATIENCE)
    np.testing.assert_array_equal(blocks.load(block), VALUES)
    assert blocks.kept.reads == 2
    blocks.kept.clear()


def test_one_that_may_be_written_into_is_of_its_own(block: StoredBlock) -> None:
    blocks = PoolBlocks()
    blocks.load(block, is_private=True)[:] = 0
    np.testing.assert_array_equal(blocks.load(block), VALUES)
    blocks.kept.clear()


def test_threads_load_the_same_blocks_at_the_same_time(block: StoredBlock) -> None:
    blocks, seen = PoolBlocks(), []

    def load() -> None:
        seen.extend(float(blocks.load(block).sum()) for _ in range(20))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert seen == [VALUES.sum()] * 160
    assert len(blocks.kept) == 1
    blocks.kept.clear()


def test_the_folder_of_a_driver_that_died_is_removed(block: StoredBlock, tmp_path: Path) -> None:
    """A process forks a worker and ends; the worker removes what it left."""
    told, tell = os.pipe()
    driver = os.fork()
    if not driver:
        if not os.fork():
            blocks = PoolBlocks()
            blocks.load(block, scratch=block.source.place)
            os.write(tell, b"x")
            until(lambda: not len(blocks.kept))
            os._exit(0)
        os.read(told, 1)
        os._exit(0)
    os.waitpid(driver, 0)
    os.close(tell)
    assert os.read(told, 1) == b""  # the worker has ended, too
    assert not os.path.exists(block.source.place)
    os.close(told)


def test_a_forked_process_keeps_nothing_of_the_other(block: StoredBlock) -> None:
    pool_blocks.blocks.load(block)
    child = os.fork()
    if not child:
        os._exit(len(pool_blocks.blocks.kept))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(pool_blocks.blocks.kept) == 1
    pool_blocks.blocks.kept.clear()
