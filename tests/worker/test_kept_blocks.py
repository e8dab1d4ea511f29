"""Blocks that a worker keeps: mapped once, never changed by f, let go with their files."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polarmap.worker import kept_blocks
from polarmap.worker.kept_blocks import MAPPED_BYTES, KeptBlocks, OnReadOnlyBlocks
from polarmap.worker.messages import StoredBlock
from polarmap.worker.parts import DamagedError, Part, Place

SHAPE = (MAPPED_BYTES // 8, 2)


def stored(folder: Path, seed: int = 0, check: bool = False) -> tuple[np.ndarray, StoredBlock]:
    data = np.random.default_rng(seed).standard_normal(SHAPE)
    (folder / f"block-{seed}").write_bytes(data.tobytes())
    crc = zlib.crc32(data.tobytes()) if check else None
    part = Part(f"block-{seed}", data.nbytes, crc)
    return data, StoredBlock(Place("folder", str(folder)), (part,), ("array",), (("<f8", SHAPE),))


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
