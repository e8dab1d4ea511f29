"""A worker at its socket, and the blocks that it maps."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from polarmap.worker.any_value import to_block
from polarmap.worker.channels import SocketChannel
from polarmap.worker.frames import END, ORDER, PROCESS, Frames, Message, frame
from polarmap.worker.io_channel import ChannelIO, serve_tasks
from polarmap.worker.messages import StoredBlock, Ticket
from polarmap.worker.parts import Part, Place
from polarmap.worker.process_state import Surroundings
from polarmap.worker.pytree import layout_of


def stored(folder: Path, data: Any, crc32: int | None = None) -> StoredBlock:
    (folder / "block").write_bytes(data.tobytes())
    part = Part("block", data.nbytes, crc32)
    return StoredBlock(Place("folder", str(folder)), (part,), ("array",), layout_of([data]))


def replies(connection: socket.socket, count: int) -> list[Message]:
    frames, found = Frames(), list[Message]()
    while len(found) < count:
        found += frames.of(connection.recv(1 << 16))
    return found


def test_a_worker_does_what_it_is_told_until_its_socket_is_closed(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve_tasks, args=(ChannelIO(SocketChannel(theirs)),))
    thread.start()
    data = np.arange(4.0)
    f, block = to_block((np.negative, ("array",))).tobytes(), stored(tmp_path, data)
    for task in range(3):
        ticket = Ticket(task, 0, block._replace(structure=()), None, None)
        call = 7, (str(tmp_path),), ticket, f if task == 0 else None, None, {}
        ours.sendall(frame(Message(ORDER, header=pickle.dumps(("call", call)))))
    hello, *ends = replies(ours, 4)
    assert hello == Message(PROCESS, header=str(os.getpid()).encode())
    for task, message in enumerate(ends):
        assert (message.order, message.kind) == ((7, task, 0), END)
        np.testing.assert_array_equal(np.frombuffer(message.data), -data)
    ours.close()
    thread.join(30.0)
    assert not thread.is_alive()
    theirs.close()


seen: list[Any] = []  # by `change`, which travels by its name


def change(block: Any) -> Any:
    found = os.getcwd(), sorted(os.environ), list(sys.path)
    os.chdir("/")
    os.environ["HOSTILE"] = "1"
    sys.path.append("/hostile")
    seen.append(found)
    return block


def test_on_a_thread_of_others_what_one_f_changes_around_it_is_set_back_for_the_next(tmp_path: Path) -> None:
    seen.clear()
    around = Surroundings.of_this_process()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        io = ChannelIO(SocketChannel(theirs))
        f = to_block((change, ("array",))).tobytes()
        ticket = Ticket(0, 0, stored(tmp_path, np.arange(4.0))._replace(structure=()), None, None)
        try:
            for number in range(3):
                assert io.run((number, (str(tmp_path),), ticket, f, None, {}))
        finally:
            around.take_over()
    assert seen == 3 * [(around.folder, sorted(around.environment), list(around.module_path))]
