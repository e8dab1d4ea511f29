"""What each Lithops backend allows, and whether a map fits it: checked before anything is started."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from polarmap.clouds.runtimes import RUNTIMES
from polarmap.errors import LimitError, warn

MB = 2**20
GB = 2**30
# Lithops, numpy and a cloud's client library take 75 MB, the runtime around them up to as much again.
BASE_BYTES = 150 * MB
BLOCK_COPIES = 2  # of its block that a worker holds while it unpacks what it fetched


@dataclass(frozen=True)
class Backend:
    """The limits of one compute backend. Memory in MB, time in seconds.

    Attributes
    ----------
    sizes
        Memory sizes there are; empty if any between `least_memory` and `most_memory` will do.
    most_seconds
        Seconds of one call, None if the backend sets no limit of its own.
    concurrency
        Calls at a time by default; the account's own quota may differ.
    checked, source
        When and where these figures were read.
    """

    name: str
    least_memory: int
    most_memory: int
    sizes: tuple[int, ...]
    most_seconds: int | None
    concurrency: int | None
    checked: str
    source: str


# Each has a folder in backends/, which says what a runtime is deployed from.
BACKENDS = {
    one.name: one
    for one in (
        Backend(
            "aws_lambda", 128, 10_240, (), 900, 1000, "2026-11-24",
            "https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html",
        ),
        Backend(
            # Driven by events, as Lithops' default trigger pub/sub makes them.
            "gcp_functions", 128, 32_768, (128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768), 540,
            100, "2026-11-24", "https://cloud.google.com/functions/quotas",
        ),
        Backend(
            "azure_functions", 512, 4096, (512, 2048, 4096), None, 100, "2026-11-24",
            "https://learn.microsoft.com/en-us/azure/azure-functions/flex-consumption-plan",
        ),
        Backend("k8s", 1, 2**20, (), None, None, "2026-11-24", "the cluster's own: its nodes"),
        Backend(
            "gcp_cloudrun", 128, 32_768, (), 3600, 100, "2026-11-24",
            "https://cloud.google.com/run/docs/configuring/services/memory-limits",
        ),
        Backend(
            # Lithops lets no app have more replicas than 30.
            "azure_containers", 512, 8192, tuple(range(512, 8193, 512)), None, 30, "2026-11-29",
            "lithops 3.8.0, ALLOWED_MEM",
        ),
        Backend(
            "code_engine", 256, 32_768,
            (256, 512, 1024, 2048, 4096, 8192, 12_288, 16_384, 24_576, 32_768), None, None, "2026-11-29",
            "lithops 3.8.0, VALID_MEMORY_VALUES",
        ),
        Backend(
            "aws_batch", 512, 122_880, (), None, None, "2026-11-29",
            "lithops 3.8.0, AVAILABLE_CPU_MEM_FARGATE",
        ),
        *(
            Backend(name, 1, 2**20, (), None, None, "2026-11-29", "the machine's own")
            for name, runtime in RUNTIMES.items()
            if runtime.is_machine
        ),
    )
}  # fmt: skip
# Backend and trigger -> its limits where they are others than those above.
TRIGGERED = {("gcp_functions", "https"): replace(BACKENDS["gcp_functions"], most_seconds=3600)}

# Bytes of the largest object one PUT can make, which is how Lithops stores.
LARGEST_OBJECT = {
    "ibm_cos": 5 * GB,
    "aws_s3": 5 * GB,  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/upload-objects.html
    "minio": 5 * GB,
    "ceph": 5 * GB,
    "gcp_storage": 5 * 1024 * GB,  # https://cloud.google.com/storage/quotas
    # 50,000 parts of the client's 4 MB: https://learn.microsoft.com/en-us/azure/storage/blobs/scalability-targets
    "azure_storage": 50_000 * 4 * MB,
    "redis": 512 * MB,  # https://redis.io/docs/latest/develop/data-types/strings/
}


@dataclass(frozen=True)
class Worker:
    """What a Lithops configuration gives each worker; backend and storage are Lithops' names.

    Attributes
    ----------
    memory
        In MB.
    seconds
        That one task may take; None if unknown.
    workers
        At a time; None if unknown.
    trigger
        How calls reach the backend, where there is a choice.
    interval
        Seconds between two looks of the driver for finished tasks.
    processors
        Of each, where the configuration says.
    kind
        What it runs on, where there is a choice: Batch's environment, or the type of a virtual machine, and
        "spot" before those of spot markets.
    """

    backend: str
    storage: str
    memory: int
    seconds: float | None = None
    workers: int | None = None
    trigger: str = ""
    interval: float = 2.0
    processors: float | None = None
    kind: str = ""

    @property
    def limits(self) -> Backend | None:
        """What the backend allows; None if polarmap does not know."""
        return TRIGGERED.get((self.backend, self.trigger), BACKENDS.get(self.backend))

    @property
    def granted(self) -> int:
        """MB that the backend makes of `memory`: Azure rounds up to a size there is."""
        sizes = self.limits.sizes if self.limits is not None else ()
        return next((size for size in sizes if size >= self.memory), sizes[-1] if sizes else self.memory)


def worker_of(config: Mapping[str, Any]) -> Worker | None:
    """What a complete Lithops configuration, as an executor of Lithops holds it, gives each worker.

    >>> worker_of({"lithops": {"backend": "k8s", "storage": "minio"}, "k8s": {"runtime_memory": 512}}).memory
    512
    """
    general = config.get("lithops") or {}
    own = config.get(general.get("backend", "")) or {}
    if not isinstance(own.get("runtime_memory"), int):
        return None
    return Worker(
        backend=general["backend"],
        storage=general.get("storage", ""),
        memory=own["runtime_memory"],
        seconds=own.get("runtime_timeout", (config.get("standalone") or {}).get("hard_dismantle_timeout")),
        workers=_most_tasks(general["backend"], own),
        trigger=own.get("trigger", ""),
        interval=general.get("monitoring_interval", 2.0),
        processors=own.get("runtime_cpu"),
        kind=_kind(own),
    )


def _most_tasks(backend: str, own: Mapping[str, Any]) -> int | None:
    """Tasks at a time that a section allows: of a virtual machine, several."""
    most = own.get("max_workers")
    is_machine = backend in RUNTIMES and RUNTIMES[backend].is_machine
    each = own.get("worker_processes", "AUTO") if is_machine else 1
    return None if most is None or each == "AUTO" else int(most * each)


def _kind(own: Mapping[str, Any]) -> str:
    """What a section says that its workers run on."""
    spot = "spot " if own.get("request_spot_instances") else ""
    return spot + str(own.get("env_type") or own.get("worker_instance_type") or "")


@dataclass(frozen=True)
class MapSize:
    """How large a map is: workers, data blocks, bytes of the largest coded block.

    Attributes
    ----------
    rows
        Of a block of an array that was cut, None for a sequence of blocks.
    """

    n: int
    k: int
    block_bytes: int
    rows: int | None = None


def check(worker: Worker, asked: MapSize) -> None:
    """Refuse a map that its backend cannot run, before anything is stored or started.

    Raises
    ------
    LimitError
        A block that does not fit the memory of a worker or an object of the storage, or a time
        that the backend does not allow; the message says what to change.

    Warns
    -----
    RuntimeWarning
        If more workers are wanted than run at a time: the rest waits behind stragglers.

    Examples
    --------
    >>> worker = Worker("aws_lambda", "aws_s3", memory=2048)
    >>> check(worker, MapSize(n=32, k=24, block_bytes=500 * 2**20, rows=1000))
    >>> try:
    ...     check(worker, MapSize(n=32, k=24, block_bytes=1900 * 2**20, rows=1000))
    ... except LimitError as error:
    ...     print(error)
    a 1.9 GB block does not fit a 2048 MB worker of aws_lambda, which needs 3.9 GB to hold it and a copy \
before f takes any: use blocks >= 49 or runtime_memory >= 3950
    """
    backend = worker.limits
    if backend is None:
        return
    _check_seconds(worker, backend)
    _check_memory(worker, backend, asked)
    _check_object(worker, asked)
    most = at_a_time(worker)
    if most is not None and asked.n > most:
        warn(
            f"workers = {asked.n}, but {worker.backend} runs {most} at a time (max_workers): "
            f"{asked.n - most} wait until others end, stragglers among them; "
            f"raise max_workers or use workers <= {most}"
        )


def check_task_seconds(worker: Worker, seconds: float) -> None:
    """Refuse tasks that usually take longer than the worker may.

    >>> check_task_seconds(Worker("aws_lambda", "aws_s3", 1769, seconds=180), 20.0)
    """
    backend = worker.limits
    least = min((one for one in (worker.seconds, backend and backend.most_seconds) if one), default=math.inf)
    if seconds > least:
        longest = f" (at most {backend.most_seconds})" if backend and backend.most_seconds else ""
        raise LimitError(
            f"most tasks take {seconds:.3g} s, {worker.backend} ends them after {least:g} s: use more blocks "
            f"or raise runtime_timeout{longest}"
        )


def at_a_time(worker: Worker) -> int | None:
    """How many workers run at once; None if nothing is known.

    >>> at_a_time(Worker("aws_lambda", "aws_s3", 1769)), at_a_time(Worker("k8s", "minio", 512, workers=8))
    (1000, 8)
    """
    return worker.workers or (worker.limits.concurrency if worker.limits is not None else None)


def kept_bytes(worker: Worker) -> int:
    """Bytes of blocks that a worker may keep from map to map: half of what its runtime leaves.

    >>> kept_bytes(Worker("aws_lambda", "aws_s3", 1769)) // 2**20
    809
    """
    return max(0, worker.granted * MB - BASE_BYTES) // 2


def memory_needed(block_bytes: int) -> int:
    """Bytes of memory that a worker needs at least to get at its block."""
    return BASE_BYTES + BLOCK_COPIES * block_bytes


def _check_seconds(worker: Worker, backend: Backend) -> None:
    if worker.seconds and backend.most_seconds and worker.seconds > backend.most_seconds:
        raise LimitError(
            f"runtime_timeout is {worker.seconds:g} s, {worker.backend} ends a call after "
            f"{backend.most_seconds} s: lower it, and use more blocks if a task takes longer"
        )


def _check_memory(worker: Worker, backend: Backend, asked: MapSize) -> None:
    need = memory_needed(asked.block_bytes)
    if need <= worker.granted * MB:
        return
    largest = (worker.granted * MB - BASE_BYTES) // BLOCK_COPIES
    advice = [_more_blocks(asked, largest)]
    size = _size_for(need, backend)
    if size is not None:
        advice.append(f"runtime_memory >= {size}")
    raise LimitError(
        f"a {_size(asked.block_bytes)} block does not fit a {worker.granted} MB worker of {worker.backend}, "
        f"which needs {_size(need)} to hold it and a copy before f takes any: "
        + " or ".join(filter(None, advice))
    )


def _check_object(worker: Worker, asked: MapSize) -> None:
    largest = LARGEST_OBJECT.get(worker.storage)
    if largest is not None and asked.block_bytes > largest:
        raise LimitError(
            f"a {_size(asked.block_bytes)} block is larger than one object of {worker.storage} may be "
            f"({_size(largest)}): {_more_blocks(asked, largest)}"
        )


def _more_blocks(asked: MapSize, largest: int) -> str:
    """How to cut so that no block weighs more than `largest` bytes."""
    if asked.rows is None:
        return f"use blocks of at most {_size(max(largest, 0))}"
    rows = largest * asked.rows // asked.block_bytes
    if rows < 1:
        return "no number of blocks helps, as one row is too large"
    return f"use blocks >= {math.ceil(asked.k * asked.rows / rows)}"


def _size_for(need: int, backend: Backend) -> int | None:
    """The smallest memory in MB that is enough, if the backend has it."""
    sizes = backend.sizes or (max(backend.least_memory, math.ceil(need / MB)),)
    return next((size for size in sizes if need <= size * MB and size <= backend.most_memory), None)


def _size(count: int) -> str:
    """A number of bytes as text.

    >>> _size(1_992_294_400), _size(5 * 2**20)
    ('1.9 GB', '5.0 MB')
    """
    return f"{count / GB:.1f} GB" if count >= GB else f"{count / MB:.1f} MB"
