"""Files of a folder and objects of a bucket look alike to a worker."""

from __future__ import annotations

from pathlib import Path

import pytest
from memory_storage import DictStorage, StorageNoSuchKeyError

from polarmap.worker.objects import is_missing, read_part, remove_parts, write_object
from polarmap.worker.parts import DamagedError, Part, Place


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place("folder", str(tmp_path)) if request.param == "folder" else Place("bucket", "b", "minio")


def test_what_is_written_is_read_and_removed(place: Place) -> None:
    storage = DictStorage()
    write_object(place, "below/x", b"0123456789", storage)
    assert bytes(read_part(place, Part("below/x", 4, None, 3), storage)) == b"3456"
    assert bytes(read_part(place, Part("below/x", 0), storage)) == b""
    assert bytes(read_part(place, Part("", 3), storage)) == bytes(3)
    remove_parts(place, [Part("below/x", 10)], storage)
    with pytest.raises(DamagedError, match="below/x is missing"):
        read_part(place, Part("below/x", 4), storage)


def test_a_range_behind_the_end_is_damage() -> None:
    storage = DictStorage()
    storage.put_object("b", "x", b"012")
    with pytest.raises(DamagedError, match="x is missing or shorter than 5 bytes"):
        read_part(Place("bucket", "b"), Part("x", 1, None, 4), storage)


def test_only_a_missing_object_is_missing() -> None:
    assert is_missing(StorageNoSuchKeyError())
    assert not is_missing(KeyError("x"))
