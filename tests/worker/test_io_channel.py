"""A worker at its socket, and the blocks that it maps."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

from stored_calls import call_of

from polarmap.worker.channels import SocketChannel
from polarmap.worker.io_channel import ChannelIO
from polarmap.worker.process_state import Surroundings

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
        _, *call = call_of(change, tmp_path)
        try:
            for number in range(3):
                assert io.run((number, *call))
        finally:
            around.take_over()
    assert seen == 3 * [(around.folder, sorted(around.environment), list(around.module_path))]
