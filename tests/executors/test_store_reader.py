"""StoreReader: the driver reads a user-defined store for the workers, with a timeout and clear errors."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from stored_calls import job_reading

from polarmap.errors import MissingObjectError, StorageError
from polarmap.executors.store_reader import FinishedRead, OpenStoreLocation, StoreReader
from polarmap.worker.locations import FolderLocation, StoreLocation, location_from_fields
from polarmap.worker.segments import Segment

KEY = (7, 3, 1)
PATIENCE = 60.0


class Shelf:
    """A read-only store whose keys select how a read behaves."""

    name = "shelf"

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        if key == "hangs":
            threading.Event().wait()
        if key == "missing":
            raise MissingObjectError(key)
        if key == "refused":
            raise StorageError("no access")
        if key == "late":
            raise TimeoutError("the socket is late")
        return b"0123456789"[start:stop]


def read(*segments: Segment, timeout: float = PATIENCE) -> list[FinishedRead]:
    """Read segments of one block and return the finished reads, sorted by key."""
    store: Any = Shelf()
    has_finished = threading.Semaphore(0)
    location: Any = OpenStoreLocation(store)
    reader = StoreReader.for_blocks(job_reading(location).blocks, timeout, has_finished.release)
    assert reader is not None
    for segment in segments:
        reader.start(KEY, segment)
    assert all(has_finished.acquire(timeout=PATIENCE) for _ in segments)
    finished = reader.collect_finished()
    assert reader.collect_finished() == []
    return sorted(finished, key=lambda read: read.segment.key)


def test_a_segment_is_a_range_of_an_object() -> None:
    segments = [Segment("a", 3, None, 2), Segment("b", 5, None, 8)]
    assert read(*segments) == [
        FinishedRead(KEY, segments[0], b"234", None),
        FinishedRead(KEY, segments[1], b"89", None),
    ]


@pytest.mark.parametrize(
    ("key", "kind", "text"),
    [
        ("missing", "damaged", "DamagedError: missing is missing"),
        ("refused", "raised", "StorageError: no access"),
        ("late", "raised", "TimeoutError: the socket is late"),
    ],
)
def test_error_of_the_store_fails_the_attempt(key: str, kind: str, text: str) -> None:
    [finished] = read(Segment(key, 1))
    assert finished.failure is not None
    assert (finished.failure.kind, str(finished.failure)) == (kind, text)


def test_error_for_a_slow_read_names_block_and_store() -> None:
    good, finished = read(Segment("a", 1), Segment("hangs", 1), timeout=0.05)
    assert good.data == b"0"
    assert finished.failure is not None
    assert finished.failure.kind == "lost"
    assert str(finished.failure) == (
        "TimeoutError: block 3 was not read within 0.05 s, as shelf has not returned hangs: check "
        "the storage, or pass a longer time as Pool(fetch_timeout=...)"
    )


def test_blocks_that_workers_read_themselves_need_no_reader() -> None:
    for location in (None, FolderLocation("/data")):
        assert StoreReader.for_blocks(job_reading(location).blocks, 1.0, lambda: None) is None


def test_stores_with_the_same_name_are_different_locations() -> None:
    first, second = [SimpleNamespace(name="memory") for _ in range(2)]
    locations: Any = OpenStoreLocation(first), OpenStoreLocation(second)  # type: ignore[arg-type]
    assert locations[0] != locations[1]
    assert locations[0] == locations[0].with_encryption(None)
    assert hash(locations[0]) == hash(locations[0].with_encryption(None))
    assert location_from_fields(locations[0].fields) == StoreLocation("memory")
