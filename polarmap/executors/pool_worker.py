"""What runs in a worker of a pool: f on a daemon thread, left when nobody waits for it any more."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple

from polarmap.worker.partial_results import Handed
from polarmap.worker.parts import Keep, Kept, Part, Place, assemble
from polarmap.worker.pytree import Layout, Packed, Structure, unflatten
from polarmap.worker.run_task import (
    POLL_SECONDS,
    Error,
    Fault,
    Reply,
    apply,
    apply_in_turns,
    describe,
    leave,
    message,
    read_part,
    remove,
)


class Deferred(NamedTuple):
    """A stored block that its worker in a pool is to read: a file here, or through `read`."""

    source: Place
    parts: tuple[Part, ...]
    structure: Structure
    layout: Layout
    read: Callable[[], list[Any]] | None

    def load(self) -> Any:
        """The block."""
        if self.read is not None:
            return unflatten(self.structure, self.read())
        data = assemble(self.parts, lambda part: read_part(self.source, part, None))
        return unflatten(self.structure, Packed(self.structure, self.layout, data).unpack())


class Wanted(NamedTuple):
    """A folder that exists for as long as the driver waits for a pool's tasks.

    folder : to be seen from the driver's machine only.
    place : by which a worker knows that it is on it; a task may start when the folder is gone.
    """

    folder: str
    place: tuple[str, int, int]

    @classmethod
    def mark(cls, folder: str) -> Wanted:
        """The folder of this process."""
        return cls(folder, _place(folder))

    def is_over(self) -> bool:
        """Whether nobody waits any more, as far as can be seen from here."""
        if os.path.isdir(self.folder):
            return False
        try:
            return _place(self.folder) == self.place
        except OSError:
            return False


def _place(folder: str) -> tuple[str, int, int]:
    """The machine and the directory that a folder lies, or lay, in."""
    parent = os.stat(os.path.dirname(folder))
    return os.uname().nodename, parent.st_dev, parent.st_ino


def run_in_pool(
    f: Callable[[Any], Any] | bytes,
    block: Any,
    fault: Fault | None,
    task: int,
    attempt: int,
    cancelled: threading.Event | Wanted,
    keep: Keep | None = None,
    turns: tuple[int, ...] = (),
    channel: SimpleQueue[Any] | None = None,
) -> tuple[Any, ...] | None:
    """f of a block in a pool: it runs on a daemon thread and is left when cancelled.

    So a straggler holds neither its pool's slot nor the exit of the interpreter. `f` is a function
    or the bytes of a pickled one. Subtasks are taken by `turns` and handed in through the channel, or
    as files in the folder of `cancelled`.
    """
    is_cancelled = cancelled.is_over if isinstance(cancelled, Wanted) else cancelled.is_set
    if is_cancelled():
        return None
    started = time.time()
    outcome: list[tuple[Packed | Error, Kept | None]] = []
    subtasks: list[int] = []

    def publish(handed: Handed) -> bool:
        reply = Reply(task, attempt, handed.packed, None, started, time.time(), None, handed.subtasks)
        if channel is not None:
            channel.put((task, attempt, reply))
            return True
        return isinstance(cancelled, Wanted) and hand_in(cancelled.folder, reply)

    def run() -> None:
        try:
            function = pickle.loads(f) if isinstance(f, bytes) else f
            data = block.load() if isinstance(block, Deferred) else block
        except BaseException as error:
            outcome.append((describe(error), None))
            return
        kept = None
        if turns:
            result, done = apply_in_turns(function, data, fault, attempt, turns, publish)
            outcome.append((result, None))
            subtasks.extend(done)
            return
        result = apply(function, data, fault, attempt)
        if keep is not None and not isinstance(result, Error) and not is_cancelled():
            result, kept = leave(result, keep, task, attempt, None)
            if kept is not None and is_cancelled():
                remove(kept, keep.source, None)
        outcome.append((result, kept))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    parent = os.getppid()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if thread.is_alive() and (is_cancelled() or os.getppid() != parent):
            return None
    result, kept = outcome[0]
    if isinstance(result, Error):
        return Reply(task, attempt, None, result, started, time.time()).plain()
    return Reply(task, attempt, result, None, started, time.time(), kept, tuple(subtasks)).plain()


def hand_in(folder: str, reply: Reply) -> bool:
    """Leave the result of a subtask in a folder; False where that does not work."""
    path = os.path.join(folder, f"{reply.task}-{reply.attempt}-{reply.subtasks[0]}")
    try:
        with open(path + ".part", "wb") as file:
            file.write(message(reply))
        os.replace(path + ".part", path)
    except Exception:
        return False
    return True
