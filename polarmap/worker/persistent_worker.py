"""A worker that stays: it connects to its driver, and does what that says, one task after the other.

Blocks stay in its memory. Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from math import inf
from typing import TYPE_CHECKING, Any

from polarmap.worker.block_cache import CACHE_POLL_INTERVAL, BlockCache, CopyOnWriteFunction
from polarmap.worker.daemon_threads import CallTimeoutError, call_with_timeout
from polarmap.worker.environment import ProcessEnvironment, snapshot_environment
from polarmap.worker.locations import Location
from polarmap.worker.messages import MAX_INLINE_BYTES, Message, MessageKind
from polarmap.worker.pickled_values import unpickle_data_or_file
from polarmap.worker.private_files import (
    check_private_folder,
    ensure_private_folder,
    is_in_private_folder,
    read_private_segment,
)
from polarmap.worker.process_state import ProcessState, is_resource_exhaustion
from polarmap.worker.pytree import Structure
from polarmap.worker.segments import DamagedError, Segment, encode_segment_range, make_fetch_timeout_error
from polarmap.worker.sent_modules import SentModuleFinder
from polarmap.worker.socket_channel import SocketChannel
from polarmap.worker.task_execution import TaskIO, run_task
from polarmap.worker.task_records import (
    BlockRef,
    JobHeader,
    ResultFileRef,
    TaskOptions,
    TaskRequest,
    UnusableWorkerError,
    WorkerIdentity,
    decode_record,
)

if TYPE_CHECKING:
    from polarmap.worker.storage_channel import StorageChannel

Function = Callable[[Any], Any]


class PersistentWorker(TaskIO):
    """What connects the tasks of a worker that stays with their driver.

    storage : a `lithops.Storage`, for what lies in buckets.
    block_cache : that are kept, also by others in this process; None: by itself.
    limit_threads : within which tasks run in a process that others use, too; None: nobody does.
    label : how the engine that has started the worker calls it, for reports; None: its driver has, beside it.
    machine_address : the address by which the engine tells the worker's machine from others; empty if it has
        none.
    fetch_timeout : seconds that reading a block from the storage may take.
    """

    def __init__(
        self,
        channel: SocketChannel | StorageChannel,
        storage: Any = None,
        block_cache: BlockCache | None = None,
        limit_threads: Callable[[], AbstractContextManager[Any]] | None = None,
        label: str | None = None,
        machine_address: str = "",
        fetch_timeout: float = inf,
    ) -> None:
        super().__init__(storage)
        self._fetch_timeout, self._fetch_deadline = fetch_timeout, inf
        self._machine_address = machine_address
        self._channel, self._limit_threads, self._label = channel, limit_threads or nullcontext, label
        self._environment = ProcessEnvironment.capture()
        self._environment_bytes = b""  # what the driver has said of them last, if anything
        self._environment_snapshot: Any = None  # of them, when they were taken over last
        self._process_state = ProcessState() if limit_threads is None else None
        self._has_run_f = False  # by an f that may have changed it
        self._is_usable = True
        self._inbox = deque[Message]()  # while it was at a task
        self._attempt_key = -1, -1, -1  # that map, its task and attempt
        self._job_header = JobHeader([], None, None, b"", None, [])  # of the map that it is at
        self._function_data: bytes | str = b""
        self._function_and_structure: tuple[Function, Structure] | None = None
        self._n_result_files = 0  # that were left in them
        self._block_cache = BlockCache() if block_cache is None else block_cache
        # What headers of calls say, which is the same in each map of the same blocks.
        self._parse_block_ref = lru_cache(256)(partial(decode_record, BlockRef))
        self._sent_modules = SentModuleFinder()

    def serve(self, deadline: float = inf) -> None:
        """Do what the driver says, one task after the other, until it goes, we are unfit or it is this late.

        deadline : on the monotonic clock.
        """
        with contextlib.suppress(ConnectionError):
            pid_text = str(os.getpid()).encode()
            self._send(Message(MessageKind.HELLO, header=pid_text, data=self._encode_identity()))
            while time.monotonic() < deadline:
                if not self._inbox:
                    can_wait_forever = deadline == inf and not len(self._block_cache)
                    self._receive(None if can_wait_forever else CACHE_POLL_INTERVAL)
                if not self._inbox:
                    self._block_cache.evict_removed_blocks()
                elif not self.handle_message(self._inbox.popleft()):
                    return

    def _encode_identity(self) -> bytes:
        """Return the encoded `WorkerIdentity`; nothing beside the driver, which knows it."""
        if self._label is None:
            return b""
        return WorkerIdentity(self._machine_address, socket.gethostname(), self._label).encode()

    def _send(self, message: Message) -> None:
        """A message to the driver; ConnectionError if it is gone."""
        if not self._channel.send(message):
            raise ConnectionError("the driver is gone")

    def _receive(self, timeout: float | None) -> None:
        """Listen for so long; ConnectionError when the driver will say nothing any more."""
        messages, is_connected = self._channel.receive(timeout)
        self._inbox += messages
        if not (messages or is_connected):
            raise ConnectionError("the driver is gone")

    def handle_message(self, message: Message) -> bool:
        """Do what the driver says; False if this process is not fit for anything more."""
        if message.kind == MessageKind.MODULES:
            self._sent_modules.add_sources(pickle.loads(message.data))
        if message.kind == MessageKind.JOB:
            return self._start_job(message)
        if message.kind == MessageKind.TASK:
            self._send_reply(self._run_task(message))
        if message.kind == MessageKind.CANCEL:  # nobody waits while we do
            self._reset_process()
        return self._is_usable

    def _reset_process(self) -> str:
        """Let the next f find this process as the first one did; what has changed for good, if anything."""
        unrestored = ""
        if self._process_state and self._has_run_f:
            unrestored = self._process_state.restore_or_describe_change()
        self._has_run_f = bool(unrestored)
        return unrestored

    def _start_job(self, job_message: Message) -> bool:
        """Begin with the tasks of a map; False if its f would find traces of others.

        job_message : has the attempt key of the first task, a `JobHeader`, and as its data f and the
            structure of blocks as `pickle_to_array` writes them. There are no data if these are those of the
            last map.
        """
        self._attempt_key, self._function_and_structure = job_message.attempt_key, None
        self.job_id, *_ = job_message.attempt_key
        if unrestored := self._reset_process():
            self._send(Message(MessageKind.UNUSABLE, self._attempt_key, unrestored.encode()))
            return False
        self._has_run_f = True
        header = self._job_header = decode_record(JobHeader, job_message.header)
        if header.environment != self._environment_bytes:
            self._environment = ProcessEnvironment(*pickle.loads(header.environment))
            self._environment_bytes = header.environment
            self._environment_snapshot = None
        if snapshot_environment() != self._environment_snapshot:
            self._environment.apply_to_process()
            self._environment_snapshot = snapshot_environment()
        self._block_cache.evict_removed_blocks(header.live_block_set_ids)
        if job_message.data:
            data = bytes(job_message.data)
            self._function_data = os.fsdecode(data) if job_message.is_file else data
        return True

    def _run_task(self, task_message: Message) -> Message | None:
        """Return the reply of a task; None if nobody waits for it.

        task_message : has a `BlockRef` as its header, and `TaskOptions` as its data if there are any.
        """
        self._attempt_key, options = task_message.attempt_key, TaskOptions(None, None)
        block_ref = self._parse_block_ref(bytes(task_message.header))
        if task_message.data:
            options = decode_record(TaskOptions, bytes(task_message.data))
        self.receive_pending()
        if self.is_cancelled():  # after it was sent ahead
            return None
        task_and_attempt, header = task_message.attempt_key[1:], self._job_header
        shared_fields = header.output, header.encryption
        request = TaskRequest(
            *task_and_attempt, block_ref, options.fault, *shared_fields, options.n_data_rows
        )
        with self._limit_threads():
            return run_task(request, self)

    def load_inputs(self, request: TaskRequest) -> tuple[Function, Any]:
        """f, made once in each map, and the block.

        UnusableWorkerError where this process fails at that, and neither f nor what is stored is at fault.
        A first attempt gets a block that is kept, which f must not change; a further one has a block of
        its own: what f is made of may write where numpy does not see it, and die of that.
        """
        if self._function_and_structure is None:
            try:
                f, structure = unpickle_data_or_file(self._function_data)
            except BaseException as error:
                if is_resource_exhaustion(error):
                    raise self._mark_unusable("unpickle f", error) from error
                raise
            self._function_and_structure = CopyOnWriteFunction(f), structure
        f, structure = self._function_and_structure
        assert request.block_ref is not None
        self._fetch_deadline = time.monotonic() + self._fetch_timeout
        try:
            block = self._block_cache.load_block(
                request.block_ref,
                structure,
                self.read_segment,
                request.attempt > 0,
                self._job_header.block_set_id,
            )
        except (DamagedError, InterruptedError):
            raise
        except Exception as error:
            raise self._mark_unusable("read its block", error) from error
        return f, block

    def _mark_unusable(self, failed_action: str, error: BaseException) -> UnusableWorkerError:
        """Tells that this process has failed at something, and lets it end when that is told."""
        self._is_usable = False
        return UnusableWorkerError(f"its worker could not {failed_action}: {type(error).__name__}: {error}")

    def receive_pending(self) -> None:
        """Read what the driver has sent since the last time; ConnectionError if it is gone."""
        self._receive(0.0)

    def is_cancelled(self) -> bool:
        """Return whether a message has been read that cancels the map."""
        return any(
            item.kind == MessageKind.CANCEL and item.attempt_key[0] == self.job_id for item in self._inbox
        )

    def read_segment(self, location: Location, segment: Segment) -> Any:
        """Return the bytes of a segment; TimeoutError if a storage has not returned the block in time."""
        read = partial(super().read_segment, location, segment)
        if not location.uses_storage:
            return read()
        try:
            return call_with_timeout(read, self._fetch_deadline - time.monotonic())
        except CallTimeoutError:
            _, task, _ = self._attempt_key
            bucket = f"{location.backend} bucket {location.root!r}"
            raise make_fetch_timeout_error(task, self._fetch_timeout, bucket, segment) from None

    def fetch_from_driver(self, segment: Segment, private_root: str | None = None) -> Any:
        """Return the stored bytes of a segment, from a file of the driver on this machine or on request.

        Raises InterruptedError if the task is cancelled, or if the driver cannot read the segment.
        """
        if private_root is not None and (
            self._label is None or is_in_private_folder(os.path.join(private_root, segment.key))
        ):
            return read_private_segment(private_root, segment)
        segment_range = encode_segment_range(segment)
        self._send(Message(MessageKind.FETCH, self._attempt_key, segment_range))
        while True:
            self.receive_pending()
            for message in self._inbox:  # a part that has come is kept, also if nobody waits for the task
                if (
                    message.kind in (MessageKind.SEGMENT, MessageKind.NO_SEGMENT)
                    and message.header == segment_range
                ):
                    self._inbox.remove(message)
                    if message.kind == MessageKind.NO_SEGMENT:
                        raise InterruptedError("the driver cannot read the block of this task")
                    return message.data
            if self.is_cancelled():
                raise InterruptedError("nobody waits for this task any more")
            self._receive(None)

    def _send_reply(self, reply: Message | None) -> None:
        """The reply of the task, its data in a file where they are large; None: nobody waits for it."""
        if reply is not None and len(reply.data) > MAX_INLINE_BYTES and self._job_header.result_folders:
            reply = self._move_data_to_file(reply)
        message = reply or Message(MessageKind.CANCELLED, self._attempt_key)
        self._send(message if self._is_usable else message._replace(kind=MessageKind.FINAL_REPLY))

    def _move_data_to_file(self, reply: Message) -> Message | None:
        """A reply whose data lie in a file of one of the map's folders: its number, and the file's name.

        None if nobody waits for it.
        """
        self._n_result_files += 1
        file_name = f"{os.getpid()}-{self._n_result_files}"
        for folder_index, folder in enumerate(self._job_header.result_folders):
            if not self._create_folder_if_wanted(folder):
                return None
            try:
                check_private_folder(os.path.dirname(folder))
                with open(os.path.join(folder, file_name), "xb") as file:
                    file.write(reply.data)
            except OSError:  # no room, or nobody waits any more
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, file_name))
            else:
                return reply._replace(data=ResultFileRef(folder_index, file_name).encode(), is_file=True)
        return reply

    def _create_folder_if_wanted(self, folder: str) -> bool:
        """Whether anybody waits for what is left in a folder of the map, which is made where there is none.

        It is asked when the folder is there: a driver that has removed it has said so, or gone, before.
        """
        created_folders, is_wanted = [folder], False
        try:
            with contextlib.suppress(OSError):
                if ensure_private_folder(os.path.dirname(folder)):
                    created_folders.append(os.path.dirname(folder))
                os.mkdir(folder)
            self.receive_pending()
            is_wanted = not self.is_cancelled()
        finally:
            for created_folder in [] if is_wanted else created_folders:
                with contextlib.suppress(OSError):  # others have left something there
                    os.rmdir(created_folder)
        return is_wanted
