"""A worker that stays: it connects to its driver, and does what that says, one task after the other.

Blocks stay in its memory. Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from functools import lru_cache
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from math import inf
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from polarmap.worker.block_cache import LOOK_SECONDS, BlockCache, OnReadOnlyBlocks
from polarmap.worker.messages import Fault, OutputSpec, StoredBlock, Ticket, UnfitError
from polarmap.worker.objects import ObjectChannel
from polarmap.worker.parts import DamagedError, Part, Place, drop_inherited_connections
from polarmap.worker.private_files import check_private, has_folder, make_private, read_private
from polarmap.worker.process_state import ProcessState, is_for_want
from polarmap.worker.processes import exit_when
from polarmap.worker.program import TaskIO, run_task
from polarmap.worker.pytree import Structure, loaded
from polarmap.worker.stream import (
    CALL,
    CANCEL,
    INLINE_BYTES,
    LAST,
    LEFT,
    MAP,
    MODULES,
    NEED,
    PART,
    PROCESS,
    TCP_TIMEOUT,
    UNFIT,
    Endpoint,
    Message,
    Stream,
    connected,
)
from polarmap.worker.surroundings import Surroundings, seen_now
from polarmap.worker.threads import ThreadLimits, limiting_variables, limits

Channel = Stream | ObjectChannel  # what connects a worker that stays with its driver
Function = Callable[[Any], Any]


class ChannelIO(TaskIO):
    """What connects the tasks of a worker that stays with their driver.

    storage : a `lithops.Storage`, for what lies in buckets.
    blocks : that are kept, also by others in this process; None: by itself.
    limited : within which tasks run in a process that others use, too; None: nobody does.
    place : how the engine that has started the worker calls it, for reports; None: its driver has, beside it.
    machine : the address by which the engine tells the worker's machine from others; empty if it has none.
    """

    def __init__(
        self,
        channel: Channel,
        storage: Any = None,
        blocks: BlockCache | None = None,
        limited: Callable[[], AbstractContextManager[Any]] | None = None,
        place: str | None = None,
        machine: str = "",
    ) -> None:
        super().__init__(storage)
        self._machine = machine
        self._channel, self._limited, self._place = channel, limited or nullcontext, place
        self._around = Surroundings.of_this_process()
        self._told_around = b""  # what the driver has said of them last, if anything
        self._seen: Any = None  # of them, when they were taken over last
        self._state = ProcessState() if limited is None else None
        self._is_used = False  # by an f that may have changed it
        self._is_fit = True
        self._heard = deque[Message]()  # while it was at a task
        self._order = -1, -1, -1  # that map, its task and attempt
        self._of_map: tuple[OutputSpec | None, Any] = None, None  # output and encryption of its tasks
        self._number: int | None = None  # by which its blocks are kept
        self._pickled: bytes | str = b""
        self._f: tuple[Function, Structure] | None = None
        self._folders: tuple[str, ...] = ()
        self._files = 0  # that were left in them
        self._blocks = BlockCache() if blocks is None else blocks
        # What headers of calls say, which is the same in each map of the same blocks.
        self._stored = lru_cache(256)(lambda header: StoredBlock.parse(pickle.loads(header)))
        self._modules = SentModules()

    def serve(self, until: float = inf) -> None:
        """Do what the driver says, one task after the other, until it goes, we are unfit or it is this late.

        until : on the monotonic clock.
        """
        with contextlib.suppress(ConnectionError):
            self._tell(Message(PROCESS, header=str(os.getpid()).encode(), data=self._whereabouts()))
            while time.monotonic() < until:
                if not self._heard:
                    self._hear(None if until == inf and not len(self._blocks) else LOOK_SECONDS)
                if not self._heard:
                    self._blocks.forget_removed()
                elif not self.run(self._heard.popleft()):
                    return

    def _whereabouts(self) -> bytes:
        """Return the machine, the host name and the place of this worker, a line each.

        The result is empty beside the driver, which knows them.
        """
        if self._place is None:
            return b""
        return "\n".join([self._machine, socket.gethostname(), self._place]).encode()

    def _tell(self, message: Message) -> None:
        """A message to the driver; ConnectionError if it is gone."""
        if not self._channel.send(message):
            raise ConnectionError("the driver is gone")

    def _hear(self, timeout: float | None) -> None:
        """Listen for so long; ConnectionError when the driver will say nothing any more."""
        said, is_there = self._channel.receive(timeout)
        self._heard += said
        if not (said or is_there):
            raise ConnectionError("the driver is gone")

    def run(self, message: Message) -> bool:
        """Do what the driver says; False if this process is not fit for anything more."""
        if message.kind == MODULES:
            self._modules.add(pickle.loads(message.data))
        if message.kind == MAP:
            return self._begin(message)
        if message.kind == CALL:
            self._send(self._reply(message))
        if message.kind == CANCEL:  # nobody waits while we do
            self._set_back()
        return self._is_fit

    def _set_back(self) -> str:
        """Let the next f find this process as the first one did; what has changed for good, if anything."""
        changed = self._state.restore() if self._state and self._is_used else ""
        self._is_used = bool(changed)
        return changed

    def _begin(self, message: Message) -> bool:
        """Begin with the tasks of a map; False if its f would find traces of others.

        message : of its first task. Its header has folders for large results, none where driver and worker
            share none; the fields of the `OutputSpec` and `Encryption` of all tickets; those of the
            `Surroundings`, pickled, none if they are the worker's own; the number by which its blocks are
            kept, and those of all that its driver has. Its data are f and the structure of blocks as
            `to_block` makes bytes of them, none if they are those of the last map.
        """
        self._order, self._f = message.order, None
        self.map, *_ = message.order
        if changed := self._set_back():
            self._tell(Message(UNFIT, self._order, changed.encode()))
            return False
        self._is_used = True
        self._folders, output, encryption, around, self._number, numbers = pickle.loads(message.header)
        if around != self._told_around:
            self._told_around, self._around = around, Surroundings(*pickle.loads(around))
            self._seen = None
        self._of_map = output and OutputSpec.parse(output), encryption
        if seen_now() != self._seen:
            self._around.take_over()
            self._seen = seen_now()
        self._blocks.forget_removed(numbers)
        if message.data:
            data = bytes(message.data)
            self._pickled = os.fsdecode(data) if message.is_file else data
        return True

    def _reply(self, call: Message) -> Message | None:
        """The reply of a task; None if nobody waits for it.

        call : its header has the fields of a `StoredBlock`; its data, if there is any, those of a `Fault`, or
            None, and `rows` of the ticket.
        """
        self._order = call.order
        block = self._stored(bytes(call.header))
        fault, rows = pickle.loads(call.data) if call.data else (None, None)
        fault = fault and Fault(*fault)
        if self.is_cancelled():  # while it was told ahead, or not read
            return None
        with self._limited():
            return run_task(Ticket(*call.order[1:], block, fault, *self._of_map, rows), self)

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
            block = self._blocks.load(ticket.block, structure, self.read, ticket.attempt > 0, self._number)
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
        self._hear(0.0)
        return any(one.kind == CANCEL and one.order[0] == self.map for one in self._heard)

    def read_stored(self, place: Place, part: Part) -> Any:
        """The bytes of a part as they lie there, also of one that its driver has, here or in its memory."""
        if place.kind == "private" and (self._place is None or has_folder(place, part)):
            return read_private(place, part)
        if place.kind in ("dask", "ray"):  # whose workers have polarmap: it need not travel
            from polarmap.worker.engine_parts import read_from_engine

            return read_from_engine(place, part)
        if place.kind not in ("driver", "private"):
            return super().read_stored(place, part)
        self._tell(Message(NEED, self._order, part.key.encode()))
        while True:
            is_cancelled = self.is_cancelled()
            for message in self._heard:  # a part that has come is kept, also if nobody waits for the task
                if message.kind == PART and message.header == part.key.encode():
                    self._heard.remove(message)
                    return message.data
            if is_cancelled:
                raise InterruptedError("nobody waits for this task any more")
            self._hear(None)

    def _send(self, reply: Message | None) -> None:
        """The reply of the task, its data in a file where they are large; None: nobody waits for it."""
        if reply is not None and len(reply.data) > INLINE_BYTES and self._folders:
            reply = self._with_file(reply)
        message = reply or Message(LEFT, self._order)
        self._tell(message if self._is_fit else message._replace(kind=LAST))

    def _with_file(self, reply: Message) -> Message | None:
        """A reply whose data lie in a file of one of the map's folders: its number, and the file's name.

        None if nobody waits for it.
        """
        self._files += 1
        name = f"{os.getpid()}-{self._files}"
        for number, folder in enumerate(self._folders):
            if not self._is_awaited_at(folder):
                return None
            try:
                check_private(os.path.dirname(folder))
                with open(os.path.join(folder, name), "xb") as file:
                    file.write(reply.data)
            except OSError:  # no room, or nobody waits any more
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))
            else:
                return reply._replace(data=f"{number}/{name}".encode(), is_file=True)
        return reply

    def _is_awaited_at(self, folder: str) -> bool:
        """Whether anybody waits for what is left in a folder of the map, which is made where there is none.

        It is asked when the folder is there: a driver that has removed it has said so, or gone, before.
        """
        made, is_awaited = [folder], False
        try:
            with contextlib.suppress(OSError):
                if make_private(os.path.dirname(folder)):
                    made.append(os.path.dirname(folder))
                os.mkdir(folder)
            is_awaited = not self.is_cancelled()
        finally:
            for one in [] if is_awaited else made:
                with contextlib.suppress(OSError):  # others have left something there
                    os.rmdir(one)
        return is_awaited


class SentModules(MetaPathFinder, InspectLoader):
    """Modules that the driver has sent as source: imported from there where nothing else has them."""

    def __init__(self) -> None:
        self._sources: dict[str, tuple[str, bool]] = {}

    def add(self, sources: Mapping[str, tuple[str, bool]]) -> None:
        """Let these be imported from now on; those whose source has changed are imported anew.

        sources : by name, and whether it is a package.
        """
        if sources and self not in sys.meta_path:
            sys.meta_path.append(self)
        for name, source in sources.items():
            if self._sources.get(name, source) != source:
                sys.modules.pop(name, None)
        self._sources.update(sources)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """How to import a module that was sent; None for any other."""
        if fullname not in self._sources:
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=self._sources[fullname][1])

    def get_source(self, fullname: str) -> str:
        """Its source."""
        return self._sources[fullname][0]

    def get_code(self, fullname: str) -> Any:
        """Its code, under a name for which tracebacks ask `get_source` for their lines."""
        return self.source_to_code(self.get_source(fullname), f"sent/{fullname}.py")

    def is_package(self, fullname: str) -> bool:
        """Whether others lie below it."""
        return self._sources[fullname][1]


# --- elsewhere -------------------------------------------------------------------------------------


class DriverAddress(NamedTuple):
    """How a worker reaches its driver. Plain data.

    endpoints : where it listens, all of which are tried first.
    key : that both sides prove to have.
    bucket, prefix : in the storage, which is used where no socket is reached; None: where there is none.
    memory : bytes of blocks that the worker may keep.
    threads : that its libraries for linear algebra may use.
    tcp_timeout : seconds of silence after which the connection is lost.
    """

    endpoints: tuple[Endpoint, ...]
    key: bytes
    bucket: str | None
    prefix: str
    memory: int
    threads: int
    tcp_timeout: float = TCP_TIMEOUT


def make_kept_task(address: DriverAddress) -> Callable[..., None]:
    """The function Lithops maps over (number, seconds); a closure, so that its modules travel with it."""
    fields: tuple[Any, ...] = tuple(address)

    def task(worker: tuple[int, float], storage: Any) -> None:
        number, seconds = worker
        stay(DriverAddress(*fields), number, seconds, storage)

    return task


def stay(
    address: DriverAddress, number: int, seconds: float, storage: Any, place: str = "", machine: str = ""
) -> None:
    """Serve the driver for so long, in a process that has nothing else to do and ends with its driver."""
    until = time.monotonic() + seconds
    drop_inherited_connections(storage)
    os.environ.update(limiting_variables(address.threads))
    with closing(channel_to(address, number, storage)) as channel, ExitStack() as watched:
        watched.callback(exit_when(channel.is_closed))
        with ThreadLimits().of_process(address.threads):
            ChannelIO(channel, storage, BlockCache(address.memory), None, place, machine).serve(until)


# Blocks of workers on threads of this process, by the key of their driver.
_kept_together = WeakValueDictionary[bytes, BlockCache]()


def stay_on_thread(
    fields: tuple[Any, ...], number: int, seconds: float, place: str = "", machine: str = ""
) -> None:
    """The same on a thread of a process that others use, too: it ends between two tasks only.

    What others may use of the cores is theirs again when a task ends, or the driver is gone. Workers of one
    driver on threads of one process keep blocks together.
    """
    address = DriverAddress(*fields)
    blocks = _kept_together.setdefault(address.key, BlockCache(0))
    until = time.monotonic() + seconds
    limit, lock = ExitStack(), threading.Lock()

    def lift() -> None:
        with lock:  # the task may end in this moment
            limit.close()

    @contextlib.contextmanager
    def limited() -> Iterator[None]:
        limit.enter_context(limits.of_process(address.threads))
        try:
            yield
        finally:
            lift()

    with closing(channel_to(address, number, None)) as channel, ExitStack() as stack:
        stack.callback(exit_when(channel.is_closed, lift))
        stack.enter_context(blocks.with_room(address.memory))
        ChannelIO(channel, None, blocks, limited, place, machine).serve(until)


def channel_to(address: DriverAddress, number: int, storage: Any) -> Channel:
    """The best channel that works from here; ConnectionError if none does."""
    channel = connected(address.endpoints, address.key, number, address.tcp_timeout)
    if channel is not None:
        return channel
    if address.bucket is None:
        tried = ", ".join(f"{host}:{port}" for host, port in address.endpoints)
        remedy = "say in Pool(listen='host:port') where it does"
        raise ConnectionError(f"no driver answers {socket.gethostname()} at {tried}: {remedy}")
    return ObjectChannel(storage, address.bucket, address.prefix, number)
