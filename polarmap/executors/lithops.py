"""Lithops: the tasks of a map as functions, or persistent workers; here, by a configuration or an
executor.
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
    delete_prefix,
    make_lithops_task,
)
from polarmap.worker.locations import BucketLocation
from polarmap.worker.retries import retry_request
from polarmap.worker.task_records import to_plain_tuple
from polarmap.worker.worker_entry import DriverAddress, make_worker_task

JOB_KEY_PREFIX = "polarmap"  # of all keys of maps
DELETE_RETRY_PAUSES = (0.0, 0.1, 0.5, 2.0, 0.0)  # seconds before looking again whether objects are gone
PARITY_NICE = 10  # parity must not take the cores of this machine from data tasks that are doing fine
# that a worker on this machine may take: in milliseconds this fits 32 bits
LOCAL_WORKER_SECONDS = 20 * 86_400.0
STARTUP_MARGIN_SECONDS = 15.0  # of what a cloud allows, for starting and reporting


class LithopsExecutor(WorkerHost):
    """Tasks as functions of Lithops. A FunctionExecutor of our own is opened for each map and ended with it.

    Parameters
    ----------
    source : LithopsSource
        Where the FunctionExecutors of maps come from.
    """

    name = "localhost"

    def __init__(self, source: LithopsSource) -> None:
        self._source, self.prefers_persistent_workers = source, source.is_config
        if source.read_config is not None:
            config = source.read_config()
            self.name, self.worker_spec = f"lithops/{config['lithops']['backend']}", parse_worker_spec(config)
        self.is_local = self.name in ("localhost", "lithops/localhost")

    def open(self, job_spec: JobSpec) -> LithopsSession:
        """Return a session for the tasks of one job.

        Raises ExecutorError if Lithops takes no jobs, or if workers cannot reach the storage of the blocks.
        """
        check_key_is_portable(job_spec, self.name)
        invocations = LithopsInvocations(self._source, shares_executor=True)
        try:
            invocations.reach.check_job(job_spec)
            return LithopsSession(invocations, job_spec)
        except BaseException:
            invocations.close()
            raise

    def choose_storage(self, data: Any) -> Any:
        """Return the storage that the functions reach."""
        return self._source.get_storage()

    def make_worker_provider(self) -> WorkerProvider:
        """Return what starts functions that persist."""
        return LithopsWorkerProvider(self._source)


class LithopsSession:
    """The tasks of one map through Lithops; blocks are raw objects."""

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
        self._has_seen_progress = False  # that a task has begun or ended

    def submit(self, attempts: Sequence[AttemptId]) -> None:
        """Store the blocks, then start one job: functions rented by the second must not wait."""
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
            pickle_function(self._job_spec.f, self._invocations.name)  # the likely reason, in plain words
            raise

    def wait(self, timeout: float) -> list[Event]:
        """What Lithops' monitor thread has seen."""
        deadline, events = time.monotonic() + timeout, list[Event]()
        while True:
            outcomes = self._poll_outcomes(events)
            remaining_seconds = deadline - time.monotonic()
            if outcomes or remaining_seconds <= 0 or self._is_woken:
                self._is_woken = False
                return [*events, *outcomes]
            self._invocations.wait(remaining_seconds)

    def cancel(self, attempts: Sequence[AttemptId]) -> None:
        """Nothing: functions run to their end, or that of the map."""

    def wake(self) -> None:
        """Let the wait end without an outcome."""
        self._is_woken = True
        self._invocations.wake()

    def cancel_queued(self) -> list[AttemptStarted]:
        """Return the attempts that Lithops has seen begin by now.

        With "localhost" also those that it has not: each has had a process of its own since it was submitted.
        """
        now = time.monotonic()
        include_unseen = self._invocations.uses_private_folder
        started_ids = self._invocations.collect_started_keys(include_unseen=include_unseen)
        return [AttemptStarted(task, attempt, now) for task, attempt in started_ids]

    def close(self) -> PersistentUsage | None:
        """Take the liveness key away, drop or kill what is pending, remove the objects."""
        self._block_store.close()
        with contextlib.suppress(Exception):
            self._storage.delete_object(self._storage.bucket, f"{self._key_prefix}/{LIVENESS_KEY}")
        delete_objects_below(self._storage, [f"{self._key_prefix}/", *self._invocations.close()])
        return None

    def _poll_outcomes(self, start_events: list[Event]) -> list[Outcome]:
        """All that has ended since the last look; what has begun is added to `start_events`."""
        outcomes = list[Outcome]()
        results = self._invocations.collect_finished_results(may_query=not self._has_seen_progress)
        for attempt, reply in results.items():
            if isinstance(reply, InterpreterError):
                raise ExecutorError(f"{self._invocations.name} runs no task: {reply}")
            outcomes.append(self._to_outcome(attempt, reply))
        now = time.monotonic()
        started_keys = self._invocations.collect_started_keys()
        start_events += [AttemptStarted(task, attempt, now) for task, attempt in started_keys]
        self._has_seen_progress |= bool(start_events or outcomes)
        return outcomes

    def _to_outcome(self, attempt: AttemptId, reply: Any) -> Outcome:
        """What became of an attempt whose function returned this, or an InvocationLostError in its place."""
        if reply is None:
            return make_lost_worker_outcome(*attempt, "it was told that nobody waits for it")
        if isinstance(reply, InvocationLostError):
            return make_lost_worker_outcome(*attempt, str(reply))
        outcome = self._job_spec.decode_reply(*attempt, *reply)
        if outcome.failure is not None:
            self._published_blocks.invalidate_if_damaged(self._job_spec.blocks, outcome.task, outcome.failure)
        return outcome


class LithopsWorkerProvider(WorkerProvider):
    """Persistent workers: functions, on FunctionExecutors of our own, that return when their time is over.

    Parameters
    ----------
    source : LithopsSource
    """

    def __init__(self, source: LithopsSource) -> None:
        self._invocations = LithopsInvocations(source)
        self._has_stored_objects = False  # whether the storage has taken anything
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
        """In the storage of the configuration."""
        server = StorageChannelServer(self.storage, self.key_prefix, on_connected)
        self._has_stored_objects = True
        return server

    def launch_workers(
        self,
        driver_address: DriverAddress,
        lifetimes: Mapping[int, float],
        machine_by_worker: Mapping[int, str] = NO_MACHINE_CHOICES,
    ) -> None:
        """Start one job."""
        worker_arguments = {key: {"worker": (key, seconds)} for key, seconds in lifetimes.items()}
        function_executor = self._invocations.get_executor_for_next_job(len(lifetimes))
        slow_down_monitoring(function_executor)
        task, timeout = make_worker_task(driver_address), int(self.max_worker_seconds)
        self._invocations.invoke(function_executor, task, worker_arguments, timeout=timeout)

    def collect_exited_workers(self, may_query: bool = True) -> dict[int, str]:
        """Those of which Lithops knows that they have ended, and why.

        may_query : the interpreter of those that have ended without a word.
        """
        finished = self._invocations.collect_finished_results(may_query)
        if finished:
            self._block_store.garbage_prefixes += self._invocations.close_idle_executors()
        return {
            worker_id: str(reply) if isinstance(reply, InvocationLostError) else ""
            for worker_id, reply in finished.items()
        }

    def remove_leftover_objects(self) -> None:
        """Remove the objects of Lithops that those that have ended have left."""
        self._block_store.collect_garbage()

    def close(self) -> None:
        """Kill what Lithops can kill, remove all objects."""
        self._block_store.close()
        leftover_prefixes = self._invocations.close()
        if self._has_stored_objects:
            prefixes = [f"{self.key_prefix}/", *leftover_prefixes, *self._block_store.garbage_prefixes]
            delete_objects_below(self.storage, prefixes)

    def make_block_store(self) -> BucketBlockStore:
        """In the bucket of the configuration."""
        return self._block_store

    def collect_module_sources(self, pickled_function: bytes) -> Mapping[str, tuple[str, bool]]:
        """Sources of the modules that a pickled function names and workers may not have."""
        try:
            return collect_module_sources(pickled_function, self._invocations.function_executor)
        except Exception as error:  # the runtime is asked what it has
            raise ExecutorError(f"{self.name} takes no job: {type(error).__name__}: {error}") from error


def compute_max_worker_seconds(worker_spec: WorkerSpec | None) -> float:
    """That a worker may take where it is given so much."""
    if worker_spec is None or worker_spec.timeout_seconds is None:
        return LOCAL_WORKER_SECONDS
    return max(1.0, worker_spec.timeout_seconds - STARTUP_MARGIN_SECONDS)


class BucketBlockStore(BlockStore):
    """Blocks as objects in the bucket of a `lithops.Storage`."""

    holds_bytes = writes_in_parallel = True

    def __init__(self, storage: Any, key_prefix: str) -> None:
        super().__init__()
        self.location, self._storage = BucketLocation(storage.bucket, storage.backend), storage
        self._key_prefix, self._is_closed = key_prefix, False

    def close(self) -> None:
        """Keep no object that is stored from now on. The caller removes those that are stored by now."""
        self._is_closed = True

    def allocate_key_prefixes(self, block_set_id: int, n_bytes: int) -> list[str]:
        """Return the one key prefix of a set."""
        return [f"{self._key_prefix}/blocks/{block_set_id}/"]

    def put_segment(self, segment_key: str, buffers: Sequence[Any]) -> int:
        """Store an object. Raises ExecutorError if the storage refuses it, or if this store is closed."""
        bucket, data = self._storage.bucket, b"".join(buffers)
        self._check_open()
        try:
            retry_request(partial(self._storage.put_object, bucket, segment_key, data))
        except Exception as error:
            raise ExecutorError(
                f"nothing can be stored in bucket {bucket!r}: {type(error).__name__}: {error}"
            ) from error
        if self._is_closed:  # since the request was made: whoever removes all objects may have been sooner
            delete_prefix(self._storage, bucket, segment_key)
        self._check_open()
        return zlib.crc32(data)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ExecutorError("a block was not stored: its map or its Pool is closed")

    def remove_segments_below(self, key_prefixes: Sequence[str]) -> None:
        """Delete objects."""
        for key_prefix in key_prefixes:
            delete_prefix(self._storage, self._storage.bucket, key_prefix)


def delete_objects_below(storage: Any, key_prefixes: Sequence[str]) -> None:
    """Remove what lies below them; a storage that is down must not hide why a map ended."""
    try:
        for key_prefix in key_prefixes:
            for pause in DELETE_RETRY_PAUSES:
                if not delete_prefix(storage, storage.bucket, key_prefix):
                    break
                time.sleep(pause)
            else:
                raise StorageError(f"the storage does not delete what lies below {key_prefix!r}")
    except Exception as error:
        warn(f"objects below {', '.join(key_prefixes)} in bucket {storage.bucket!r} may be left: {error}")
