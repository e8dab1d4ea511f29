"""Blocks in files as workers read them, and messages that workers receive for tasks on them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from polarmap.blocks.uneven import UncodedBlocks
from polarmap.executors.interface import JobSpec
from polarmap.worker.locations import FolderLocation, Location
from polarmap.worker.messages import Message, MessageKind, encode_frame
from polarmap.worker.pickled_values import pickle_to_array
from polarmap.worker.pytree import get_layout
from polarmap.worker.segments import Segment
from polarmap.worker.task_records import BlockRef, JobHeader, encode_record


def stored(folder: Path, data: np.ndarray) -> BlockRef:
    """Store an array in the file "block" of a folder and return its reference."""
    (folder / "block").write_bytes(data.tobytes())
    part = Segment("block", data.nbytes)
    return BlockRef(FolderLocation(str(folder)), (part,), get_layout([data]))


def job_reading(location: Location | None) -> JobSpec:
    """Return a job whose blocks are stored at this location."""
    blocks = UncodedBlocks([[np.zeros(1)]], ("array",))
    blocks.location = location  # type: ignore[misc]
    return JobSpec(len, blocks)


def orders_of(f: Callable[[Any], Any], block: Path, *folders: Path, number: int = 0) -> list[Message]:
    """Return the messages of a map with one task, f of an array of one number.

    Parameters
    ----------
    folders
        Folders for large results.
    """
    header = encode_record(JobHeader([*map(str, folders or [block])], None, None, b"", None, []))
    of_map = Message(MessageKind.JOB, (number, 0, 0), header, pickle_to_array((f, ("array",))).tobytes())
    return [of_map, Message(MessageKind.TASK, (number, 0, 0), encode_record(stored(block, np.zeros(1))))]


class Bomb:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def nonsense(folder: Path) -> dict[str, bytes]:
    """Return invalid messages, including a complete frame; unpickling any of them creates a folder."""
    bomb = pickle.dumps(Bomb(folder))
    whole = encode_frame(Message(MessageKind.TASK_REPLY, header=bomb))
    return {
        "a pickle": bomb,
        "many": bomb * 1000,
        "a message": whole,
        "a part of one": whole[:-1],
        "no kind": bytes(4) + bomb,
        "random": b"?" + os.urandom(500),
        "ones": b"\xff" * 64,
    }


NONSENSE = tuple(nonsense(Path()))
