"""Blocks that a worker keeps: mapped once, never changed by f, let go with their files."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polarmap.worker import kept_blocks
from polarmap.worker.encryption import Encryption, encrypt_part
from polarmap.worker.kept_blocks import MAPPED_BYTES, KeptBlocks, OnReadOnlyBlocks, leaves_of
from polarmap.worker.messages import StoredBlock
from polarmap.worker.parts import DamagedError, Part, Place
from polarmap.worker.pytree import layout_of

SHAPE = (MAPPED_BYTES // 8, 2)


def stored(folder: Path, seed: int = 0, check: bool = False) -> tuple[np.ndarray, StoredBlock]:
    data = np.random.default_rng(seed).standard_normal(SHAPE)
    (folder / f"block-{seed}").write_bytes(data.tobytes())
    crc = zlib.crc32(data.tobytes()) if check else None
    part = Part(f"block-{seed}", data.nbytes, crc)
    return data, StoredBlock(Place("folder", str(folder)), (part,), ("array",), (("<f8", SHAPE),))


def stored_data(folder: Path, data: Any, crc32: int | None = None) -> StoredBlock:
    (folder / "block").write_bytes(data.tobytes())
    part = Part("block", data.nbytes, crc32)
    return StoredBlock(Place("folder", str(folder)), (part,), ("array",), layout_of([data]))


def test_a_block_is_mapped_once_and_read_only(tmp_path: Path) -> None:
    data, block = stored(tmp_path)
    kept = KeptBlocks()
    for _ in range(5):
        found = kept.load(block)
        np.testing.assert_array_equal(found, data)
        assert not found.flags.writeable
    assert kept.reads == len(kept) == 1


def test_a_block_of_ones_own_may_be_changed_and_changes_no_other(tmp_path: Path) -> None:
    data, block = stored(tmp_path)
    kept = KeptBlocks()
    kept.load(block, is_private=True)[...] = 0
    np.testing.assert_array_equal(kept.load(block), data)
    np.testing.assert_array_equal(kept.load(block, is_private=True), data)


def test_memory_goes_with_its_file(tmp_path: Path) -> None:
    _, block = stored(tmp_path)
    kept = KeptBlocks()
    kept.load(block)
    kept.forget_removed()
    assert len(kept) == 1
    os.unlink(tmp_path / "block-0")
    kept.forget_removed()
    assert len(kept) == 0
    with pytest.raises(DamagedError, match="block-0 is missing"):
        kept.load(block)


@pytest.mark.parametrize("place", [0, SHAPE[0] * SHAPE[1] * 4, SHAPE[0] * SHAPE[1] * 8 - 1])
def test_a_byte_changed_in_place_is_noticed_although_its_time_is_set_back(tmp_path: Path, place: int) -> None:
    _, block = stored(tmp_path, check=True)
    path = tmp_path / "block-0"
    kept = KeptBlocks()
    kept.load(block)
    before, data = path.stat(), bytearray(path.read_bytes())
    data[place] ^= 1
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of a file system ticks slowly
        with path.open("r+b") as file:
            file.write(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(DamagedError, match="corrupt"):
        kept.load(block)


def test_what_is_removed_or_changed_is_noticed_although_it_is_kept(tmp_path: Path) -> None:
    data, block = stored(tmp_path, check=True)
    kept = KeptBlocks()
    kept.load(block)
    path = tmp_path / "block-0"
    spoilt = bytearray(data.tobytes())
    spoilt[100] ^= 1
    path.write_bytes(spoilt)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DamagedError, match="corrupt"):
        kept.load(block)
    path.write_bytes(data.tobytes()[:-8])
    with pytest.raises(DamagedError, match="bytes from 0 on"):
        kept.load(block)
    os.unlink(path)
    with pytest.raises(DamagedError, match="missing"):
        kept.load(block)


def test_the_least_recently_used_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [stored(tmp_path, seed)[1] for seed in range(3)]
    monkeypatch.setattr(kept_blocks, "KEPT_BYTES", 2 * blocks[0].parts[0].size)
    kept = KeptBlocks()
    for index in (0, 1, 0, 2):
        kept.load(blocks[index])
    assert (len(kept), kept.reads) == (2, 3)
    kept.load(blocks[0])
    assert kept.reads == 3
    kept.load(blocks[1])
    assert kept.reads == 4


def test_f_that_writes_gets_copies_from_then_on() -> None:
    seen: list[bool] = []

    def f(block: Any) -> Any:
        seen.append(block["a"].flags.writeable)
        block["a"] *= 2
        return block["a"].sum()

    data = {"a": np.arange(4.0)}
    data["a"].flags.writeable = False
    call = OnReadOnlyBlocks(f)
    assert [call(data), call(data)] == [12.0, 12.0]
    assert seen == [False, True, True]
    assert data["a"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_other_errors_of_f_are_its_own() -> None:
    calls = []

    def f(block: Any) -> Any:
        calls.append(1)
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        OnReadOnlyBlocks(f)(np.ones(2))
    assert len(calls) == 1


@pytest.mark.parametrize("size", [10, MAPPED_BYTES])
def test_each_task_may_write_into_its_block(tmp_path: Path, size: int) -> None:
    data = np.arange(float(size))
    block, blocks = stored_data(tmp_path, data), KeptBlocks()
    for _ in range(2):
        found = blocks.load(block, is_private=True)
        np.testing.assert_array_equal(found, data)
        found[:] = 7.0


@pytest.mark.parametrize("size", [10, MAPPED_BYTES])
def test_damage_is_seen_whenever_it_happens(tmp_path: Path, size: int) -> None:
    data = np.arange(float(size))
    block, blocks = stored_data(tmp_path, data, zlib.crc32(data.tobytes())), KeptBlocks()
    np.testing.assert_array_equal(blocks.load(block), data)
    path = tmp_path / "block"
    os.utime(path, ns=(1, 1))
    path.write_bytes(bytes(data.nbytes))
    with pytest.raises(DamagedError, match="corrupt"):
        blocks.load(block)
    path.write_bytes(bytes(data.nbytes // 2))
    with pytest.raises(DamagedError, match="bytes"):
        blocks.load(block)
    path.unlink()
    with pytest.raises(DamagedError, match="missing"):
        blocks.load(block)


def test_parts_may_begin_anywhere_in_a_file(tmp_path: Path) -> None:
    data = np.arange(float(2 * MAPPED_BYTES))
    block = stored_data(tmp_path, data)
    part = Part("block", 8 * MAPPED_BYTES, None, 24)
    found = KeptBlocks().load(block._replace(parts=(part,), layout=(("<f8", (MAPPED_BYTES,)),)))
    np.testing.assert_array_equal(found, data[3 : 3 + MAPPED_BYTES])


def test_leaves_are_views_where_they_can_be() -> None:
    one, two = bytearray(np.arange(3.0).tobytes()), bytearray(np.arange(5.0).tobytes())
    layout = (("<f8", (3,)), ("<f8", (0,)), ("<f8", (1, 4)), ("<f8", ()))
    leaves = leaves_of([one, two], layout)
    assert [leaf.tolist() for leaf in leaves] == [[0, 1, 2], [], [[0, 1, 2, 3]], 4]
    leaves[0][0] = 9.0
    assert np.frombuffer(one)[0] == 9.0
    across = leaves_of([one, two], (("<f8", (8,)),))[0]
    assert across.tolist() == [9, 1, 2, 0, 1, 2, 3, 4]
    assert across.flags.writeable
    assert [leaf.size for leaf in leaves_of([], (("<f8", (0, 2)),))] == [0]


def test_a_block_of_several_parts_lies_in_memory_once(tmp_path: Path) -> None:
    pieces = [stored(tmp_path, seed, check=True) for seed in range(3)]
    parts = tuple(block.parts[0] for _, block in pieces)
    shape = (3 * SHAPE[0], 2)
    block = StoredBlock(Place("folder", str(tmp_path)), parts, ("array",), (("<f8", shape),))
    whole = np.concatenate([data for data, _ in pieces])
    kept = KeptBlocks()
    first = kept.load(block)
    np.testing.assert_array_equal(first, whole)
    assert not first.flags.writeable
    assert np.shares_memory(first, kept.load(block))
    assert (kept.reads, len(kept)) == (3, 1)
    own = kept.load(block, is_private=True)
    own[...] = 0
    np.testing.assert_array_equal(kept.load(block), whole)
    os.unlink(tmp_path / "block-1")
    with pytest.raises(DamagedError, match="block-1 is missing"):
        kept.load(block)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rows", [2, SHAPE[0]])
def test_encrypted_blocks_are_decrypted_once_and_verified(tmp_path: Path, count: int, rows: int) -> None:
    data = np.random.default_rng(0).standard_normal((count * rows, 2))
    encryption, parts = Encryption.new(bytes(range(32))), []
    for number, piece in enumerate(np.split(data, count)):
        part = Part(f"part-{number}", piece.nbytes, None, 5)
        stored = encrypt_part(encryption, part, piece.tobytes())
        (tmp_path / part.key).write_bytes(b"12345" + stored + b"appended")
        parts.append(part)
    place = Place("folder", str(tmp_path), encryption=tuple(encryption))
    block = StoredBlock(place, tuple(parts), ("array",), layout_of([data]))
    kept = KeptBlocks()
    for _ in range(3):
        np.testing.assert_array_equal(kept.load(block), data)
    is_kept = data.nbytes >= MAPPED_BYTES
    assert kept.reads == (count if is_kept else 3 * count)
    own = kept.load(block, is_private=True)
    np.testing.assert_array_equal(own, data)
    if is_kept:
        own[...] = 0
        np.testing.assert_array_equal(kept.load(block), data)
    changed = bytearray((tmp_path / parts[-1].key).read_bytes())
    changed[30] ^= 1
    (tmp_path / parts[-1].key).write_bytes(changed)
    with pytest.raises(DamagedError, match=rf"part-{count - 1} is not what was encrypted"):
        kept.load(block)
    (tmp_path / parts[-1].key).write_bytes(changed[:40])
    with pytest.raises(DamagedError, match=rf"part-{count - 1} has 35 of \d+ bytes"):
        kept.load(block)
