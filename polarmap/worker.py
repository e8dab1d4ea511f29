"""What runs remotely: fetch a block, apply f, leave the result. Imports numpy at most."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from polarmap.stored import DamagedError, Part, Source, assemble, read_file
from polarmap.tree import Packed, Shape, Structure, pack, unflatten

POLL_SECONDS = 0.02  # how often a worker looks for its block when the driver is still writing it
WANTED_SECONDS = 0.5  # how often it looks whether it is still wanted
DYING_SECONDS = 5.0  # that the processes of a job whose driver died may take to be gone
BLOCK_SECONDS = 600.0  # how long it waits for its block
INLINE_BYTES = 4096  # results up to this size travel with the status instead of as an object


class Fault(NamedTuple):
    """A misfortune to inject before f runs: for tests, demonstrations and benchmarks.

    kind : "sleep" (for `seconds`), "raise", "exit", "kill" (SIGKILL) or "garbage" (a wrong result).
    attempts : how many attempts of the task it strikes.
    """

    kind: str
    seconds: float = 0.0
    attempts: int = 1


class Ticket(NamedTuple):
    """What one Lithops task needs to know. Plain data, a few hundred bytes."""

    task: int
    attempt: int
    bucket: str
    source: Source  # where the block's parts lie
    parts: tuple[Part, ...]  # whose bytes in a row are the block
    structure: Structure
    layout: tuple[tuple[str, Shape], ...]
    result_key: str
    wanted_key: str  # exists for as long as anybody waits for the result
    claim: str | None  # a local file only one copy of the task can create
    driver: int | None  # the process that waits, where it is on this machine
    scratch: str | None  # its temporary folder, removed by whoever notices that it died
    fault: tuple[str, float, int] | None
    nice: int  # how much the task gives way to others on its machine

    def plain(self) -> tuple[Any, ...]:
        """As plain tuples: what travels, so that a worker needs no polarmap to read it."""
        parts = tuple(tuple(part) for part in self.parts)
        return tuple(self._replace(source=tuple(self.source), parts=parts))  # type: ignore[arg-type]

    @classmethod
    def parse(cls, plain: tuple[Any, ...]) -> Ticket:
        """The inverse of `plain`."""
        ticket = cls(*plain)
        return ticket._replace(source=Source(*ticket.source), parts=tuple(Part(*one) for one in ticket.parts))


class Error(NamedTuple):
    """An exception as plain text, and pickled where that works."""

    type: str
    message: str
    traceback: str
    pickled: bytes | None


class Reply(NamedTuple):
    """What a task reports. The result's data is empty when it lies at the ticket's result key."""

    task: int
    attempt: int
    result: Packed | None
    error: Error | None
    started: float  # time.time() on the worker
    ended: float

    def plain(self) -> tuple[Any, ...]:
        """As plain tuples: what travels, so that a worker needs no polarmap to pickle it."""
        return tuple(tuple(part) if isinstance(part, (Packed, Error)) else part for part in self)

    @classmethod
    def parse(cls, plain: tuple[Any, ...]) -> Reply:
        """The inverse of `plain`."""
        task, attempt, result, error, started, ended = plain
        return cls(
            task,
            attempt,
            None if result is None else Packed(*result),
            None if error is None else Error(*error),
            started,
            ended,
        )


def apply(f: Callable[[Any], Any], block: Any, fault: Fault | None, attempt: int) -> Packed | Error:
    """f(block) as raw bytes, or what went wrong."""
    try:
        struck = fault if fault is not None and attempt < fault.attempts else None
        if struck is not None:
            _strike(struck)
        result = pack(f(block))
    except BaseException as error:
        return describe(error)
    if struck is not None and struck.kind == "garbage":
        return result._replace(data=bytes(byte ^ 0x15 for byte in bytes(result.data)))
    return result


def describe(error: BaseException) -> Error:
    """An exception in a form that always travels."""
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:
        pickled = None
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return Error(type(error).__name__, str(error), text, pickled)


def make_task(f: Callable[[Any], Any]) -> Callable[..., tuple[Any, ...] | None]:
    """The function Lithops maps over tickets; a closure, so that f's own modules travel with it."""

    def task(fields: tuple[Any, ...], storage: Any) -> tuple[Any, ...] | None:
        ticket = Ticket.parse(fields)
        if not _claimed(ticket.claim):
            return None
        started = time.time()
        if ticket.nice:
            os.nice(ticket.nice)
        _drop_inherited_connections(storage)
        threading.Thread(target=_leave_when_unwanted, args=(ticket, storage), daemon=True).start()
        try:
            data = _fetch(ticket, storage)
            block = unflatten(ticket.structure, Packed(ticket.structure, ticket.layout, data).unpack())
        except Exception as error:
            outcome: Packed | Error = describe(error)
        else:
            outcome = apply(f, block, ticket.fault and Fault(*ticket.fault), ticket.attempt)
        if isinstance(outcome, Error):
            return Reply(ticket.task, ticket.attempt, None, outcome, started, time.time()).plain()
        ended = time.time()
        if len(outcome.data) > INLINE_BYTES:
            storage.put_object(ticket.bucket, ticket.result_key, bytes(outcome.data))
            outcome = outcome._replace(data=b"")
            if ticket.driver is None and not _is_wanted(ticket, storage):
                storage.delete_object(ticket.bucket, ticket.result_key)  # the driver has cleaned up
        return Reply(ticket.task, ticket.attempt, outcome, None, started, ended).plain()

    return task


class Deferred(NamedTuple):
    """A stored block that its worker in a pool is to read: a file here, or through `read`."""

    source: Source
    parts: tuple[Part, ...]
    structure: Structure
    layout: tuple[tuple[str, Shape], ...]
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
) -> tuple[Any, ...] | None:
    """The same for a pool of this machine: f runs on a daemon thread and is left when cancelled.

    So a straggler holds neither its pool's slot nor the exit of the interpreter. `f` is a function
    or the bytes of a pickled one.
    """
    is_cancelled = cancelled.is_over if isinstance(cancelled, Wanted) else cancelled.is_set
    if is_cancelled():
        return None
    started = time.time()
    outcome: list[Packed | Error] = []

    def run() -> None:
        try:
            function = pickle.loads(f) if isinstance(f, bytes) else f
            data = block.load() if isinstance(block, Deferred) else block
        except BaseException as error:
            outcome.append(describe(error))
            return
        outcome.append(apply(function, data, fault, attempt))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    parent = os.getppid()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if thread.is_alive() and (is_cancelled() or os.getppid() != parent):
            return None
    result, error = (None, outcome[0]) if isinstance(outcome[0], Error) else (outcome[0], None)
    return Reply(task, attempt, result, error, started, time.time()).plain()


def _strike(fault: Fault) -> None:
    if fault.kind == "sleep":
        time.sleep(fault.seconds)
    elif fault.kind == "raise":
        raise RuntimeError("injected fault")
    elif fault.kind == "exit":
        os._exit(3)
    elif fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


def _claimed(path: str | None) -> bool:
    """Whether this copy of the task is the first to start; the claim then names its process."""
    if path is None:
        return True
    try:
        with open(path, "x") as claim:
            claim.write(str(os.getpid()))
    except FileExistsError:
        return False
    return True


def _fetch(ticket: Ticket, storage: Any) -> Any:
    """The block's bytes; on one machine the driver may still be writing those without a checksum."""
    deadline = time.monotonic() + BLOCK_SECONDS
    while True:
        try:
            return assemble(ticket.parts, lambda part: read_part(ticket.source, part, storage))
        except Exception:
            is_finished = ticket.driver is None or all(part.crc32 is not None for part in ticket.parts)
            if is_finished or time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)


def read_part(source: Source, part: Part, storage: Any) -> Any:
    """The bytes of a part; DamagedError if it is not there."""
    if source.kind == "folder":
        return read_file(source.place, part)
    if part.crc32 is None:  # an object of its own
        return storage.get_object(source.place, part.key)
    if not part.size:
        return b""
    last = part.offset + part.size - 1
    try:
        return storage.get_object(
            source.place, part.key, extra_get_args={"Range": f"bytes={part.offset}-{last}"}
        )
    except Exception as error:
        if type(error).__name__ == "StorageNoSuchKeyError" or "InvalidRange" in str(error):
            raise DamagedError(f"{part.key} is missing or shorter than {last + 1} bytes") from None
        raise


def _leave_when_unwanted(ticket: Ticket, storage: Any) -> None:
    """End this process when nobody waits for it any more.

    On the driver's machine that is when the driver died (a live one kills its workers itself);
    then the whole job and the driver's temporary folder go. Elsewhere it is when the wanted key
    is gone; a storage that cannot be asked says nothing.
    """
    while True:
        time.sleep(WANTED_SECONDS)
        if ticket.driver is not None:
            if not _is_alive(ticket.driver):
                _end_job(ticket.scratch)
        elif not _is_wanted(ticket, storage):
            os._exit(0)


def _end_job(scratch: str | None) -> None:
    """Kill this whole job and only then remove its folder, which its other processes write to.

    By a child in a process group of its own, which outlives the job and does nothing else.
    """
    group = os.getpgrp()
    with warnings.catch_warnings():  # Python warns of forking beside threads: the child uses none
        warnings.simplefilter("ignore")
        child = os.fork()
    if child:
        os.waitpid(child, 0)  # killed while waiting
        os._exit(1)
    os.setpgid(0, 0)
    os.killpg(group, signal.SIGKILL)
    deadline = time.monotonic() + DYING_SECONDS
    while _is_there(group) and time.monotonic() < deadline:
        time.sleep(0.005)
    while scratch is not None and os.path.isdir(scratch) and time.monotonic() < deadline:
        shutil.rmtree(scratch, ignore_errors=True)  # fails where another job's child is at it too
    os._exit(0)


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    return True


def _is_wanted(ticket: Ticket, storage: Any) -> bool:
    try:
        storage.head_object(ticket.bucket, ticket.wanted_key)
    except Exception as error:
        return type(error).__name__ != "StorageNoSuchKeyError"
    return True


def _is_alive(process: int) -> bool:
    """Whether a process of this machine runs; one that only waits to be reaped does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:
        with open(f"/proc/{process}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return True


def _drop_inherited_connections(storage: Any) -> None:
    """Forget keep-alive sockets opened before the fork: since Lithops 3.8 the parent uses them too."""
    with contextlib.suppress(AttributeError):
        storage.get_client()._endpoint.http_session._manager.clear()
