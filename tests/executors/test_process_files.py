"""Blocks for process pools: files in memory for as long as the blocks live, while there is room."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from polarmap.blocks.uneven import PartBlocks
from polarmap.executors import process_files
from polarmap.executors.owned_folder import MEMORY
from polarmap.executors.process_files import SENT_BYTES, ProcessFiles
from polarmap.worker.messages import StoredBlock
from polarmap.worker.parts import read_file

LARGE = np.arange(SENT_BYTES / 8)

pytestmark = pytest.mark.skipif(not os.path.isdir(MEMORY), reason="no folder in memory here")


def blocks_of(*arrays: np.ndarray) -> PartBlocks:
    return PartBlocks([[array] for array in arrays], ("array",), len(arrays))


def path_of(block: StoredBlock | None) -> Path:
    assert block is not None
    [part] = block.parts
    return Path(block.source.place) / part.key


def values_of(block: StoredBlock | None) -> np.ndarray:
    assert block is not None
    [array] = [block.load(lambda part: read_file(block.source.place, part))]
    return np.asarray(array)


def test_a_block_is_written_once_for_all_maps_and_removed_with_the_blocks() -> None:
    files, coded = ProcessFiles(), blocks_of(LARGE, LARGE + 1)
    first = files.open()
    path = path_of(first.block(coded, 1))
    written = path.stat()
    np.testing.assert_array_equal(values_of(first.block(coded, 1)), LARGE + 1)
    first.close()
    first.close()
    second = files.open()
    assert path_of(second.block(coded, 1)) == path
    assert path.stat().st_mtime_ns == written.st_mtime_ns
    assert path_of(second.block(coded, 0)) != path
    second.close()
    assert path.is_relative_to(first.folder)
    del coded
    assert not path.exists()


def test_small_blocks_travel_with_their_tasks() -> None:
    files, coded = ProcessFiles().open(), blocks_of(LARGE[:-1])
    assert files.block(coded, 0) is None


def test_beyond_the_budget_what_is_not_in_use_makes_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_files, "BUDGET_BYTES", 3 * LARGE.nbytes)
    files = ProcessFiles()
    old, used, new = (blocks_of(LARGE) for _ in range(3))
    for coded in (old, used):
        with_it = files.open()
        path = path_of(with_it.block(coded, 0))
        if coded is old:
            gone = path
            with_it.close()
    two = blocks_of(LARGE, LARGE)
    assert files.open().block(two, 0) is not None
    assert not gone.exists()
    assert path.exists()
    assert files.open().block(new, 0) is None  # all is in use


def test_where_no_file_can_be_written_blocks_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    files, coded = ProcessFiles().open(), blocks_of(LARGE)

    def no_room(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("polarmap.executors.block_store._write_all", no_room)
    assert files.block(coded, 0) is None


def test_a_folder_that_was_removed_is_made_anew() -> None:
    files, coded = ProcessFiles(), blocks_of(LARGE)
    first = files.open()
    first.block(coded, 0)
    first.close()
    os.rename(first.folder, first.folder + "-away")
    second = files.open()
    np.testing.assert_array_equal(values_of(second.block(coded, 0)), LARGE)
    os.rename(first.folder + "-away", first.folder)


def test_a_forked_process_leaves_the_files_of_the_other() -> None:
    files, coded = process_files.process_files.open(), blocks_of(LARGE)
    path = path_of(files.block(coded, 0))
    child = os.fork()
    if not child:
        own = process_files.process_files.open()
        other = path_of(own.block(blocks_of(LARGE), 0)).parent != path.parent
        os._exit(0 if other else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert path.exists()
    files.close()
