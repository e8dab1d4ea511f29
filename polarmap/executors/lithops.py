"""Runs tasks as Lithops (cloud) functions, or starts persistent workers as long-running functions.

`LithopsExecutor` opens a session for each map, and `LithopsWorkerProvider` starts the workers of a `Pool`.
Both store blocks as objects in a bucket, and start functions through `LithopsInvocations`.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from polarmap.clouds.limits import WorkerSpec, parse_worker_spec
from polarmap.clouds.prices import PersistentUsage
from polarmap.errors import ExecutorError, StorageError, warn
from polarmap.executors.block_store import BlockStore
from polarmap.executors.encryption_keys import check_key_is_portable
from polarmap.executors.interface import (
    AttemptId,
    AttemptStarted,
    Event,
    JobSpec,
    Outcome,
    make_lost_worker_outcome,
)
from polarmap.executors.lithops_internals import (
    InvocationLostError,
    collect_module_sources,
    list_job_key_prefixes,
    slow_down_monitoring,
)
from polarmap.executors.lithops_invocations import (
    InterpreterError,
    LithopsInvocations,
    LithopsSource,
    open_lithops_storage,
)
from polarmap.executors.persistent_executor import WorkerHost
from polarmap.executors.pickling import PickledModuleState, pickle_function
from polarmap.executors.remote_workers import NO_MACHINE_CHOICES, WorkerProvider
from polarmap.executors.storage_channels import OnConnected, StorageChannelServer
from polarmap.executors.temp_folders import get_process_temp_folder
from polarmap.worker.lithops_tasks import (
    LIVENESS_KEY,
    LithopsTaskAddress,
    delete_objects_with_prefix,
    make_lithops_task,
)
from polarmap.worker.locations import BucketLocation
from polarmap.worker.retries import retry_request
from polarmap.worker.task_records import to_plain_tuple
from polarmap.worker.worker_entry import DriverAddress, make_worker_task

# The keys of all objects of a job begin with this prefix. Stored arrays have other prefixes, because a bucket
# may have a lifecycle rule that deletes leftover objects of jobs after a day.
JOB_KEY_PREFIX = "polarmap/jobs"
# Pauses, in seconds, between checks for whether objects have been deleted.
DELETE_RETRY_PAUSES = (0.0, 0.1, 0.5, 2.0, 0.0)
MAX_PARALLEL_WRITES = 16  # the maximum number of objects that are written at the same time
# Added to the niceness of parity tasks, whose results may not be needed, so that data tasks run first.
PARITY_NICE = 10
# The maximum lifetime of a worker on this machine: 20 days, in seconds. The same time in milliseconds must
# fit into a signed 32-bit integer.
LOCAL_WORKER_SECONDS = 20 * 86_400.0
# Seconds of a function's time limit that are reserved for startup and reporting.
STARTUP_MARGIN_SECONDS = 15.0


class LithopsExecutor(WorkerHost):
    """An executor that runs each task as a Lithops function.

    Maps use the FunctionExecutor that the user passed. If there is none, each map opens a new one.

    Parameters
    ----------
    source : LithopsSource
        The object that opens the FunctionExecutors of maps.
    """

    name = "localhost"

    def __init__(self, source: LithopsSource) -> None:
        self._source, self.prefers_persistent_workers = source, source.is_config
        if source.read_config is not None:
            config = source.read_config()
            self.name, self.worker_spec = f"lithops/{config['lithops']['backend']}", parse_worker_spec(config)
        self.is_local = self.name in ("localhost", "lithops/localhost")

    def open(self, job_spec: JobSpec) -> LithopsSession:
        """Open a session for a job, i.e. one call of a map function.

        Raises ExecutorError if Lithops cannot be used or workers cannot access the storage of the blocks.
        """
        check_key_is_portable(job_spec, self.name)
        invocations = LithopsInvocations(self._source, shares_executor=True)
        try:
            invocations.reach.check_job_storage_access(job_spec)
            return LithopsSession(invocations, job_spec)
        except BaseException:
            invocations.close()
            raise

    def choose_storage(self, data: Any) -> Any:
        """Return the storage that the Lithops functions can access.

        The return value can be passed to `encode` as `storage=`.
        """
        return self._source.get_storage()

    def make_worker_provider(self) -> WorkerProvider:
        """Return a provider that starts persistent workers on the same Lithops backend."""
        return LithopsWorkerProvider(self._source)


class LithopsSession:
    """A session that runs each task of a job as a Lithops function, which reads its block from a bucket."""

    now = staticmethod(time.monotonic)

    def __init__(self, invocations: LithopsInvocations, job_spec: JobSpec) -> None:
        self._invocations, self._job_spec = invocations, job_spec
        self._module_state = PickledModuleState(job_spec.f)
        self._storage = invocations.function_executor.storage
        self._key_prefix = f"{JOB_KEY_PREFIX}/{uuid.uuid4().hex}"
        self._block_store = BucketBlockStore(self._storage, self._key_prefix)
        self._published_blocks = self._block_store.acquire_blocks(job_spec)
        self._is_first_submit = True
        self._is_woken = False
        self._has_seen_progress = False  # True once any task has started or ended

    def submit(self, attempts: Sequence[AttemptId]) -> None:
        """Store the tasks' blocks, then start one Lithops job with a function for each task.

        The blocks are stored first, because functions are billed while they wait.
        """
        is_first, blocks = self._is_first_submit, self._job_spec.blocks
        self._is_first_submit = False
        self._published_blocks.publish_in_parallel(blocks, [task for task, _ in attempts])
        if is_first:
            self._block_store.put_segment(f"{self._key_prefix}/{LIVENESS_KEY}", [b"alive"])
        function_executor = self._invocations.get_executor_for_next_job()
        is_local, uses_folder = self._invocations.is_local, self._invocations.uses_private_folder
        task_address: LithopsTaskAddress = {
            "bucket": self._storage.bucket,
            "key_prefix": self._key_prefix,
            "niceness": 0,
            "driver_pid": os.getpid() if is_local else None,
            "scratch_folder": str(get_process_temp_folder()) if is_local and uses_folder else None,
            "job_prefixes": list_job_key_prefixes([function_executor.executor_id]) if is_local else (),
        }
        has_low_priorities = is_first and self._invocations.is_local
        low_priority_tasks = self._job_spec.low_priority_tasks if has_low_priorities else ()
        task_arguments = {}
        for task, attempt in attempts:
            block_ref = self._published_blocks.publish_block(blocks, task)
            request_fields = to_plain_tuple(self._job_spec.make_task_request(task, attempt, block_ref))
            niceness = PARITY_NICE if task in low_priority_tasks else 0
            address = {**task_address, "niceness": niceness}
            task_arguments[task, attempt] = {"fields": (request_fields, address)}
        try:
            task_function = make_lithops_task(self._job_spec.f, blocks.structure, self._module_state)
            self._invocations.invoke(function_executor, task_function, task_arguments)
        except ExecutorError:
            # The usual cause is that Lithops cannot pickle f. If so, the next call raises a clearer error.
            pickle_function(self._job_spec.f, self._invocations.name)
            raise

    def wait(self, timeout: float) -> list[Event]:
        """Block until a task ends, `timeout` seconds pass or `wake` is called. Return the new events."""
        deadline, events = time.monotonic() + timeout, list[Event]()
        while True:
            outcomes = self._poll_outcomes(events)
            remaining_seconds = deadline - time.monotonic()
            if outcomes or remaining_seconds <= 0 or self._is_woken:
                self._is_woken = False
                return [*events, *outcomes]
            self._invocations.wait(remaining_seconds)

    def cancel(self, attempts: Sequence[AttemptId]) -> None:
        """Do nothing: Lithops functions run until they end, or until the session is closed."""

    def wake(self) -> None:
        """Make the current or the next call of `wait` return soon."""
        self._is_woken = True
        self._invocations.wake()

    def cancel_queued(self) -> list[AttemptStarted]:
        """Return events for tasks that started since the last `wait`. Queued tasks cannot be cancelled.

        With "localhost", all submitted tasks count as started, because each of them has its own process.
        """
        now = time.monotonic()
        include_unseen = self._invocations.uses_private_folder
        started_ids = self._invocations.collect_started_keys(include_unseen=include_unseen)
        return [AttemptStarted(task, attempt, now) for task, attempt in started_ids]

    def close(self) -> PersistentUsage | None:
        """Abandon the running functions, and remove all stored objects.

        Running functions poll a liveness object in the storage. It is removed first, so that they notice the
        end of the job and exit.
        """
        self._block_store.close()
        with contextlib.suppress(Exception):
            self._storage.delete_object(self._storage.bucket, f"{self._key_prefix}/{LIVENESS_KEY}")
        delete_objects_below(self._storage, [f"{self._key_prefix}/", *self._invocations.close()])
        return None

    def _poll_outcomes(self, start_events: list[Event]) -> list[Outcome]:
        """Return the outcomes since the last call, and append new start events to `start_events`."""
        outcomes = list[Outcome]()
        results = self._invocations.collect_finished_results(may_query=not self._has_seen_progress)
        for attempt, reply in results.items():
            if isinstance(reply, InterpreterError):
                raise ExecutorError(f"{self._invocations.name} cannot run tasks: {reply}")
            outcomes.append(self._to_outcome(attempt, reply))
        now = time.monotonic()
        started_keys = self._invocations.collect_started_keys()
        start_events += [AttemptStarted(task, attempt, now) for task, attempt in started_keys]
        self._has_seen_progress |= bool(start_events or outcomes)
        return outcomes

    def _to_outcome(self, attempt: AttemptId, reply: Any) -> Outcome:
        """Convert the reply of a Lithops function to an `Outcome`.

        A function that was lost has an error instead of a reply, and a cancelled function has None.
        """
        if reply is None:
            return make_lost_worker_outcome(*attempt, "it was cancelled")
        if isinstance(reply, InvocationLostError):
            return make_lost_worker_outcome(*attempt, str(reply))
        outcome = self._job_spec.decode_reply(*attempt, *reply)
        if outcome.failure is not None:
            self._published_blocks.invalidate_if_damaged(self._job_spec.blocks, outcome.task, outcome.failure)
        return outcome


class LithopsWorkerProvider(WorkerProvider):
    """Starts persistent workers as Lithops functions, which return when their lifetime is over.

    Parameters
    ----------
    source : LithopsSource
        The object that opens new FunctionExecutors. The user's own FunctionExecutor is not used.
    """

    def __init__(self, source: LithopsSource) -> None:
        self._invocations = LithopsInvocations(source)
        self._has_stored_objects = False  # True if `close` may have to remove objects
        self.name = self._invocations.name
        self.shares_files = self._invocations.is_local
        self.reach = self._invocations.reach
        self.listing_interval = slow_down_monitoring(self._invocations.function_executor)
        config = self._invocations.function_executor.config
        self.worker_spec = None if self.shares_files else parse_worker_spec(config)
        self.max_workers = None if self.worker_spec is None else self.worker_spec.max_workers
        self.max_worker_seconds = compute_max_worker_seconds(self.worker_spec)
        self.storage = open_lithops_storage(self._invocations.function_executor)
        self.bucket = self.storage.bucket
        self.key_prefix = f"{JOB_KEY_PREFIX}/pool-{uuid.uuid4().hex}"
        self._block_store = BucketBlockStore(self.storage, self.key_prefix)

    def open_storage_channels(self, on_connected: OnConnected) -> StorageChannelServer:
        """Start message channels through the Lithops storage, for workers that cannot connect by TCP."""
        server = StorageChannelServer(self.storage, self.key_prefix, on_connected)
        self._has_stored_objects = True
        return server

    def launch_workers(
        self,
        driver_address: DriverAddress,
        lifetimes: Mapping[int, float],
        machine_by_worker: Mapping[int, str] = NO_MACHINE_CHOICES,
    ) -> None:
        """Start all workers in one Lithops job. Lithops chooses their machines."""
        worker_arguments = {key: {"worker": (key, seconds)} for key, seconds in lifetimes.items()}
        function_executor = self._invocations.get_executor_for_next_job(len(lifetimes))
        slow_down_monitoring(function_executor)
        task, timeout = make_worker_task(driver_address), int(self.max_worker_seconds)
        self._invocations.invoke(function_executor, task, worker_arguments, timeout=timeout)

    def collect_exited_workers(self, may_query: bool = True) -> dict[int, str]:
        """Return the workers whose Lithops function has ended, as a dict from worker id to reason.

        With `may_query`, also find out whether local workers exited early because their Python interpreter
        does not work.
        """
        finished = self._invocations.collect_finished_results(may_query)
        if finished:
            self._block_store.garbage_prefixes += self._invocations.close_idle_executors()
        return {
            worker_id: str(reply) if isinstance(reply, InvocationLostError) else ""
            for worker_id, reply in finished.items()
        }

    def remove_leftover_objects(self) -> None:
        """Remove the objects that Lithops has stored for exited workers."""
        self._block_store.collect_garbage()

    def close(self) -> None:
        """Kill the functions as far as Lithops can, and remove all stored objects."""
        self._block_store.close()
        leftover_prefixes = self._invocations.close()
        if self._has_stored_objects:
            prefixes = [f"{self.key_prefix}/", *leftover_prefixes, *self._block_store.garbage_prefixes]
            delete_objects_below(self.storage, prefixes)

    def make_block_store(self) -> BucketBlockStore:
        """Return a store that keeps blocks in the bucket of the Lithops configuration."""
        return self._block_store

    def collect_module_sources(self, pickled_function: bytes) -> Mapping[str, tuple[str, bool]]:
        """Return the modules that a pickled function needs and workers may not have installed.

        The result maps each module name to its source code and whether it is a package.
        """
        try:
            return collect_module_sources(pickled_function, self._invocations.function_executor)
        except Exception as error:  # Lithops queries the cloud for the runtime's modules, which may fail.
            raise ExecutorError(f"{self.name} cannot start a job: {type(error).__name__}: {error}") from error


def compute_max_worker_seconds(worker_spec: WorkerSpec | None) -> float:
    """Return the maximum lifetime of a persistent worker in seconds.

    On a cloud, this is the time limit of a function, less a margin for startup and reporting.
    """
    if worker_spec is None or worker_spec.timeout_seconds is None:
        return LOCAL_WORKER_SECONDS
    return max(1.0, worker_spec.timeout_seconds - STARTUP_MARGIN_SECONDS)


class BucketBlockStore(BlockStore):
    """A store that keeps blocks as objects in the bucket of a `lithops.Storage`."""

    holds_bytes, max_parallel_writes = True, MAX_PARALLEL_WRITES

    def __init__(self, storage: Any, key_prefix: str) -> None:
        super().__init__()
        self.location, self._storage = BucketLocation(storage.bucket, storage.backend), storage
        self._key_prefix, self._is_closed = key_prefix, False

    def close(self) -> None:
        """Refuse to store further objects. The caller removes the objects that are already stored."""
        self._is_closed = True

    def allocate_key_prefixes(self, block_set_id: int, n_bytes: int) -> list[str]:
        """Return one key prefix, unique to the set of blocks."""
        return [f"{self._key_prefix}/blocks/{block_set_id}/"]

    def put_segment(self, segment_key: str, buffers: Sequence[Any]) -> int:
        """Store an object and return its checksum.

        Raises ExecutorError if the storage refuses the object, or if this store is closed.
        """
        bucket, data = self._storage.bucket, b"".join(buffers)
        self._check_open()
        try:
            retry_request(partial(self._storage.put_object, bucket, segment_key, data))
        except Exception as error:
            raise ExecutorError(
                f"a block cannot be stored in bucket {bucket!r}: {type(error).__name__}: {error}"
            ) from error
        if self._is_closed:
            # The store was closed during the request. This object may have been written after the others were
            # removed, so remove it here.
            delete_objects_with_prefix(self._storage, bucket, segment_key)
        self._check_open()
        return zlib.crc32(data)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ExecutorError("a block was not stored: its map or its Pool is closed")

    def remove_segments_below(self, key_prefixes: Sequence[str]) -> None:
        """Delete all objects whose keys begin with one of the prefixes."""
        for key_prefix in key_prefixes:
            delete_objects_with_prefix(self._storage, self._storage.bucket, key_prefix)


def delete_objects_below(storage: Any, key_prefixes: Sequence[str]) -> None:
    """Delete all objects whose keys begin with one of the prefixes. Warn if that fails.

    Raising an exception instead could hide the reason why a map has ended.
    """
    try:
        for key_prefix in key_prefixes:
            for pause in DELETE_RETRY_PAUSES:
                if not delete_objects_with_prefix(storage, storage.bucket, key_prefix):
                    break
                time.sleep(pause)
            else:
                raise StorageError(f"the storage does not delete the objects below {key_prefix!r}")
    except Exception as error:
        warn(
            f"objects below {', '.join(key_prefixes)} in bucket {storage.bucket!r} were not deleted: {error}"
        )
