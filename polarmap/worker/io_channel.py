"""Tasks of a worker that stays: calls come and replies go on a channel, blocks stay in memory.

Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

from polarmap.worker.any_value import loaded
from polarmap.worker.block_cache import KEPT_BYTES, LOOK_SECONDS, BlockCache, OnReadOnlyBlocks
from polarmap.worker.channels import Channel
from polarmap.worker.encryption import ENCRYPTED
from polarmap.worker.frames import LEFT, NEED, PROCESS, UNFIT, Message
from polarmap.worker.messages import Ticket
from polarmap.worker.parts import DamagedError, Part, Place
from polarmap.worker.process_state import (
    ProcessState,
    SentModules,
    Surroundings,
    UnfitError,
    is_for_want,
)
from polarmap.worker.program import TaskIO, run_task
from polarmap.worker.pytree import Structure

INLINE_BYTES = 1 << 16  # larger results are files, where there are some: no worker waits for its driver
PART_SECONDS = 600.0  # in which the driver sends a part of a block that it was asked for

Function = Callable[[Any], Any]


def serve_tasks(io: ChannelIO, until: float = inf) -> None:
    """Do what the driver says, one task after the other, until it goes, we are unfit or it is this late.

    until : on the monotonic clock.
    """
    with contextlib.suppress(ConnectionError):
        io.channel.send(Message(PROCESS, header=str(os.getpid()).encode()))
        while time.monotonic() < until:
            message = io.receive(None if until == inf and not len(io.blocks) else LOOK_SECONDS)
            if message is None:
                io.blocks.forget_removed()
            elif message[0] == "end" or (message[0] == "call" and not io.run(message[1])):
                return


class ChannelIO(TaskIO):
    """What connects the tasks of a worker that stays with their driver.

    storage : a `lithops.Storage`, for what lies in buckets.
    memory : bytes of blocks that are kept.
    limited : within which tasks run.
    is_alone : whether nothing but the worker uses its process.
    """

    def __init__(
        self,
        channel: Channel,
        storage: Any = None,
        memory: int = KEPT_BYTES,
        limited: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        is_alone: bool = False,
    ) -> None:
        super().__init__(storage, ENCRYPTED)
        self.channel, self._limited = channel, limited
        self._around = Surroundings.of_this_process()
        self._state = ProcessState() if is_alone else None
        self._is_fit = True
        self._heard = deque[Any]()  # messages, while it was at a task
        self._order = -1, -1, -1  # map, task and attempt
        self._pickled: bytes | str = b""
        self._f: tuple[Function, Structure] | None = None
        self._folders: tuple[str, ...] = ()
        self._files = 0  # that were left in them
        self.blocks = BlockCache(self.read, memory)
        self._modules = SentModules()

    def receive(self, timeout: float | None) -> Any:
        """What the driver says next; None if nothing within so many seconds."""
        return self._heard.popleft() if self._heard else self.channel.receive(timeout)

    def run(self, call: tuple[Any, ...]) -> bool:
        """Do a task and reply; False if this process is not fit for another one.

        call : the number of the task's map; folders for large results, none where driver and worker share
            none; the fields of its `Ticket`, whose block has no structure; f and the structure of blocks as
            `to_block` makes bytes of them, or the path of a file with these, None if they are those of the
            last task; the fields of its `Surroundings`, None if they have not changed, or are the worker's
            own; the sources of those modules that f needs and the worker has not yet, by name.
        """
        number, self._folders, fields, f, around, modules = call
        ticket, before = Ticket.parse(fields), self._order[0]
        self._order = number, ticket.task, ticket.attempt
        if around is not None:
            self._around = Surroundings(*around)
        if number != before:
            self._f = None
            if self._state and before >= 0 and (changed := self._state.restore()):
                self.channel.send(Message(UNFIT, self._order, changed.encode()))
                return False
            self._around.take_over()
            self.blocks.forget_removed()
        self._modules.add(modules)
        if f is not None:
            self._pickled, self._f = f, None
        if self.is_cancelled():  # while it was told ahead, or not read
            reply = None
        else:
            with self._limited():
                reply = run_task(ticket, self)
        self._send(reply or Message(LEFT))
        return self._is_fit

    def load(self, ticket: Ticket) -> tuple[Function, Any]:
        """f, made once in each map, and the block.

        UnfitError where this process fails at that, and neither f nor what is stored is at fault.
        A first attempt gets a block that is kept, which f must not change; a further one has a block of
        its own: what f is made of may write where numpy does not see it, and die of that.
        """
        if self._f is None:
            try:
                f, structure = loaded(self._pickled)
            except BaseException as error:
                if is_for_want(error):
                    raise self._unfit("unpickle f", error) from error
                raise
            self._f = OnReadOnlyBlocks(f), structure
        f, structure = self._f
        assert ticket.block is not None
        try:
            block = self.blocks.load(ticket.block._replace(structure=structure), ticket.attempt > 0)
        except (DamagedError, InterruptedError):
            raise
        except Exception as error:
            raise self._unfit("read its block", error) from error
        return f, block

    def _unfit(self, what: str, error: BaseException) -> UnfitError:
        """Tells that this process has failed at something, and lets it end when that is told."""
        self._is_fit = False
        return UnfitError(f"its worker could not {what}: {type(error).__name__}: {error}")

    def is_cancelled(self) -> bool:
        """Whether the driver has said so."""
        while self.channel.has_message():
            message = self.channel.receive(0.0)
            if message is None:
                break
            self._heard.append(message)
        return ("cancel", self._order[0]) in self._heard

    def read(self, place: Place, part: Part) -> Any:
        """The bytes of a part, also of one that its driver has."""
        if place.encryption is not None or place.kind != "driver" or not part.key:
            return super().read(place, part)
        self.channel.send(Message(NEED, self._order, part.key.encode()))
        while message := self.channel.receive(PART_SECONDS):
            if message[:2] == ("part", part.key):
                return message[2]
            self._heard.append(message)
            if message[0] != "call":
                break
        raise InterruptedError("nobody waits for this task any more")

    def _send(self, message: Message) -> None:
        """A message of the task, its data in a file where they are large."""
        data, is_file = message.data, len(message.data) > INLINE_BYTES and bool(self._folders)
        if is_file:
            data = self._left(data).encode()
        self.channel.send(message._replace(order=self._order, data=data, is_file=is_file))

    def _left(self, data: Any) -> str:
        """A file with these bytes: which of the map's folders it lies in, -1 if in none, and its name."""
        self._files += 1
        name = f"{os.getpid()}-{self._files}"
        if self.is_cancelled():
            return f"-1/{name}"
        for number, folder in enumerate(self._folders):
            try:
                if number:  # of no use to most maps
                    os.makedirs(folder, exist_ok=True)
                with open(os.path.join(folder, name), "xb") as file:
                    file.write(data)
            except OSError:  # no room, or nobody waits any more
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))
            else:
                return f"{number}/{name}"
        return f"-1/{name}"
