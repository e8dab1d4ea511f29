"""Serve a driver as a persistent worker: receive jobs and tasks, run each task, and send its reply.

    driver                                      worker
       <-- HELLO  process id, `WorkerIdentity` -
       --- JOB    `JobHeader`; f ------------->  reset the process, keep f for the tasks that follow
       --- TASK   (job, 7, 0), `BlockRef` ---->  read block 7 (cached for later jobs), call f with it
       <-- FETCH / SEGMENT --------------------> only if the block is stored by the driver
       <-- TASK_REPLY  (job, 7, 0), result ----
       --- CANCEL (job) ---------------------->  the job has ended: skip its queued tasks

One worker serves many jobs, and keeps data blocks and the user's function f in memory between them. Messages
are sent over a socket, or as objects in a storage. If an earlier f has changed the process irreversibly, the
worker replies UNUSABLE and exits, and the driver starts another worker. This module runs on workers, so it
imports at most numpy.
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
    """A worker that stays alive between jobs, runs the tasks that its driver sends, and replies.

    The driver is the process that runs the user's program. A job is one parallel map.

    Parameters
    ----------
    channel : SocketChannel or StorageChannel
        The connection to the driver.
    storage : lithops.Storage, optional
        The client for data blocks and results in buckets.
    block_cache : BlockCache, optional
        A cache of data blocks, shared by workers on several threads of this process. By default, the worker
        has its own cache.
    limit_threads : callable, optional
        Called without arguments; returns a context manager that wraps each task. Pass it only if this process
        also runs other code. The state of the process is then not reset between jobs.
    label : str, optional
        The name of the worker in reports, as given by the cluster. None if the driver has started the worker
        on its own machine.
    machine_address : str
        The address by which the cluster identifies the machine; empty if it has none.
    fetch_timeout : float
        The maximum time for reading a block from a bucket, in seconds.
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
        self._environment_bytes = b""  # the environment as the driver has sent it, pickled

        # A copy of the process environment, to detect whether the user's function has changed it.
        self._environment_snapshot: Any = None
        self._process_state = ProcessState() if limit_threads is None else None
        self._has_run_f = False  # whether a user function has run since the last reset of the process
        self._is_usable = True
        self._inbox = deque[Message]()  # messages that have arrived but are not handled yet
        self._attempt_key = -1, -1, -1  # the job, task and attempt of the current message
        self._job_header = JobHeader([], None, None, b"", None, [])
        self._function_data: bytes | bytearray | str = b""
        self._function_and_structure: tuple[Function, Structure] | None = None
        self._n_result_files = 0  # the number of result files that this worker has written
        self._block_cache = BlockCache() if block_cache is None else block_cache
        # Cache decoded references to blocks, because all jobs on the same data send the same references.
        self._parse_block_ref = lru_cache(256)(partial(decode_record, BlockRef))
        self._sent_modules = SentModuleFinder()

    def serve(self, deadline: float = inf) -> None:
        """Handle the driver's messages until it disconnects.

        Return early if this process becomes unusable for further tasks, or once the deadline has passed.

        Parameters
        ----------
        deadline : float
            A time on the clock `time.monotonic()`. It is checked between tasks, and does not interrupt a
            running task.
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
        """Return the machine and the name of this worker, encoded as bytes to be sent to the driver.

        The bytes are empty if the driver has started the worker on its own machine.
        """
        if self._label is None:
            return b""
        return WorkerIdentity(self._machine_address, socket.gethostname(), self._label).encode()

    def _send(self, message: Message) -> None:
        """Send a message to the driver. Raises ConnectionError if the driver has disconnected."""
        if not self._channel.send(message):
            raise ConnectionError("the driver has disconnected")

    def _receive(self, timeout: float | None) -> None:
        """Wait up to `timeout` seconds for messages (None: forever), and append them to the inbox.

        Raises ConnectionError if the driver has disconnected.
        """
        messages, is_connected = self._channel.receive(timeout)
        self._inbox += messages
        if not (messages or is_connected):
            raise ConnectionError("the driver has disconnected")

    def handle_message(self, message: Message) -> bool:
        """Handle a message from the driver. Return False if the worker must exit."""
        if message.kind == MessageKind.MODULES:
            self._sent_modules.add_sources(pickle.loads(message.data))
        if message.kind == MessageKind.JOB:
            return self._start_job(message)
        if message.kind == MessageKind.TASK:
            self._send_reply(self._run_task(message))
        # Reset the process as soon as a job ends, so that the next job does not have to wait.
        if message.kind == MessageKind.CANCEL:
            self._restore_process_state()
        return self._is_usable

    def _restore_process_state(self) -> str:
        """Undo changes that user functions have made to the process, for example to its recursion limit.

        Return "" on success, or else the name of something that cannot be restored, such as a signal handler.
        """
        unrestored = ""
        if self._process_state and self._has_run_f:
            unrestored = self._process_state.restore_or_describe_change()
        self._has_run_f = bool(unrestored)
        return unrestored

    def _start_job(self, job_message: Message) -> bool:
        """Prepare this process for the tasks of a job.

        Return False if an earlier job has changed the process irreversibly. In that case, the driver is
        notified, and the worker must exit.

        Parameters
        ----------
        job_message : Message
            A JOB message. Its attempt key is that of the first task, and its header is a `JobHeader`. Its
            data are the user's function and the structure of the blocks, pickled by `pickle_to_array`. They
            are empty if both are unchanged since the previous job.
        """
        self._attempt_key, self._function_and_structure = job_message.attempt_key, None
        self.job_id, *_ = job_message.attempt_key
        if unrestored := self._restore_process_state():
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
        """Run a task, and return the reply to send to the driver, or None if the task was cancelled.

        Parameters
        ----------
        task_message : Message
            A TASK message. Its header is a `BlockRef`, and its data are `TaskOptions` or empty.
        """
        self._attempt_key, options = task_message.attempt_key, TaskOptions(None, None)
        block_ref = self._parse_block_ref(bytes(task_message.header))
        if task_message.data:
            options = decode_record(TaskOptions, bytes(task_message.data))
        self.receive_pending_messages()
        if self.is_cancelled():  # The job ended while this task was waiting.
            return None
        task_and_attempt, header = task_message.attempt_key[1:], self._job_header
        shared_fields = header.output, header.encryption
        request = TaskRequest(
            *task_and_attempt, block_ref, options.fault, *shared_fields, options.n_data_rows
        )
        with self._limit_threads():
            return run_task(request, self)

    def load_inputs(self, request: TaskRequest) -> tuple[Function, Any]:
        """Return the user's function f, and the block to call it with.

        The function is unpickled once per job. In the first attempt of a task, the block is the cached block,
        which is read-only. A retry gets a writable copy, because compiled code in f may have crashed while
        writing to read-only memory.

        Raises UnusableWorkerError if a failure is due to this process, for example because it is out of
        memory.
        """
        if self._function_and_structure is None:
            data = self._function_data
            if isinstance(data, str) and not self._has_file(data):
                data = self._function_data = self.fetch_from_driver(Segment(data, 0))
            try:
                f, structure = unpickle_data_or_file(data)
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
        """Mark this worker as unusable, so that it exits after this task. Return the error to raise."""
        self._is_usable = False
        return UnusableWorkerError(f"its worker could not {failed_action}: {type(error).__name__}: {error}")

    def receive_pending_messages(self) -> None:
        """Read messages that have already arrived, without blocking.

        Raises ConnectionError if the driver has disconnected.
        """
        self._receive(0.0)

    def is_cancelled(self) -> bool:
        """Return whether the driver has cancelled the current job, according to the messages read so far."""
        return any(
            item.kind == MessageKind.CANCEL and item.attempt_key[0] == self.job_id for item in self._inbox
        )

    def read_segment(self, location: Location, segment: Segment) -> Any:
        """Return the bytes of a segment (a byte range of a stored object).

        Raises TimeoutError if the storage does not return the whole block in time.
        """
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
        """Request a segment (a byte range of a stored object) from the driver, and return its bytes.

        On the driver's machine, read the segment from the folder `private_root` instead, if this is given.
        Raises InterruptedError if the task is cancelled, or if the driver cannot read the segment.
        """
        if private_root is not None and self._has_file(os.path.join(private_root, segment.key)):
            return read_private_segment(private_root, segment)
        segment_range = encode_segment_range(segment)
        self._send(Message(MessageKind.FETCH, self._attempt_key, segment_range))
        while True:
            self.receive_pending_messages()
            # Use a segment that has already arrived, even if the task has been cancelled.
            for message in self._inbox:
                if (
                    message.kind in (MessageKind.SEGMENT, MessageKind.NO_SEGMENT)
                    and message.header == segment_range
                ):
                    self._inbox.remove(message)
                    if message.kind == MessageKind.NO_SEGMENT:
                        raise InterruptedError("the driver cannot read the block of this task")
                    return message.data
            if self.is_cancelled():
                raise InterruptedError("the task was cancelled")
            self._receive(None)

    def _has_file(self, path: str) -> bool:
        """Return whether the driver's file at `path` can be read on this machine."""
        return self._label is None or is_in_private_folder(path)

    def _send_reply(self, reply: Message | None) -> None:
        """Send a task's reply to the driver. If `reply` is None, report that the task was cancelled.

        If the worker shares a folder with the driver, a large result is written to a file there.
        """
        if reply is not None and len(reply.data) > MAX_INLINE_BYTES and self._job_header.result_folders:
            reply = self._move_data_to_file(reply)
        message = reply or Message(MessageKind.CANCELLED, self._attempt_key)
        self._send(message if self._is_usable else message._replace(kind=MessageKind.FINAL_REPLY))

    def _move_data_to_file(self, reply: Message) -> Message | None:
        """Write the result in a reply to a file, and return a reply that names the file instead.

        The file is in a folder that the driver can read. Return None if the task was cancelled, or the
        unchanged reply if no such folder has enough space.
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
            except OSError:  # The disk may be full, or the driver may have removed the folder.
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, file_name))
            else:
                return reply._replace(data=ResultFileRef(folder_index, file_name).encode(), is_file=True)
        return reply

    def _create_folder_if_wanted(self, folder: str) -> bool:
        """Create a folder for results if it does not exist. Return whether the driver still wants results.

        First create the folder, and then check whether the task was cancelled. If so, remove the new folder
        again, and return False. This order ensures that the worker does not leave a folder behind: before a
        driver removes its folders, it sends CANCEL or disconnects.
        """
        created_folders, is_wanted = [folder], False
        try:
            with contextlib.suppress(OSError):
                if ensure_private_folder(os.path.dirname(folder)):
                    created_folders.append(os.path.dirname(folder))
                os.mkdir(folder)
            self.receive_pending_messages()
            is_wanted = not self.is_cancelled()
        finally:
            for created_folder in [] if is_wanted else created_folders:
                with contextlib.suppress(OSError):  # Keep the folder if other workers have put files there.
                    os.rmdir(created_folder)
        return is_wanted
