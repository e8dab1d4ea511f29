"""Limits of Lithops backends, and checks that a map stays within them before it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from polarmap.clouds.runtime_images import RUNTIME_IMAGES
from polarmap.errors import LimitError, warn

MB = 2**20
GB = 2**30
# The memory, in bytes, that a worker needs before it loads any data. Lithops, NumPy and the cloud's client
# library take about 75 MB, and the rest of the runtime up to another 75 MB.
RUNTIME_BYTES = 150 * MB
# A worker holds two copies of a block in memory while it loads the block: the fetched bytes and the arrays.
BLOCK_COPIES = 2


@dataclass(frozen=True)
class BackendLimits:
    """The limits of a compute backend, such as AWS Lambda.

    Attributes
    ----------
    name
        The name of the backend in Lithops.
    min_memory_mb, max_memory_mb
        The smallest and largest amount of memory a worker can have, in MB.
    memory_sizes_mb
        The memory sizes that the backend offers. Empty if it offers every size from `min_memory_mb` to
        `max_memory_mb`.
    max_seconds
        The time limit of a call in seconds; None if the backend sets no limit.
    default_concurrency
        The default limit on concurrent calls; None if there is no limit. Your account's quota may differ.
    as_of, source
        When and where these limits were looked up.
    """

    name: str
    min_memory_mb: int
    max_memory_mb: int
    memory_sizes_mb: tuple[int, ...]
    max_seconds: int | None
    default_concurrency: int | None
    as_of: str
    source: str


# The limits of each backend, by its name in Lithops. The files for building the backend's worker image are in
# the subfolder of backends/ with the same name.
BACKENDS = {
    one.name: one
    for one in (
        BackendLimits(
            "aws_lambda", 128, 10_240, (), 900, 1000, "2026-11-24",
            "https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html",
        ),
        BackendLimits(
            # The limit of 540 s applies to event-driven functions. Lithops creates them by default, because
            # its default trigger is pub/sub.
            "gcp_functions", 128, 32_768, (128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768), 540,
            100, "2026-11-24", "https://cloud.google.com/functions/quotas",
        ),
        BackendLimits(
            "azure_functions", 512, 4096, (512, 2048, 4096), None, 100, "2026-11-24",
            "https://learn.microsoft.com/en-us/azure/azure-functions/flex-consumption-plan",
        ),
        BackendLimits("k8s", 1, 2**20, (), None, None, "2026-11-24", "the cluster's own: its nodes"),
        BackendLimits(
            "gcp_cloudrun", 128, 32_768, (), 3600, 100, "2026-11-24",
            "https://cloud.google.com/run/docs/configuring/services/memory-limits",
        ),
        BackendLimits(
            # At most 30 calls run concurrently, because Lithops limits an app to 30 replicas.
            "azure_containers", 512, 8192, tuple(range(512, 8193, 512)), None, 30, "2026-11-29",
            "lithops 3.8.0, ALLOWED_MEM",
        ),
        BackendLimits(
            "code_engine", 256, 32_768,
            (256, 512, 1024, 2048, 4096, 8192, 12_288, 16_384, 24_576, 32_768), None, None, "2026-11-29",
            "lithops 3.8.0, VALID_MEMORY_VALUES",
        ),
        BackendLimits(
            "aws_batch", 512, 122_880, (), None, None, "2026-11-29",
            "lithops 3.8.0, AVAILABLE_CPU_MEM_FARGATE",
        ),
        *(
            BackendLimits(name, 1, 2**20, (), None, None, "2026-11-29", "the machine's own")
            for name, runtime in RUNTIME_IMAGES.items()
            if runtime.is_virtual_machine
        ),
    )
}  # fmt: skip

# Backends whose limits depend on how a function is triggered. The keys are pairs (backend, trigger). An entry
# takes precedence over the entry of the backend in BACKENDS.
LIMITS_BY_TRIGGER = {("gcp_functions", "https"): replace(BACKENDS["gcp_functions"], max_seconds=3600)}

# The maximum size of an object in bytes, by the name of the storage in Lithops. It is the limit of a single
# upload, because Lithops passes every object to the client library of the storage in one call (PUT).
MAX_OBJECT_BYTES = {
    "ibm_cos": 5 * GB,
    "aws_s3": 5 * GB,  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/upload-objects.html
    "minio": 5 * GB,
    "ceph": 5 * GB,
    # Azure stores an object in up to 50,000 parts, and its client library uploads parts of 4 MB:
    # https://learn.microsoft.com/en-us/azure/storage/blobs/scalability-targets
    "azure_storage": 50_000 * 4 * MB,
    "gcp_storage": 5 * 1024 * GB,  # https://cloud.google.com/storage/quotas
    "redis": 512 * MB,  # https://redis.io/docs/latest/develop/data-types/strings/
}


@dataclass(frozen=True)
class WorkerSpec:
    """The resources that a Lithops configuration gives each worker.

    Attributes
    ----------
    backend, storage
        The names of the compute backend and the storage in Lithops, such as "aws_lambda" and "aws_s3".
    memory_mb
        The memory of a worker, in MB.
    timeout_seconds
        The time limit of a task in seconds; None if unknown.
    max_workers
        The maximum number of concurrent tasks; None if unknown.
    trigger
        How functions are triggered, such as "https"; empty if the configuration does not specify it.
    poll_seconds
        The interval in seconds at which the driver polls for finished tasks.
    cpus
        The number of CPUs per worker; None if the configuration does not specify it.
    instance_type
        The environment of AWS Batch or the type of the virtual machines, with the prefix "spot " for spot
        instances. Empty for other backends.
    """

    backend: str
    storage: str
    memory_mb: int
    timeout_seconds: float | None = None
    max_workers: int | None = None
    trigger: str = ""
    poll_seconds: float = 2.0
    cpus: float | None = None
    instance_type: str = ""

    @property
    def backend_limits(self) -> BackendLimits | None:
        """The limits of the backend; None if polarmap does not know them."""
        return LIMITS_BY_TRIGGER.get((self.backend, self.trigger), BACKENDS.get(self.backend))

    @property
    def allocated_mb(self) -> int:
        """The memory that a worker gets, in MB: `memory_mb` rounded up to a size that the backend offers."""
        sizes = self.backend_limits.memory_sizes_mb if self.backend_limits is not None else ()
        return next(
            (size for size in sizes if size >= self.memory_mb), sizes[-1] if sizes else self.memory_mb
        )


def parse_worker_spec(config: Mapping[str, Any]) -> WorkerSpec | None:
    """Return the resources that a Lithops configuration gives each worker.

    Return None if the configuration does not set the memory (`runtime_memory` in the backend's section).

    >>> config = {"lithops": {"backend": "k8s", "storage": "minio"}, "k8s": {"runtime_memory": 512}}
    >>> parse_worker_spec(config).memory_mb
    512
    """
    lithops_section = config.get("lithops") or {}
    backend_section = config.get(lithops_section.get("backend", "")) or {}
    if not isinstance(backend_section.get("runtime_memory"), int):
        return None
    return WorkerSpec(
        backend=lithops_section["backend"],
        storage=lithops_section.get("storage", ""),
        memory_mb=backend_section["runtime_memory"],
        timeout_seconds=backend_section.get(
            "runtime_timeout", (config.get("standalone") or {}).get("hard_dismantle_timeout")
        ),
        max_workers=_parse_max_tasks(lithops_section["backend"], backend_section),
        trigger=backend_section.get("trigger", ""),
        poll_seconds=lithops_section.get("monitoring_interval", 2.0),
        cpus=backend_section.get("runtime_cpu"),
        instance_type=_parse_instance_type(backend_section),
    )


def _parse_max_tasks(backend: str, backend_section: Mapping[str, Any]) -> int | None:
    """Return how many tasks can run at the same time, or None if this is not known.

    This is the configured number of workers times the number of tasks that each of them runs at a time:
    `worker_processes` tasks for a virtual machine, and one task for any other worker.
    """
    max_workers = backend_section.get("max_workers")
    is_machine = backend in RUNTIME_IMAGES and RUNTIME_IMAGES[backend].is_virtual_machine
    tasks_per_worker = backend_section.get("worker_processes", "AUTO") if is_machine else 1
    return None if max_workers is None or tasks_per_worker == "AUTO" else int(max_workers * tasks_per_worker)


def _parse_instance_type(backend_section: Mapping[str, Any]) -> str:
    """Return the instance type of the workers, such as "t3.medium", or "" if none is configured.

    For spot instances, the type begins with "spot ".
    """
    spot_prefix = "spot " if backend_section.get("request_spot_instances") else ""
    return spot_prefix + str(
        backend_section.get("env_type") or backend_section.get("worker_instance_type") or ""
    )


@dataclass(frozen=True)
class MapSize:
    """The size of a map: the number of its tasks, and the size of their blocks.

    Attributes
    ----------
    n, k
        The number of tasks, and the number of data blocks.
    block_bytes
        The size of the largest coded block in bytes.
    rows
        The number of rows of a block; None if the user has passed a sequence of blocks.
    """

    n: int
    k: int
    block_bytes: int
    rows: int | None = None


def check_map_fits(worker_spec: WorkerSpec, map_size: MapSize) -> None:
    """Raise LimitError if a map exceeds the limits of its backend.

    Call this before anything is stored or started. Backends that polarmap does not know are not checked.

    Raises
    ------
    LimitError
        If a block does not fit into a worker's memory or into a storage object, or if the configured timeout
        exceeds the backend's limit. The message says what to change.

    Warns
    -----
    RuntimeWarning
        If the map has more tasks than can run concurrently, so that some tasks have to wait for others.

    Examples
    --------
    >>> worker = WorkerSpec("aws_lambda", "aws_s3", memory_mb=2048)
    >>> check_map_fits(worker, MapSize(n=32, k=24, block_bytes=500 * 2**20, rows=1000))
    >>> try:
    ...     check_map_fits(worker, MapSize(n=32, k=24, block_bytes=1900 * 2**20, rows=1000))
    ... except LimitError as error:
    ...     print(error)
    a 1.9 GB block does not fit a 2048 MB worker of aws_lambda, which needs 3.9 GB to hold it and a copy \
before f takes any: use blocks >= 49 or runtime_memory >= 3950
    """
    backend_limits = worker_spec.backend_limits
    if backend_limits is None:
        return
    _check_timeout(worker_spec, backend_limits)
    _check_memory(worker_spec, backend_limits, map_size)
    _check_object_size(worker_spec, map_size)
    max_tasks = get_max_concurrency(worker_spec)
    if max_tasks is not None and map_size.n > max_tasks:
        warn(
            f"workers = {map_size.n}, but {worker_spec.backend} runs {max_tasks} at a time (max_workers): "
            f"{map_size.n - max_tasks} wait until others end, stragglers among them; "
            f"raise max_workers or use workers <= {max_tasks}"
        )


def check_task_duration(worker_spec: WorkerSpec, task_seconds: float) -> None:
    """Raise LimitError if a typical task would exceed its worker's time limit.

    Parameters
    ----------
    worker_spec : WorkerSpec
        The resources of a worker.
    task_seconds : float
        The duration of a typical task, in seconds.

    Examples
    --------
    >>> check_task_duration(WorkerSpec("aws_lambda", "aws_s3", 1769, timeout_seconds=180), 20.0)
    """
    backend_limits = worker_spec.backend_limits
    backend_max_seconds = backend_limits and backend_limits.max_seconds
    limits = (worker_spec.timeout_seconds, backend_max_seconds)
    max_seconds = min((limit for limit in limits if limit), default=math.inf)
    if task_seconds > max_seconds:
        limit_note = f" (at most {backend_max_seconds})" if backend_max_seconds else ""
        raise LimitError(
            f"most tasks take {task_seconds:.3g} s, {worker_spec.backend} ends them after "
            f"{max_seconds:g} s: use more blocks "
            f"or raise runtime_timeout{limit_note}"
        )


def get_max_concurrency(worker_spec: WorkerSpec) -> int | None:
    """Return the maximum number of workers that can run concurrently, or None if it is not known.

    >>> get_max_concurrency(WorkerSpec("aws_lambda", "aws_s3", 1769))
    1000
    >>> get_max_concurrency(WorkerSpec("k8s", "minio", 512, max_workers=8))
    8
    """
    return worker_spec.max_workers or (
        worker_spec.backend_limits.default_concurrency if worker_spec.backend_limits is not None else None
    )


def compute_block_cache_bytes(worker_spec: WorkerSpec) -> int:
    """Return how many bytes of data blocks a worker may keep in memory between maps.

    This is half of the memory that is left after Python and its libraries are loaded.

    >>> compute_block_cache_bytes(WorkerSpec("aws_lambda", "aws_s3", 1769)) // 2**20
    809
    """
    return max(0, worker_spec.allocated_mb * MB - RUNTIME_BYTES) // 2


def compute_min_memory_bytes(block_bytes: int) -> int:
    """Return the memory, in bytes, that a worker needs to load a block of `block_bytes` bytes."""
    return RUNTIME_BYTES + BLOCK_COPIES * block_bytes


def _check_timeout(worker_spec: WorkerSpec, backend_limits: BackendLimits) -> None:
    if (
        worker_spec.timeout_seconds
        and backend_limits.max_seconds
        and worker_spec.timeout_seconds > backend_limits.max_seconds
    ):
        raise LimitError(
            f"runtime_timeout is {worker_spec.timeout_seconds:g} s, {worker_spec.backend} ends a call after "
            f"{backend_limits.max_seconds} s: lower it, and use more blocks if a task takes longer"
        )


def _check_memory(worker_spec: WorkerSpec, backend_limits: BackendLimits, map_size: MapSize) -> None:
    n_needed_bytes = compute_min_memory_bytes(map_size.block_bytes)
    if n_needed_bytes <= worker_spec.allocated_mb * MB:
        return
    max_block_bytes = (worker_spec.allocated_mb * MB - RUNTIME_BYTES) // BLOCK_COPIES
    advice = [_advise_more_blocks(map_size, max_block_bytes)]
    min_memory_mb = _find_sufficient_memory_mb(n_needed_bytes, backend_limits)
    if min_memory_mb is not None:
        advice.append(f"runtime_memory >= {min_memory_mb}")
    raise LimitError(
        f"a {_format_bytes(map_size.block_bytes)} block does not fit a "
        f"{worker_spec.allocated_mb} MB worker of {worker_spec.backend}, "
        f"which needs {_format_bytes(n_needed_bytes)} to hold it and a copy before f takes any: "
        + " or ".join(filter(None, advice))
    )


def _check_object_size(worker_spec: WorkerSpec, map_size: MapSize) -> None:
    max_object_bytes = MAX_OBJECT_BYTES.get(worker_spec.storage)
    if max_object_bytes is not None and map_size.block_bytes > max_object_bytes:
        raise LimitError(
            f"a {_format_bytes(map_size.block_bytes)} block is larger than one object of "
            f"{worker_spec.storage} may be "
            f"({_format_bytes(max_object_bytes)}): {_advise_more_blocks(map_size, max_object_bytes)}"
        )


def _advise_more_blocks(map_size: MapSize, max_block_bytes: int) -> str:
    """Return the part of an error message that tells the user how to get smaller blocks.

    If possible, it suggests the smallest number of blocks for which no block is larger than
    `max_block_bytes`, such as "use blocks >= 49".
    """
    if map_size.rows is None:
        return f"use blocks of at most {_format_bytes(max(max_block_bytes, 0))}"
    max_rows_per_block = max_block_bytes * map_size.rows // map_size.block_bytes
    if max_rows_per_block < 1:
        return "no number of blocks helps, as one row is too large"
    return f"use blocks >= {math.ceil(map_size.k * map_size.rows / max_rows_per_block)}"


def _find_sufficient_memory_mb(n_needed_bytes: int, backend_limits: BackendLimits) -> int | None:
    """Return the smallest memory size of a worker, in MB, that provides `n_needed_bytes` bytes.

    Only sizes that the backend offers are considered. Return None if even the largest one is too small.
    """
    sizes = backend_limits.memory_sizes_mb or (
        max(backend_limits.min_memory_mb, math.ceil(n_needed_bytes / MB)),
    )
    return next(
        (size for size in sizes if n_needed_bytes <= size * MB and size <= backend_limits.max_memory_mb), None
    )


def _format_bytes(n_bytes: int) -> str:
    """Format a number of bytes in GB or MB, for messages.

    >>> _format_bytes(1_992_294_400), _format_bytes(5 * 2**20)
    ('1.9 GB', '5.0 MB')
    """
    return f"{n_bytes / GB:.1f} GB" if n_bytes >= GB else f"{n_bytes / MB:.1f} MB"
