"""Files of blocks: written once, shared, gone with the blocks, in memory only where there is room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from polarmap.worker.kept_blocks import KeptBlocks

from polarmap.blocks.uneven import PartBlocks
from polarmap.errors import ExecutorError
from polarmap.executors.block_files import BlockFiles, bytes_of, name_of
from polarmap.worker.encryption import OVERHEAD_BYTES, Encryption
from polarmap.worker.parts import DamagedError

DATA = np.random.default_rng(0).standard_normal((3, 4000))  # of 32 KB each, which do not travel with tasks


def blocks() -> PartBlocks:
    return PartBlocks([[block] for block in DATA], ("array",))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_a_block_is_written_when_it_is_asked_for_and_read_as_it_was(tmp_path: Path) -> None:
    coded = blocks()
    stored = BlockFiles(tmp_path / "memory", tmp_path / "disk", 10**6).of(coded)
    np.testing.assert_array_equal(KeptBlocks().load(stored.block(coded, 1)), DATA[1])
    assert files(tmp_path) == {"1"}
    assert stored.block(coded, 1) == stored.block(coded, 1)


def test_maps_of_the_same_blocks_share_them_and_they_go_with_the_blocks(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    kept, coded = BlockFiles(tmp_path / "memory", tmp_path / "disk", 10**6), blocks()
    first = kept.of(coded)
    first.block(coded, 0)
    kept.done(first)
    assert kept.of(coded) is first
    assert kept.of(blocks()) is not first
    assert files(tmp_path / "memory") == {"0"}
    del coded
    assert files(tmp_path) == set()


def test_those_that_were_used_least_recently_make_way(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    one, two, three = blocks(), blocks(), blocks()
    kept = BlockFiles(tmp_path / "memory", tmp_path / "disk", 2 * bytes_of(one))
    for coded in (one, two):
        stored = kept.of(coded)
        stored.block(coded, 0)
        kept.done(stored)
    in_use = kept.of(two)
    kept.of(three).block(three, 1)
    assert sorted(path.name for path in (tmp_path / "memory").rglob("?")) == ["0", "1"]
    on_disk = kept.of(one)  # the two others are in use
    on_disk.block(one, 2)
    assert files(tmp_path / "disk") == {"2"}
    assert in_use.is_there()


def test_files_that_somebody_has_removed_are_written_again(tmp_path: Path) -> None:
    kept, coded = BlockFiles(None, tmp_path, 10**6), blocks()
    stored = kept.of(coded)
    stored.block(coded, 0)
    kept.done(stored)
    for folder in tmp_path.iterdir():
        (folder / "0").unlink()
        folder.rmdir()
    again = kept.of(coded)
    np.testing.assert_array_equal(KeptBlocks().load(again.block(coded, 0)), DATA[0])


def test_a_block_that_is_not_as_it_was_is_written_again_as_a_new_file(tmp_path: Path) -> None:
    kept, coded = BlockFiles(None, tmp_path, 10**6), blocks()
    stored = kept.of(coded)
    block = stored.block(coded, 0)
    path = Path("/", block.parts[0].key)
    with path.open("rb") as mapped:  # which must not change under those who still use it
        path.write_bytes(b"cut")
        assert stored.block(coded, 0) == block
        assert path.read_bytes() == b"cut"
        stored.store_again(coded, 0)
        np.testing.assert_array_equal(KeptBlocks().load(stored.block(coded, 0)), DATA[0])
        assert mapped.read() == b"cut"


def test_no_room_anywhere_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    coded = blocks()
    stored = BlockFiles(None, tmp_path / "file", 10**6).of(coded)
    with pytest.raises(ExecutorError, match="no room for what workers are to read"):
        stored.block(coded, 0)


def test_tasks_of_the_same_blocks_are_known_again() -> None:
    coded = blocks()
    assert name_of(coded, 1) == name_of(coded, 1) != name_of(coded, 2)
    assert name_of(coded, 1) != name_of(blocks(), 1)


def test_with_a_key_no_file_holds_the_blocks_as_they_are(tmp_path: Path) -> None:
    coded, kept = blocks(), BlockFiles(tmp_path / "memory", tmp_path / "disk", 10**6)
    first, second = (Encryption.new(bytes(range(32))) for _ in range(2))
    stored = kept.of(coded, first)
    assert kept.of(coded, first) is stored
    assert kept.of(coded, second) is not stored
    block = stored.block(coded, 1)
    np.testing.assert_array_equal(KeptBlocks().load(block), DATA[1])
    path = Path("/", block.parts[0].key)
    data = path.read_bytes()
    assert len(data) == DATA[1].nbytes + OVERHEAD_BYTES
    assert not any(one.tobytes() in data for one in DATA[1])
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedError, match="somebody has changed or replaced it"):
        KeptBlocks().load(block)
    stored.store_again(coded, 1)
    np.testing.assert_array_equal(KeptBlocks().load(stored.block(coded, 1)), DATA[1])
