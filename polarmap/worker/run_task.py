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
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from polarmap.worker import partial_results
from polarmap.worker.parts import DamagedError, Keep, Kept, Part, Place, assemble, read_file, write_file
from polarmap.worker.pytree import Layout, Packed, Structure, pack, pack_leaves, unflatten

POLL_SECONDS = 0.02  # how often a worker looks for its block when the driver is still writing it
WANTED_SECONDS = 0.5  # how often it looks whether it is still wanted
DYING_SECONDS = 5.0  # that the processes of a job whose driver died may take to be gone
BLOCK_SECONDS = 600.0  # how long it waits for its block
SAMPLE = 256  # numbers of a result that travel when it stays in storage
INLINE_BYTES = 4096  # results up to this size travel with the status instead of as an object
MOST_WORDS = 10_000  # characters of an error, and of its traceback, that travel
MOST_PICKLED = 1 << 20  # bytes of an exception that travels as it is

FAULTS = ("sleep", "raise", "exit", "kill", "garbage")

T = TypeVar("T")


class Fault(NamedTuple):
    """A misfortune to inject before f runs: for tests, demonstrations and benchmarks.

    kind : "sleep" (for `seconds`), "raise", "exit", "kill" (SIGKILL) or "garbage" (a wrong result).
    attempts : how many attempts of the task it strikes.

    Of a task with subtasks, a sleep is spread over all of them, garbage are all its results, and the
    others strike when half of the subtasks are done.
    """

    kind: str
    seconds: float = 0.0
    attempts: int = 1


class Ticket(NamedTuple):
    """What one Lithops task needs to know. Plain data, a few hundred bytes."""

    task: int
    attempt: int
    bucket: str
    source: Place  # where the block's parts lie
    parts: tuple[Part, ...]  # whose bytes in a row are the block
    structure: Structure
    layout: Layout
    result_key: str
    wanted_key: str  # exists for as long as anybody waits for the result
    claim: str | None  # a local file only one copy of the task can create
    driver: int | None  # the process that waits, where it is on this machine
    scratch: str | None  # its temporary folder, removed by whoever notices that it died
    fault: tuple[str, float, int] | None
    nice: int  # how much the task gives way to others on its machine
    fresh: bool  # the driver may still be writing the block
    keep: Keep | None  # where to leave the result instead of sending it
    turns: tuple[int, ...] = ()  # the order of its subtasks, if it has some

    def subtask_key(self, subtask: int) -> str:
        """Where the result of a subtask is handed in."""
        return handed_in_key(self.wanted_key, self.task, self.attempt, subtask)

    def plain(self) -> tuple[Any, ...]:
        """As plain tuples: what travels, so that a worker needs no polarmap to read it."""
        parts = tuple(tuple(part) for part in self.parts)
        keep = self.keep and (tuple(self.keep.source), *self.keep[1:])
        source = tuple(self.source)
        return tuple(self._replace(source=source, parts=parts, keep=keep))  # type: ignore[arg-type]

    @classmethod
    def parse(cls, plain: tuple[Any, ...]) -> Ticket:
        """The inverse of `plain`."""
        ticket = cls(*plain)
        parts = tuple(Part(*one) for one in ticket.parts)
        keep = ticket.keep and Keep(Place(*ticket.keep[0]), *ticket.keep[1:])
        return ticket._replace(source=Place(*ticket.source), parts=parts, keep=keep)


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
    kept: Kept | None = None  # where the result lies, if it stays in storage and `result` is a sample
    subtasks: tuple[int, ...] = ()  # whose results these are, in a list; the others were handed in before

    def plain(self) -> tuple[Any, ...]:
        """As plain tuples: what travels, so that a worker needs no polarmap to pickle it."""
        kept = self.kept and self.kept.plain()
        head = (tuple(part) if isinstance(part, (Packed, Error)) else part for part in self[:-2])
        return *head, kept, self.subtasks

    @classmethod
    def parse(cls, plain: tuple[Any, ...]) -> Reply:
        """The inverse of `plain`."""
        task, attempt, result, error, started, ended, kept, done = plain
        return cls(
            task,
            attempt,
            None if result is None else Packed(*result),
            None if error is None else Error(*error),
            started,
            ended,
            kept and Kept.parse(kept),
            done,
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
        return _spoilt(result)
    return result


def apply_in_turns(
    f: Callable[[Any], Any],
    block: Any,
    fault: Fault | None,
    attempt: int,
    turns: tuple[int, ...],
    publish: Callable[[partial_results.Handed], bool],
) -> tuple[Packed | Error, tuple[int, ...]]:
    """f of the pieces of the block, each result published as it comes; the rest, or what went wrong."""
    struck = fault if fault is not None and attempt < fault.attempts else None

    def before(step: int) -> None:
        if struck is None:
            return
        if struck.kind == "sleep":
            time.sleep(struck.seconds / len(turns))
        elif step == len(turns) // 2:
            _strike(struck)

    def finish(result: Packed) -> Packed:
        return _spoilt(result) if struck is not None and struck.kind == "garbage" else result

    try:
        return partial_results.run(f, block, turns, before, finish, publish)
    except BaseException as error:
        return describe(error), ()


def handed_in_key(wanted_key: str, task: int, attempt: int, subtask: int) -> str:
    """The name under which the result of a subtask is handed in."""
    return f"{wanted_key.rpartition('/')[0]}/subtask/{task}-{attempt}-{subtask}"


def message(reply: Reply) -> bytes:
    """A reply as bytes that tell whether they are all there."""
    data = pickle.dumps(reply.plain())
    return len(data).to_bytes(8, "big") + data


def parse_message(data: bytes) -> Reply | None:
    """The inverse; None while it is still being written."""
    if len(data) < 8 or len(data) - 8 < int.from_bytes(data[:8], "big"):
        return None
    return Reply.parse(pickle.loads(data[8:]))


def _spoilt(result: Packed) -> Packed:
    return result._replace(data=bytes(byte ^ 0x15 for byte in bytes(result.data)))


def describe(error: BaseException) -> Error:
    """An exception in a form that always travels, whatever its own methods do."""
    message = _attempt(lambda: str(error)[:MOST_WORDS], "<its __str__ raised>")
    text = _attempt(lambda: _traceback(error), message)
    return Error(type(error).__name__, message, text, _attempt(lambda: _pickled(error), None))


def _attempt(call: Callable[[], T], otherwise: T) -> T:
    """What the caller's own code gives, if it gives anything."""
    try:
        return call()
    except BaseException:
        return otherwise


def _traceback(error: BaseException) -> str:
    """Its end, where the error stands, if it is long."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))[-MOST_WORDS:]


def _pickled(error: BaseException) -> bytes | None:
    """None for one that is too large."""
    data = pickle.dumps(error)
    pickle.loads(data)
    return data if len(data) <= MOST_PICKLED else None


def make_task(f: Callable[[Any], Any]) -> Callable[..., tuple[Any, ...] | None]:
    """The function Lithops maps over tickets; a closure, so that f's own modules travel with it."""

    def task(fields: tuple[Any, ...], storage: Any) -> tuple[Any, ...] | None:
        ticket = Ticket.parse(fields)
        if not _claimed(ticket.claim):
            return None
        started = time.time()
        done: tuple[int, ...] = ()
        if ticket.nice:
            os.nice(ticket.nice)
        _drop_inherited_connections(storage)
        threading.Thread(target=_leave_when_unwanted, args=(ticket, storage), daemon=True).start()
        try:
            # The bytes get no name: f may need the room that this second copy of the block takes.
            block = unflatten(
                ticket.structure, Packed(ticket.structure, ticket.layout, _fetch(ticket, storage)).unpack()
            )
        except Exception as error:
            outcome: Packed | Error = describe(error)
        else:
            fault = ticket.fault and Fault(*ticket.fault)
            if ticket.turns:
                publish = partial(_publish, ticket, storage, started)
                outcome, done = apply_in_turns(f, block, fault, ticket.attempt, ticket.turns, publish)
            else:
                outcome = apply(f, block, fault, ticket.attempt)
        kept = None
        if ticket.keep is not None and not isinstance(outcome, Error):
            outcome, kept = leave(outcome, ticket.keep, ticket.task, ticket.attempt, storage)
            if kept is not None and ticket.driver is None and not _is_wanted(ticket, storage):
                remove(kept, ticket.keep.source, storage)  # the driver has cleaned up
        if isinstance(outcome, Error):
            return Reply(ticket.task, ticket.attempt, None, outcome, started, time.time()).plain()
        ended = time.time()
        if len(outcome.data) > INLINE_BYTES:
            storage.put_object(ticket.bucket, ticket.result_key, bytes(outcome.data))
            outcome = outcome._replace(data=b"")
            if ticket.driver is None and not _is_wanted(ticket, storage):
                storage.delete_object(ticket.bucket, ticket.result_key)  # the driver has cleaned up
        return Reply(ticket.task, ticket.attempt, outcome, None, started, ended, kept, done).plain()

    return task


def _publish(ticket: Ticket, storage: Any, started: float, handed: partial_results.Handed) -> bool:
    """Hand in the result of a subtask; False if that did not work."""
    packed, done = handed
    try:
        reply = Reply(ticket.task, ticket.attempt, packed, None, started, time.time(), None, done)
        key = ticket.subtask_key(done[0])
        storage.put_object(ticket.bucket, key, message(reply))
        if ticket.driver is None and not _is_wanted(ticket, storage):
            storage.delete_object(ticket.bucket, key)  # the driver has cleaned up
    except Exception:
        return False
    return True


def leave(
    result: Packed, keep: Keep, task: int, attempt: int, storage: Any
) -> tuple[Packed | Error, Kept | None]:
    """Store a result part by part; a sample of it, or what went wrong, is what travels.

    The sample is a linear function of the result, the same one for every task: what is true of the
    results by linearity can be verified on it. Its structure tells that of the result.
    """
    try:
        if len(result.layout) != keep.arrays:
            raise TypeError(f"a result that stays in storage is one array; f returned {len(result.layout)}")
        if keep.arrays == 1 and len(result.structure) > 1:
            kind = result.structure[0].__name__
            raise TypeError(f"a result that stays in storage is one array; f returned it in a {kind}")
        if keep.arrays == 1 and result.structure == ("matrix",):
            raise TypeError("a result that stays in storage is one array: return it as a numpy.ndarray")
        parts: list[Part] = []
        samples = []
        for array in result.views():
            flat = array.reshape(-1)
            samples.append(sample(flat, max(1, SAMPLE // keep.arrays)))
            for start in range(0, flat.size, keep.items):
                data = flat[start : start + keep.items].tobytes()
                key = f"{keep.prefix}/{task}-{attempt}/{len(parts)}"
                if keep.source.kind == "folder":
                    write_file(keep.source.place, key, data)
                else:
                    storage.put_object(keep.source.place, key, data)
                parts.append(Part(key, len(data), zlib.crc32(data)))
        shape = result.layout and result.layout[0][1]
        packed = pack_leaves(samples, ("sample", shape, result.structure))
    except Exception as error:
        return describe(error), None
    return packed, Kept(result.layout, tuple(parts))


def sample(array: Any, count: int = SAMPLE) -> Any:
    """At most `count` numbers of an array, evenly spread."""
    flat = array.reshape(-1)
    return flat[np.linspace(0, max(0, flat.size - 1), min(flat.size, count)).astype(np.int64)]


def remove(kept: Kept, source: Place, storage: Any) -> None:
    """Take a result out of storage again: nobody waits for it."""
    for part in kept.parts:
        if source.kind == "folder":
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(source.place, part.key))
        else:
            storage.delete_object(source.place, part.key)


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
    """The block's bytes, which on one machine the driver may still be writing."""
    deadline = time.monotonic() + BLOCK_SECONDS
    while True:
        try:
            return assemble(ticket.parts, lambda part: read_part(ticket.source, part, storage))
        except Exception:
            if not ticket.fresh or time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)


def read_part(source: Place, part: Part, storage: Any) -> Any:
    """The bytes of a part; DamagedError if it is not there."""
    if not part.key:
        return bytes(part.size)
    if source.kind == "folder":
        return read_file(source.place, part)
    if not part.size:
        return b""
    wanted = {"Range": f"bytes={part.offset}-{part.offset + part.size - 1}"}
    try:
        return storage.get_object(source.place, part.key, extra_get_args=wanted)
    except Exception as error:
        if type(error).__name__ == "StorageNoSuchKeyError" or "InvalidRange" in str(error):
            raise DamagedError(
                f"{part.key} is missing or shorter than {part.offset + part.size} bytes"
            ) from None
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
