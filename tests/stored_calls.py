"""Blocks in files, as workers read them, and what workers are told of tasks on them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from polarmap.worker.messages import StoredBlock, Ticket
from polarmap.worker.parts import Part, Place
from polarmap.worker.pytree import layout_of, to_block
from polarmap.worker.stream import CALL, Message


def stored(folder: Path, data: np.ndarray) -> StoredBlock:
    """An array in the file "block" of a folder."""
    (folder / "block").write_bytes(data.tobytes())
    part = Part("block", data.nbytes)
    return StoredBlock(Place("folder", str(folder)), (part,), ("array",), layout_of([data]))


def call_of(f: Callable[[Any], Any], folder: Path) -> Message:
    """Of a map with one task, which calls f with an array of one number."""
    ticket = Ticket(0, 0, stored(folder, np.zeros(1)), None, None)
    header = pickle.dumps(((str(folder),), ticket, None, {}))
    return Message(CALL, (0, 0, 0), header, to_block((f, ("array",))).tobytes())
