"""Blocks elsewhere: each piece is stored once, under a name of its own, and removed with its blocks."""

from __future__ import annotations

import gc
import zlib
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
from memory_storage import DictStorage

from polarmap.blocks.choose_code import CodeOptions, choose_code
from polarmap.blocks.coded import CodedBlocks
from polarmap.errors import ExecutorError
from polarmap.executors.block_objects import BlockObjects
from polarmap.worker.encryption import OVERHEAD_BYTES, Encryption, read_decrypted
from polarmap.worker.parts import Place, read_part

K, N = 3, 4


class Counted(DictStorage):
    """How often each object was written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = Counter[str]()
        self.is_broken = False

    def put_object(self, bucket: str, key: str, data: bytes) -> None:
        if self.is_broken:
            raise PermissionError("AccessDenied")
        self.writes[key] += 1
        super().put_object(bucket, key, data)


@pytest.fixture
def storage() -> Counted:
    return Counted()


def blocks() -> CodedBlocks:
    return CodedBlocks(*choose_code(np.arange(12.0).reshape(6, 2), CodeOptions(K, N)))


def read(storage: Any, stored: Any, coded: Any, task: int) -> bytes:
    block = stored.block(coded, task)
    return b"".join(bytes(read_part(block.source, part, storage)) for part in block.parts)


def test_each_block_is_stored_when_it_is_needed_and_once(storage: Counted) -> None:
    coded = blocks()
    expected = [b"".join(leaf.tobytes() for leaf in coded.leaves(task)) for task in range(N)]
    stored = BlockObjects(storage, "prefix").of(coded)
    stored.prepare(coded, [0, 2])
    assert sum(storage.writes.values()) == 2
    for _ in range(2):
        stored.prepare(coded, range(N))
    assert set(storage.writes.values()) == {1}
    assert len(storage.writes) == N
    assert [read(storage, stored, coded, task) for task in range(N)] == expected


def test_a_block_tells_its_checksum_and_where_it_is(storage: Counted) -> None:
    coded = blocks()
    stored = BlockObjects(storage, "prefix").of(coded)
    stored.prepare(coded, [1])
    block = stored.block(coded, 1)
    assert block.source == Place("bucket", "b", "memory")
    for part in block.parts:
        assert part.key.startswith("prefix/blocks/")
        assert part.crc32 == zlib.crc32(storage.get_object("b", part.key))


def test_the_same_blocks_are_found_again_and_others_have_other_names(storage: Counted) -> None:
    objects = BlockObjects(storage, "prefix")
    one, other = blocks(), blocks()
    assert objects.of(one) is objects.of(one)
    for coded in (one, other):
        objects.of(coded).prepare(coded, range(N))
    assert len(storage.writes) == 2 * N


def test_objects_go_with_their_blocks(storage: Counted) -> None:
    objects = BlockObjects(storage, "prefix")
    one, other = blocks(), blocks()
    for coded in (one, other):
        objects.of(coded).prepare(coded, range(N))
    del one, coded
    gc.collect()
    objects.of(other)
    assert len(storage.objects) == N


def test_a_damaged_object_is_written_again(storage: Counted) -> None:
    coded = blocks()
    stored = BlockObjects(storage, "prefix").of(coded)
    stored.prepare(coded, range(N))
    right = dict(storage.objects)
    for key in storage.objects:
        storage.objects[key] = b"wrong"
    for task in range(N):
        stored.store_again(coded, task)
    assert storage.objects == right


def test_without_a_storage_the_driver_gives_them_out() -> None:
    coded = blocks()
    stored = BlockObjects(None, "prefix").of(coded)
    stored.prepare(coded, range(N))
    for task in range(N):
        block = stored.block(coded, task)
        assert block.source.kind == "driver"
        found = b"".join(stored.part(coded, part.key) for part in block.parts)
        assert found == b"".join(leaf.tobytes() for leaf in coded.leaves(task))
        assert [part.size for part in block.parts] == [len(found)]
        stored.store_again(coded, task)


def test_a_bucket_that_refuses_is_one_clear_error(storage: Counted) -> None:
    storage.is_broken = True
    coded = blocks()
    with pytest.raises(ExecutorError, match="stored in bucket 'b': PermissionError: AccessDenied"):
        BlockObjects(storage, "prefix").of(coded).prepare(coded, [0])


@pytest.mark.parametrize("is_stored", [True, False])
def test_with_a_key_nothing_is_stored_or_sent_as_it_is(storage: Counted, is_stored: bool) -> None:
    coded, encryption = blocks(), Encryption.new(bytes(range(32)))
    expected = [b"".join(leaf.tobytes() for leaf in coded.leaves(task)) for task in range(N)]
    objects = BlockObjects(storage if is_stored else None, "prefix")
    stored = objects.of(coded, encryption)
    assert objects.of(coded, encryption) is stored
    stored.prepare(coded, range(N))
    for task in range(N):
        block = stored.block(coded, task)
        [part] = block.parts
        if not is_stored:  # workers ask for it
            storage.put_object("b", part.key, stored.part(coded, part.key))
        data = storage.objects["b", part.key]
        assert expected[task][:8] not in data
        assert part.size == len(data) - OVERHEAD_BYTES
        assert part.crc32 is None  # which would tell of the numbers
        place = Place("bucket", "b", encryption=block.source.encryption)
        assert read_decrypted(place, part, partial(read_part, storage=storage)) == expected[task]
    del coded
    gc.collect()
    objects.of(blocks())
    assert not is_stored or storage.objects == {}
