"""The tasks of one map on workers that stay."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import lru_cache, partial
from hashlib import blake2b
from math import inf
from operator import attrgetter
from pathlib import Path

import numpy as np

from polarmap.clouds.prices import Stay
from polarmap.errors import ExecutorError
from polarmap.executors.base import Attempt, Began, Event, NoWorkers, Outcome, Payload, WakeSignal, lost
from polarmap.executors.block_store import BlockStore
from polarmap.executors.fork_server import FUNCTION_BYTES
from polarmap.executors.owned_folder import remove_tree
from polarmap.executors.pickling import PickledFunction
from polarmap.executors.worker_processes import FIRST_LOOK_SECONDS, LOOK_SECONDS
from polarmap.executors.worker_table import REMEMBERED, KeptWorker, WorkerTable
from polarmap.worker.polling import POLLIN, POLLOUT
from polarmap.worker.private_files import check_private_folder, write_private_file
from polarmap.worker.segments import INLINE
from polarmap.worker.socket_channel import (
    CANCELLED,
    FETCH,
    JOB,
    MODULES,
    SEGMENT,
    TASK,
    UNUSABLE,
    FrameError,
    Message,
)
from polarmap.worker.task_records import to_plain_tuple

SHARE_SECONDS = 0.002  # that a task may take before those behind it are given to others, too
MOST_AHEAD = 8  # tasks that a worker is told of beyond the one that it is at: they fit into a socket
LOOKED_AT = 64  # waiting tasks, for one whose block a worker has


class PoolRun:
    """The tasks of one map: each waits until a worker may take it, in the order in which they come.

    Maps that run at once on a pool share its workers. One of a map that is alone is told of its next tasks,
    several where they are short, while it is at the one before: to wake it would take longer than that.
    What waits behind a task that takes long is given to another worker, too: the first to end it is heard.

    Parameters
    ----------
    payload : Payload
    f : of the payload, with the structure of its blocks.
    modules : sources of those that it needs and workers may lack, by name.
    workers, blocks : shared with the other maps of the pool.
    folders : of the pool, for a folder of this map in each, which is made when it is needed.
    """

    # Of maps: no two have the same, so that what is removed by its name is of this one.
    _numbers = itertools.count(int.from_bytes(os.urandom(6), "big"))
    now = staticmethod(time.monotonic)
    deadline = inf  # when its map must be over
    _owner = -1  # the process to which it belongs, as soon as there is anything to close

    def __init__(
        self,
        payload: Payload,
        f: PickledFunction,
        modules: Mapping[str, tuple[str, bool]],
        workers: WorkerTable,
        blocks: BlockStore,
        folders: Sequence[Path],
    ) -> None:
        self._number, self._payload = next(self._numbers), payload
        self._folders = tuple(f"{folder}/map-{self._number}" for folder in folders)
        self._workers, self._blocks = workers, blocks
        self._waiting: deque[Attempt] = deque()
        self._open: set[Attempt] = set()  # that have not ended
        self._shared: set[Attempt] = set()  # that two workers were told of
        self._woken = WakeSignal()
        self._news: list[Event] = []  # that are told with the next outcomes
        self._moved = time.monotonic()  # when tasks came, or any ended
        self._stored = blocks.of(payload)
        # Of tasks, to later maps of the same blocks.
        self._name = lru_cache(REMEMBERED)(partial(self._stored.name, payload.blocks))
        self._lease = self._workers.open(self._woken.set)
        self._lease.poll.register(self._woken, POLLIN)
        if not workers.are_near:
            self._lease.n_tasks = payload.blocks.n
        self._owner = os.getpid()
        # No worker has a block that travels. What is stored is to come from one worker; a worker at a task
        # reads no block that is longer than the buffer of its socket.
        travel = payload.blocks.source == INLINE
        self._looked_at, self._tells_ahead = 1 if travel else LOOKED_AT, not (payload.output or travel)
        self._look_seconds = FIRST_LOOK_SECONDS
        around = workers.surroundings(f.pickled)
        until = blocks.next_number  # first: what comes meanwhile is not told to have gone
        numbers = self._stored.kept_as, (*blocks.in_use(), until)
        common = self._folders, payload.output, payload.encryption, around, *numbers
        self._common = pickle.dumps(to_plain_tuple(common), pickle.HIGHEST_PROTOCOL)
        self._modules = pickle.dumps(modules) if modules else b""
        try:
            self._f = self._sent(f)
            # What tells it from others; a file is of one map, and is named so.
            data, is_file = self._f
            self._digest = data if is_file else blake2b(self._modules + data, digest_size=16).digest()
        except OSError as error:
            self.close()
            raise ExecutorError(f"no room for what workers are to read: {error}") from error

    def __del__(self) -> None:
        self.close()

    def submit(self, attempts: Sequence[Attempt]) -> None:
        """Let them wait for a worker; those that can start now do.

        None starts if the time of the map is over before their blocks are stored.
        """
        if (
            self._blocks.is_mapped
        ):  # files here; of a storage that may hang, a thread removes what is unneeded
            self._blocks.remove_unneeded()
        self._open.update(attempts)
        try:
            self._stored.prepare(self._payload.blocks, [task for task, _ in attempts], self.deadline)
        except TimeoutError:
            return
        self._waiting += attempts
        self._moved = time.monotonic()
        self._workers.want(len(self._waiting) + len(self._lease.workers))
        self._start_waiting()
        if not any(worker.process for worker in self._lease.workers.values()):  # they are coming up
            self._payload.blocks.get_ready()

    def wait(self, timeout: float) -> list[Event]:
        """What workers have replied, as soon as any has."""
        self._lease.is_listening = True
        try:
            ended = self._wait_until(time.monotonic() + timeout)
        finally:
            self._workers.pause(self._lease)
        news, self._news = self._news, []
        if self._waiting and not ended and (reason := self._workers.shortage()):
            news.append(NoWorkers(reason))
        return [*news, *ended]

    def withdraw(self, attempts: Sequence[Attempt]) -> None:
        """Drop those that wait, and leave who is at one as at the end of a map."""
        found = [one for one in attempts if one in self._open]
        for one in found:
            self._drop(one)
            with contextlib.suppress(ValueError):  # it does not wait
                self._waiting.remove(one)
        for worker in list(self._lease.workers.values()):
            if worker.orders and worker.orders[0][0][1:] in found:
                self._let_go(worker, self._workers.abandon)
        self._start_waiting()

    def _wait_until(self, deadline: float) -> list[Outcome]:
        if not self._workers.is_alone():
            self._start_waiting()  # others may have left room
        while True:
            ended: list[Outcome] = []
            rest = max(0.0, deadline - time.monotonic())
            may_start = bool(self._waiting or self._behind())
            step = min(rest, self._look_seconds) if may_start else rest
            found = self._lease.poll.poll(None if step == inf else 1000 * step)
            readable = [self._lease.workers.get(one) for one, event in found if event != POLLOUT]
            for worker in readable:
                ended += [] if worker is None else self._heard(worker)
            if self._lease.receiving:
                ended += self._write(deadline)
            is_over = ended or (None in readable and self._woken.clear()) or time.monotonic() >= deadline
            if ended:
                self._lease.was_idle, self._look_seconds = False, FIRST_LOOK_SECONDS
                self._moved = time.monotonic()
            elif may_start and not is_over:
                self._look_seconds = min(LOOK_SECONDS, 1.5 * self._look_seconds)
                self._workers.look(self._lease, len(self._waiting) + len(self._behind()))
            self._start_waiting()
            if is_over:
                return ended

    def _write(self, deadline: float) -> list[Outcome]:
        """Write what links take of the messages that wait, and return the tasks of workers that are lost."""
        lost_tasks: list[Outcome] = []
        for worker in list(self._lease.receiving):
            if not worker.write():
                worker.link.hang_up()
                lost_tasks += self._heard(worker)
            elif not worker.link.has_unsent:
                self._lease.watch(worker)
            if time.monotonic() >= deadline:  # what it takes to write all may be long
                break
        return lost_tasks

    def count_receiving(self) -> int:
        """Return the number of workers that have not been sent all that their task needs."""
        return len(self._lease.receiving)

    def stop(self) -> list[Began]:
        """Drop what waits, and return which attempts have begun since the last `wait`.

        A worker may have ended the task that it was known to be at, and begun another that it was told ahead.
        """
        self._waiting.clear()
        for descriptor, _ in self._lease.poll.poll(0):
            worker = self._lease.workers.get(descriptor)
            if worker is not None:
                self._hear_out(worker)
        news, self._news = self._news, []
        return [event for event in news if isinstance(event, Began)]

    def _hear_out(self, worker: KeptWorker) -> None:
        """Take the messages of a worker that nobody waits for, and note which attempts it has begun."""
        orders = [order for order, _ in worker.orders]
        _, is_there = worker.receive()
        if worker.process is not None:
            begun = orders[: len(orders) - len(worker.orders) + 1]
            self._news += [Began(*order[1:], worker.since, True, worker.host) for order in begun]
        if worker.is_leaving or not is_there:
            self._workers.remove(worker)
        elif not worker.orders:
            self._workers.give_back(worker)

    def wake(self) -> None:
        """Let the descriptor be readable that is polled besides those of workers."""
        self._woken.set()

    def close(self) -> Stay | None:
        """Leave the workers that are busy to whoever needs them next, or kills them."""
        if os.getpid() != self._owner or self._lease.ended is not None:
            return None
        self._workers.leave(self._lease, self._number)
        with contextlib.suppress(ExecutorError):  # what waits is sent later, or its workers end
            self._workers.flush()
        self._waiting.clear()
        try:
            for folder in self._folders:
                remove_tree(folder)
        finally:  # an interrupt here leaves files until the workers end
            self._blocks.done(self._stored)
            self._woken.close()
        return self._workers.paid()

    def _start_waiting(self) -> None:
        """Hand attempts to workers as long as one is to be had; last those behind one that takes long."""
        held = self._held()
        while True:
            attempts = self._waiting or self._behind(time.monotonic() - SHARE_SECONDS)
            if held and self._are_all_in(held) and self._is_patient():
                attempts = []
            worker = self._workers.take(self._lease, len(attempts), partial(self._names, attempts))
            if worker is None:
                break
            if attempts is self._waiting:
                self._start_next(worker, held)
            else:
                self._shared.add(attempts[0])
                self._start(worker, [attempts[0]])
        self._workers.flush()

    def _held(self) -> set[Hashable]:
        """Tasks that wait, and whose block none has that is free now, but one that will be."""
        return self._workers.held_tasks(partial(self._names, self._waiting))

    def _are_all_in(self, held: set[Hashable]) -> bool:
        """Whether tasks wait, and every one of them is one of these."""
        return 0 < len(self._waiting) <= self._looked_at and held.issuperset(self._names(self._waiting))

    def _is_patient(self) -> bool:
        """Whether a task has come or ended within the time that a block takes to a free worker."""
        return time.monotonic() < self._moved + self._stored.moving_seconds(self._payload.blocks)

    def _names(self, attempts: Iterable[Attempt]) -> list[Hashable]:
        """The first tasks of these, in the form that means the same to later maps."""
        return [self._name(task) for task, _ in itertools.islice(attempts, self._looked_at)]

    def _start_next(self, worker: KeptWorker, held: set[Hashable]) -> None:
        """Tell a worker of its next tasks, unless it was told of as many as it may be."""
        more = 1 + self._ahead(worker) - len(worker.orders)
        if more > 0:
            self._start(worker, [self._next(worker, held) for _ in range(more)])

    def _ahead(self, worker: KeptWorker) -> int:
        """Of how many tasks beyond one a worker may be told: others get one first, and the last ones last."""
        waiting, every, taken = len(self._waiting), len(self._workers), len(self._lease.workers)
        left = waiting - (not worker.orders) - (every - taken) - every
        if left <= 0 or not every or worker.process is None or worker.function != self._digest:
            return 0
        if not (self._tells_ahead and self._workers.is_alone()):
            return 0
        short = int(SHARE_SECONDS / max(worker.took, SHARE_SECONDS / MOST_AHEAD))
        return min(left, max(1, min(short, waiting // (2 * every))))

    def _behind(self, late: float = inf) -> list[Attempt]:
        """What one worker was told of and waits behind a task that began before that, the oldest first."""
        behind = [one for one in self._lease.workers.values() if len(one.orders) > 1 and one.since < late]
        if not behind:
            return []
        behind.sort(key=attrgetter("since"))
        attempts = [order[1:] for one in behind for order, _ in itertools.islice(one.orders, 1, None)]
        return [one for one in attempts if self._is_for_one(one)]

    def _is_for_one(self, attempt: Attempt) -> bool:
        """Whether its end is to come, and no second worker was told of it."""
        return attempt in self._open and attempt not in self._shared

    def _next(self, worker: KeptWorker, held: set[Hashable]) -> Attempt:
        """The next attempt for a worker: one whose block it has, else the first that no other holds."""
        chosen = None
        for position, (task, _) in enumerate(itertools.islice(self._waiting, self._looked_at)):
            name = self._name(task)
            if name in worker.done:
                chosen = position
                break
            if chosen is None and name not in held:
                chosen = position
        found = self._waiting[chosen or 0]
        del self._waiting[chosen or 0]
        return found

    def _start(self, worker: KeptWorker, attempts: list[Attempt]) -> None:
        """Tell a worker to do these, after what it is at; if it does not listen, others will."""
        is_ahead, is_told, calls = bool(worker.orders), False, list[Message]()
        try:
            for one in attempts[:]:
                try:
                    calls.append(self._call(*one))
                except CancelledError:  # of its block
                    attempts.remove(one)
                    self._drop(one)
            if calls:
                is_told = worker.link.send(*self._of_map(worker, calls[0]), *calls)
                if worker.link.has_unsent:
                    self._lease.watch(worker)
            elif not is_ahead:
                self._workers.give_back(worker)
        finally:
            if attempts and not is_told:
                self._waiting.extendleft(reversed(attempts))
                if not is_ahead:
                    self._workers.remove(worker)
        if is_told:
            worker.map, worker.function = self._number, self._digest  # which need not be told again
            for attempt in attempts:
                worker.note((self._number, *attempt), self._name(attempt[0]))
            if not is_ahead:
                is_up = worker.process is not None
                self._news.append(Began(*attempts[0], worker.since, is_up, worker.host))

    def _drop(self, attempt: Attempt) -> None:
        """Tell of one that nobody waits for that it is lost."""
        self._open.discard(attempt)
        self._news.append(lost(*attempt, "nobody waits for it any more"))

    def _call(self, task: int, attempt: int) -> Message:
        """What a worker is told for an attempt."""
        payload = self._payload
        fault = payload.fault(task, attempt)
        rows = None if payload.short_block is None else payload.rows_of_data(task)
        block = self._stored.order(payload.blocks, task)
        order, is_usual = (self._number, task, attempt), fault is None and rows is None
        return Message(TASK, order, block, b"" if is_usual else pickle.dumps((fault and tuple(fault), rows)))

    def _of_map(self, worker: KeptWorker, call: Message) -> list[Message]:
        """What calls of this map have in common, before the first that a worker is told."""
        if worker.map == self._number:
            return []
        if worker.function == self._digest:
            return [Message(JOB, call.attempt_key, self._common)]
        modules = [Message(MODULES, call.attempt_key, data=self._modules)] if self._modules else []
        return [*modules, Message(JOB, call.attempt_key, self._common, *self._f)]

    def _heard(self, worker: KeptWorker) -> list[Outcome]:
        """Take what a worker has replied, or that it is gone."""
        coming_up = worker.orders[0][0] if worker.process is None and worker.orders else None
        said, is_there = worker.receive()
        outcomes, is_fit = list[Outcome](), True
        if coming_up is not None and worker.process is not None:
            self._news.append(Began(*coming_up[1:], time.monotonic(), True, worker.host))
        for message in said:
            try:
                if message.kind == FETCH:
                    is_there = self._send_part(worker, message) and is_there
                elif message.kind == UNUSABLE:  # what an earlier map has done to it: it has not begun
                    self._waiting.appendleft(message.attempt_key[1:])
                    is_fit = False
                else:
                    outcomes.append(self._outcome(message))
                    worker.took = outcomes[-1].seconds
            except (FrameError, LookupError, ValueError) as error:  # no reply, or no key of a part
                outcomes.append(lost(*message.attempt_key[1:], f"what its worker said is no reply: {error}"))
                is_fit = False  # what says such things is not to be trusted with more
        if not is_there and worker.orders:
            outcomes.append(lost(*worker.orders.popleft()[0][1:], self._workers.ending(worker)))
        told = []
        for one in outcomes:
            if (one.task, one.attempt) in self._open:  # its end has not been told
                told.append(one._replace(host=worker.host) if worker.host else one)
                self._open.remove((one.task, one.attempt))
                is_fit &= one.failure is None or one.failure.kind != "lost"
        if not (is_there and is_fit):
            self._let_go(worker, self._workers.remove)
        elif not worker.orders:
            self._workers.give_back(worker)
        elif outcomes:  # it is at the next one that it was told ahead
            order, _ = worker.orders[0]
            if self._is_for_one(order[1:]):
                self._news.append(Began(*order[1:], worker.since, True, worker.host))
            self._start_next(worker, self._held())
        return told

    def _send_part(self, worker: KeptWorker, need: Message) -> bool:
        """Send the part of a block that a worker asks for; whether it is there to take it."""
        data = self._stored.part(self._payload.blocks, need.header.decode())
        is_told = worker.link.send(Message(SEGMENT, need.attempt_key, need.header, data))
        if worker.link.has_unsent:
            self._lease.watch(worker)
        self._workers.flush()
        return is_told

    def _let_go(self, worker: KeptWorker, give_up: Callable[[KeptWorker], None]) -> None:
        """Give up a worker that is gone or of no more use: what it was told ahead waits again."""
        self._waiting.extendleft(order[1:] for order, _ in worker.orders if self._is_for_one(order[1:]))
        give_up(worker)

    def _outcome(self, message: Message) -> Outcome:
        """What a message says of an attempt; FrameError if it is no reply."""
        _, task, attempt = message.attempt_key
        if message.kind == CANCELLED:
            return lost(task, attempt, "its worker took it for cancelled")
        try:
            data = self._read(bytes(message.data).decode()) if message.is_file else message.data
            outcome = self._payload.outcome(task, attempt, message.header, data)
        except Exception as error:
            raise FrameError(f"{type(error).__name__}: {error}") from error
        if outcome.failure is not None:
            self._stored.store_if_damaged(self._payload.blocks, outcome.task, outcome.failure)
        return outcome

    def _read(self, left: str) -> memoryview | bytes:
        """A result that was left in one of our folders; of a wrong name or nothing, none."""
        number, name = left.split("/")
        if int(number) not in range(len(self._folders)):
            return b""
        folder = self._folders[int(number)]
        check_private_folder(os.path.dirname(folder))
        path = os.path.join(folder, name)
        data = np.fromfile(path, np.uint8).data
        os.unlink(path)
        return data

    def _sent(self, f: PickledFunction) -> tuple[bytes, bool]:
        """A function as it travels, or the file that it is to be read from, and whether it is that."""
        if f.size <= FUNCTION_BYTES or not self._folders:
            return b"".join(f.pieces()), False
        for folder in self._folders:
            try:
                write_private_file(f"{folder}/function", *f.pieces())
                return os.fsencode(f"{folder}/function"), True
            except OSError as error:
                failed = error
        raise failed
