"""Tests that each kind of location reads, writes and deletes, and is sent as plain data."""

from __future__ import annotations

import pickle
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from memory_storage import DictStorage

from polarmap.worker.encryption import Encryption, read_segment, write_segments
from polarmap.worker.locations import (
    INLINE,
    LOCATION_CLASSES,
    BucketLocation,
    ClusterLocation,
    DriverLocation,
    FolderLocation,
    Location,
    PrivateFolderLocation,
    StoreLocation,
    location_from_fields,
)
from polarmap.worker.segments import DamagedError, Segment
from polarmap.worker.task_execution import TaskIO

KEY = Encryption.create(bytes(range(32)))
LOCATIONS: list[Location] = [
    INLINE,
    FolderLocation("/data"),
    FolderLocation("/data", encryption=KEY),
    PrivateFolderLocation("/data"),
    BucketLocation("b", "minio"),
    BucketLocation("b", "aws_s3", KEY),
    DriverLocation("prefix"),
    StoreLocation("my store"),
    ClusterLocation(backend="dask"),
]


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_location_is_sent_as_plain_data(location: Location) -> None:
    travelling = pickle.dumps(location.fields)
    assert b"polarmap" not in travelling
    for copy in (location_from_fields(pickle.loads(travelling)), pickle.loads(pickle.dumps(location))):
        assert (type(copy), copy, hash(copy)) == (type(location), location, hash(location))
        assert (copy.root, copy.backend) == (location.root, location.backend)
        assert copy.encryption == location.encryption
    assert location.with_encryption(KEY).encryption == KEY
    assert (
        location.with_encryption(KEY).with_encryption(None).with_encryption(location.encryption) == location
    )


def test_different_locations_are_not_equal() -> None:
    assert len(set(LOCATIONS)) == len(LOCATIONS)
    assert {type(location) for location in LOCATIONS} == set(LOCATION_CLASSES.values())


def test_an_unknown_kind_of_location_is_refused() -> None:
    abstract: Any = Location
    with pytest.raises(TypeError, match="abstract"):
        abstract()


def test_segments_of_the_driver_are_fetched_from_it() -> None:
    class Asking(TaskIO):
        def fetch_from_driver(self, segment: Segment, private_root: str | None = None) -> Any:
            return segment, private_root

    segment = Segment("x", 3)
    assert DriverLocation("prefix").read(segment, Asking()) == (segment, None)
    assert PrivateFolderLocation("/data").read(segment, Asking()) == (segment, "/data")
    with pytest.raises(LookupError):
        INLINE.read(segment, Asking())


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return FolderLocation(str(tmp_path)) if request.param == "folder" else BucketLocation("b", "minio")


def test_written_segments_can_be_read_and_deleted(place: Location) -> None:
    access = TaskIO(DictStorage())

    def get(part: Segment) -> bytes:
        return bytes(read_segment(place, part, partial(place.read, access=access)))

    def put(key: str, data: bytes) -> list[Segment]:
        return write_segments(place, key, data, 4, partial(place.write, access=access))

    parts = put("below/x", b"0123456789")
    assert parts == [
        Segment("below/x", size, zlib.crc32(data), offset)
        for size, data, offset in ((4, b"0123", 0), (4, b"4567", 4), (2, b"89", 8))
    ]
    assert [get(part) for part in parts] == [b"0123", b"4567", b"89"]
    assert get(Segment("below/x", 4, None, 3)) == b"3456"
    assert get(Segment("below/x", 0)) == b""
    assert get(Segment("", 3)) == bytes(3)
    assert put("below/y", b"") == []
    place.delete(["below/x"], access)
    for key in ("below/x", "below/y"):
        with pytest.raises(DamagedError, match=f"{key} is missing") as caught:
            get(Segment(key, 4))
        assert caught.value.kind == "missing"


def test_a_range_beyond_the_end_raises_damaged_error() -> None:
    storage = DictStorage()
    storage.put_object("b", "x", b"012")
    with pytest.raises(DamagedError, match="x has 0 of 1 bytes from 4 on"):
        BucketLocation("b").read(Segment("x", 1, None, 4), TaskIO(storage))
