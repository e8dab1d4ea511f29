"""The objects of a map, with a storage in memory."""

from __future__ import annotations

import pytest
from memory_storage import DictStorage

from polarmap.errors import ExecutorError
from polarmap.executors.lithops_objects import MapObjects
from polarmap.worker.frames import PART, Message, frame


@pytest.fixture
def storage() -> DictStorage:
    return DictStorage()


@pytest.fixture
def objects(storage: DictStorage) -> MapObjects:
    return MapObjects(storage)


def message(subtask: int) -> Message:
    return Message(PART, (-1, 1, 0), b"header", b"data %d" % subtask)


def hand_in(storage: DictStorage, objects: MapObjects, subtask: int, share: float = 1.0) -> None:
    data = frame(message(subtask))
    key = objects.address.subtask_key(1, 0, subtask)
    storage.put_object(storage.bucket, key, data[: int(share * len(data))])


def test_results_of_subtasks_are_told_once(storage: DictStorage, objects: MapObjects) -> None:
    hand_in(storage, objects, 2)
    hand_in(storage, objects, 1, share=0.5)  # is still being written
    assert objects.partial_results() == [message(2)]
    assert objects.partial_results() == []  # too soon to look again
    assert objects.rest_of(1, 0, (1, 2)) == ([], 1)
    hand_in(storage, objects, 1)
    assert objects.rest_of(1, 0, (1, 2)) == ([message(1)], 0)


def test_nothing_is_left(storage: DictStorage, objects: MapObjects) -> None:
    storage.put_object(storage.bucket, "of another map", b"")
    objects.put_sign()
    hand_in(storage, objects, 0)
    assert len(storage.objects) == 3
    objects.remove_sign()
    assert len(storage.objects) == 2
    objects.remove()
    assert [key for _, key in storage.objects] == ["of another map"]


def test_a_storage_that_takes_nothing_is_one_clear_error() -> None:
    class Full(DictStorage):
        def put_object(self, bucket: str, key: str, data: bytes) -> None:
            raise OSError("no space left")

    with pytest.raises(ExecutorError, match="stored in bucket 'b': OSError: no space left"):
        MapObjects(Full()).put_sign()
