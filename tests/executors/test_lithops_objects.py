"""The objects of a map, with a storage in memory."""

from __future__ import annotations

import pytest
from memory_storage import DictStorage

from polarmap.errors import ExecutorError
from polarmap.executors.lithops_objects import MapObjects
from polarmap.worker.messages import Reply
from polarmap.worker.pytree import pack


@pytest.fixture
def storage() -> DictStorage:
    return DictStorage()


@pytest.fixture
def objects(storage: DictStorage) -> MapObjects:
    return MapObjects(storage, is_sealed=False)


def reply(subtask: int) -> Reply:
    return Reply(1, 0, pack([float(subtask)]), None, 0.0, 1.0, None, (subtask,))


def hand_in(storage: DictStorage, objects: MapObjects, subtask: int, share: float = 1.0) -> None:
    data = reply(subtask).to_bytes()
    key = objects.address.subtask_key(1, 0, subtask)
    storage.put_object(storage.bucket, key, data[: int(share * len(data))])


def test_results_of_subtasks_are_told_once(storage: DictStorage, objects: MapObjects) -> None:
    hand_in(storage, objects, 2)
    hand_in(storage, objects, 1, share=0.5)  # is still being written
    assert [one.subtasks for one in objects.partial_results()] == [(2,)]
    assert objects.partial_results() == []  # too soon to look again
    found, unread = objects.rest_of(1, 0, (1, 2))
    assert (found, unread) == ([], 1)
    hand_in(storage, objects, 1)
    found, unread = objects.rest_of(1, 0, (1, 2))
    assert ([one.subtasks for one in found], unread) == ([(1,)], 0)


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
        MapObjects(Full(), is_sealed=False).put_sign()
