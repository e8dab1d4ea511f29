"""The objects of a map, with a storage in memory."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from memory_storage import DictStorage

from polarmap.blocks.uneven import PartBlocks
from polarmap.code.uncoded import Uncoded
from polarmap.errors import ExecutorError
from polarmap.executors.lithops_objects import MapObjects
from polarmap.worker.encryption import Encryption, read_decrypted
from polarmap.worker.messages import Reply, Ticket
from polarmap.worker.parts import read_part
from polarmap.worker.pytree import pack

DATA = [np.arange(6.0) + task for task in range(3)]
BLOCKS = PartBlocks([[block] for block in DATA], ("array",), Uncoded(3))
TICKET = Ticket(1, 0, None, None, None, (1, 2, 0))


@pytest.fixture
def storage() -> DictStorage:
    return DictStorage()


@pytest.fixture
def objects(storage: DictStorage) -> MapObjects:
    return MapObjects(storage, BLOCKS)


def reply(subtask: int) -> Reply:
    return Reply(1, 0, pack([float(subtask)]), None, 0.0, 1.0, None, (subtask,))


def hand_in(storage: DictStorage, objects: MapObjects, subtask: int, share: float = 1.0) -> None:
    data = reply(subtask).to_bytes()
    key = objects.address.subtask_key(1, 0, subtask)
    storage.put_object(storage.bucket, key, data[: int(share * len(data))])


def test_workers_read_the_blocks_that_were_put(storage: DictStorage, objects: MapObjects) -> None:
    objects.put_blocks([0, 2], is_first=True)
    for task in (0, 2):
        block = objects.block(task)
        np.testing.assert_array_equal(
            block.load(partial(read_part, block.source, storage=storage)), DATA[task]
        )
    assert objects.unstored([0, 1, 2, 1]) == [1]
    assert objects.unstored([0, 1, 2]) == []


def test_results_of_subtasks_are_told_once(storage: DictStorage, objects: MapObjects) -> None:
    hand_in(storage, objects, 2)
    hand_in(storage, objects, 1, share=0.5)  # is still being written
    assert [one.subtasks for one in objects.partial_results()] == [(2,)]
    assert objects.partial_results() == []  # too soon to look again
    found, unread = objects.rest_of(TICKET, told=(0,))
    assert (found, unread) == ([], 1)
    hand_in(storage, objects, 1)
    found, unread = objects.rest_of(TICKET, told=(0,))
    assert ([one.subtasks for one in found], unread) == ([(1,)], 0)


def test_a_large_result_is_an_object_of_its_own(storage: DictStorage, objects: MapObjects) -> None:
    whole = reply(0)
    assert whole.result is not None
    assert objects.result(whole) is None
    sent = whole._replace(result=whole.result._replace(data=b""))
    storage.put_object(storage.bucket, objects.address.result_key(1, 0), b"12345678")
    assert objects.result(sent) == b"12345678"


def test_nothing_is_left(storage: DictStorage, objects: MapObjects) -> None:
    storage.put_object(storage.bucket, "of another map", b"")
    objects.put_blocks(range(3), is_first=True)
    assert len(storage.objects) == 5
    objects.remove_sign()
    assert len(storage.objects) == 4
    objects.remove()
    assert [key for _, key in storage.objects] == ["of another map"]


def test_a_storage_that_takes_nothing_is_one_clear_error(storage: DictStorage) -> None:
    class Full(DictStorage):
        def put_object(self, bucket: str, key: str, data: bytes) -> None:
            raise OSError("no space left")

    with pytest.raises(ExecutorError, match="could not be stored in bucket 'b': OSError: no space left"):
        MapObjects(Full(), BLOCKS).put_blocks([0], is_first=True)


def test_with_a_key_no_block_is_put_as_it_is(storage: DictStorage) -> None:
    objects = MapObjects(storage, BLOCKS, Encryption.new(bytes(range(32))))
    objects.put_blocks([1], is_first=True)
    assert not any(DATA[1].tobytes()[:16] in data for data in storage.objects.values())
    block = objects.block(1)
    read = partial(read_part, storage=storage)
    found = block.load(lambda part: read_decrypted(block.source, part, read))
    np.testing.assert_array_equal(found, DATA[1])
