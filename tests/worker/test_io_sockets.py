"""A worker at its socket, and the blocks that it maps."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polarmap.worker.frames import Frames, frame
from polarmap.worker.io_sockets import MAPPED_BYTES, Call, MappedBlocks, leaves_of, serve_tasks
from polarmap.worker.messages import StoredBlock, Ticket
from polarmap.worker.parts import DamagedError, Part, Place
from polarmap.worker.pytree import layout_of


def stored(folder: Path, data: Any, crc32: int | None = None) -> StoredBlock:
    (folder / "block").write_bytes(data.tobytes())
    part = Part("block", data.nbytes, crc32)
    return StoredBlock(Place("folder", str(folder)), (part,), ("array",), layout_of([data]))


def replies(connection: socket.socket, count: int) -> list[tuple[Any, bytearray]]:
    frames, found = Frames(), list[tuple[Any, bytearray]]()
    while len(found) < count:
        found += frames.of(connection.recv(1 << 16))
    return found


def test_a_worker_does_what_it_is_told_until_its_socket_is_closed(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve_tasks, args=(theirs,))
    thread.start()
    data = np.arange(4.0)
    f, block = pickle.dumps((np.negative, ("array",))), stored(tmp_path, data)
    for task in range(3):
        ticket = Ticket(task, 0, block._replace(structure=()), None, None)
        call = Call(7, (str(tmp_path),), ticket, f if task == 0 else None, None)
        ours.sendall(frame(None, pickle.dumps(call)))
    hello, *ends = replies(ours, 4)
    assert hello[0] == {"process": os.getpid()}
    for task, (fields, raw) in enumerate(ends):
        assert (fields["task"], fields["kind"]) == (task, "end")
        np.testing.assert_array_equal(np.frombuffer(raw), -data)
    ours.close()
    thread.join(30.0)
    assert not thread.is_alive()
    theirs.close()


@pytest.mark.parametrize("size", [10, MAPPED_BYTES])
def test_each_task_may_write_into_its_block(tmp_path: Path, size: int) -> None:
    data = np.arange(float(size))
    block, blocks = stored(tmp_path, data), MappedBlocks()
    for _ in range(2):
        found = blocks.load(block)
        np.testing.assert_array_equal(found, data)
        found[:] = 7.0


@pytest.mark.parametrize("size", [10, MAPPED_BYTES])
def test_damage_is_seen_whenever_it_happens(tmp_path: Path, size: int) -> None:
    data = np.arange(float(size))
    block, blocks = stored(tmp_path, data, zlib.crc32(data.tobytes())), MappedBlocks()
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
    block = stored(tmp_path, data)
    part = Part("block", 8 * MAPPED_BYTES, None, 24)
    found = MappedBlocks().load(block._replace(parts=(part,), layout=(("<f8", (MAPPED_BYTES,)),)))
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
