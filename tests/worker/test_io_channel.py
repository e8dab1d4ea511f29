"""A worker at its socket, and the blocks that it maps."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np

from polarmap.worker.any_value import to_block
from polarmap.worker.channels import SocketChannel
from polarmap.worker.io_channel import ChannelIO
from polarmap.worker.messages import StoredBlock, Ticket
from polarmap.worker.parts import Part, Place
from polarmap.worker.process_state import Surroundings
from polarmap.worker.pytree import layout_of


def stored(folder: Path, data: Any, crc32: int | None = None) -> StoredBlock:
    (folder / "block").write_bytes(data.tobytes())
    part = Part("block", data.nbytes, crc32)
    return StoredBlock(Place("folder", str(folder)), (part,), ("array",), layout_of([data]))


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
                assert io.run((number, (str(tmp_path),), ticket, f, None, {}, False))
        finally:
            around.take_over()
    assert seen == 3 * [(around.folder, sorted(around.environment), list(around.module_path))]
