"""Tests that stored bytes are returned unchanged, or an error is raised."""

from __future__ import annotations

import mmap
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_storage import DictStorage, StorageNoSuchKeyError

from polarmap.worker.encryption import read_segment
from polarmap.worker.locations import FolderLocation
from polarmap.worker.segments import (
    MIN_MAPPED_BYTES,
    DamagedError,
    Segment,
    drop_inherited_connections,
    is_missing_object_error,
    read_file_segment,
    write_file,
)

DATA = bytes(range(100))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    write_file(str(tmp_path), "below/x", DATA)
    return str(tmp_path)


def test_a_segment_is_a_range_of_bytes_of_a_file(folder: str) -> None:
    assert bytes(read_file_segment(folder, Segment("below/x", 10, None, 20))) == DATA[20:30]
    assert bytes(read_file_segment(folder, Segment("below/x", 10, None, 95))) == DATA[95:]
    assert bytes(read_file_segment(folder, Segment("below/x", 10, None, 100))) == b""
    with pytest.raises(DamagedError, match="below/y is missing"):
        read_file_segment(folder, Segment("below/y", 1))


@pytest.mark.parametrize("size", [MIN_MAPPED_BYTES - 1, MIN_MAPPED_BYTES])
def test_large_segments_are_mapped_up_to_the_end_of_the_file(folder: str, size: int) -> None:
    data = DATA * (size // len(DATA) + 2)
    write_file(folder, "large", data)
    for offset in (0, 7, mmap.ALLOCATIONGRANULARITY, len(data) - size):
        for size_read in (size, 2 * size):
            actual = read_file_segment(folder, Segment("large", size_read, None, offset))
            assert bytes(actual) == data[offset : offset + size_read]
    assert isinstance(actual, memoryview) == (size >= MIN_MAPPED_BYTES)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Segment("below/x", 101), "has 100 of 101 bytes from 0 on"),
        (Segment("below/x", 9, None, 95), "has 5 of 9 bytes from 95 on"),
        (Segment("below/x", 100, 7), "is corrupt"),
    ],
)
def test_changed_segments_raise_damaged_error(folder: str, part: Segment, message: str) -> None:
    with pytest.raises(DamagedError, match=f"below/x {message}") as caught:
        read_segment(FolderLocation(folder), part, partial(read_file_segment, folder))
    assert caught.value.kind == ("corrupt" if message == "is corrupt" else "truncated")


@given(st.binary(min_size=1, max_size=60), st.data())
def test_any_changed_byte_is_detected(data: bytes, draw: st.DataObject) -> None:
    place = draw.draw(st.integers(0, len(data) - 1))
    changed = bytearray(data)
    changed[place] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(DamagedError, match="x is corrupt"):
        read_segment(FolderLocation(""), Segment("x", len(data), zlib.crc32(data)), lambda part: changed)


def test_a_file_appears_complete_or_not_at_all(folder: str) -> None:
    with pytest.raises(TypeError):
        write_file(folder, "below/x", object())
    assert [path.name for path in Path(folder, "below").iterdir()] == ["x"]
    assert Path(folder, "below/x").read_bytes() == DATA


def test_only_errors_for_missing_objects_count_as_missing() -> None:
    assert is_missing_object_error(StorageNoSuchKeyError())
    assert not is_missing_object_error(KeyError("x"))


class PortOfClient(BaseHTTPRequestHandler):
    """A handler that responds with the client's port and keeps the connection open."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        answer = str(self.client_address[1]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: Any) -> None:
        """Suppress the log line of each request."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), PortOfClient) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    "client_with",
    [
        lambda session: SimpleNamespace(_http=session),
        lambda session: SimpleNamespace(
            _pipeline=SimpleNamespace(_transport=SimpleNamespace(session=session))
        ),
    ],
    ids=["Google", "Azure"],
)
def test_inherited_connections_are_not_used(url: str, client_with: Callable[[Any], Any]) -> None:
    # test_worker_entry.py tests the connections of an S3 client.
    import requests

    with requests.Session() as session:
        storage = SimpleNamespace(get_client=lambda: client_with(session))
        inherited = [session.get(url).text for _ in range(2)]
        drop_inherited_connections(storage)
        assert inherited[0] == inherited[1] != session.get(url).text


@pytest.mark.parametrize("storage", [None, DictStorage(), SimpleNamespace(get_client=dict)])
def test_a_storage_without_connections_has_none_to_drop(storage: Any) -> None:
    drop_inherited_connections(storage)
