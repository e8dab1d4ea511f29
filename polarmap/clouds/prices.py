"""What a map costs: list prices as data, and the estimate made of them. US dollars, seconds, MB."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from polarmap.clouds.limits import WorkerSpec
from polarmap.worker.processes import LIVENESS_INTERVAL

# Storage requests of one task: its block, Lithops' start and end marks and a large result are
# written; function, input, block, end mark and result are read. Also, every LIVENESS_INTERVAL, a worker
# looks whether it is still wanted.
WRITES_PER_TASK, READS_PER_TASK = 4, 5
# Billed around f: Lithops fetches function and data and reports. On an emulated Lambda 1 to 2 s, two
# processors shared by eight workers; expect the lower end where each has its own.
CALL_OVERHEAD_SECONDS = 1.0
MARKERS_PER_TASK = 2  # objects of each task that the driver lists: its start and end marks
KEYS_PER_LISTING = 1000  # objects that one request lists


@dataclass(frozen=True)
class PriceList:
    """List price of a compute backend in one region, without free tiers, discounts and taxes.

    Attributes
    ----------
    usd_per_gb_second
        USD per second and 1024 MB of memory.
    usd_per_cpu_second
        USD per second and processor, where that is charged apart.
    usd_per_call
        USD each.
    billing_increment, min_billed_seconds
        Seconds that a call is rounded up to, and its minimum.
    instance_type
        That it is the price of, where there are several: what its name begins with, see
        `WorkerSpec.instance_type`.
    """

    backend: str
    region: str
    usd_per_gb_second: float
    usd_per_cpu_second: float
    usd_per_call: float
    billing_increment: float
    min_billed_seconds: float
    as_of: str
    source: str
    instance_type: str = ""


PRICE_LISTS = {
    one.backend: one
    for one in (
        PriceList(
            "aws_lambda", "us-east-1, x86", 1.66667e-5, 0.0, 2.0e-7, 0.001, 0.0, "2026-11-24",
            "https://aws.amazon.com/lambda/pricing/ as quoted by https://cloudchipr.com/blog/aws-lambda-pricing",
        ),
        PriceList(
            "gcp_functions", "tier 1", 2.5e-6, 2.4e-5, 4.0e-7, 0.1, 0.0, "2026-11-24",
            "https://cloud.google.com/run/pricing (request-based billing)",
        ),
        PriceList(
            "azure_functions", "East US, Flex Consumption on demand", 2.6e-5, 0.0, 4.0e-7, 0.1, 1.0,
            "2026-11-24", "https://azure.microsoft.com/en-us/pricing/details/functions/ as quoted by "
            "https://modal.com/blog/azure-function-pricing-guide; steps: https://learn.microsoft.com/answers/a/12389275",
        ),
        PriceList(
            "gcp_cloudrun", "tier 1", 2.5e-6, 2.4e-5, 4.0e-7, 0.1, 0.0, "2026-11-24",
            "https://cloud.google.com/run/pricing (request-based billing)",
        ),
        PriceList(
            "aws_batch", "us-east-1, Fargate, x86", 0.004445 / 3600, 0.04048 / 3600, 0.0, 1.0, 60.0,
            "2026-11-29", "https://aws.amazon.com/fargate/pricing/ as quoted by https://www.vantage.sh/blog/fargate-pricing",
            "FARGATE",
        ),
        PriceList(
            # Of a task its share of the memory; t3.medium and larger cost the same for each GB.
            "aws_ec2", "us-east-1, t3, on demand", 0.0832 / 8 / 3600, 0.0, 0.0, 1.0, 0.0, "2026-11-29",
            "https://aws.amazon.com/ec2/pricing/on-demand/ as quoted by https://go-cloud.io/?p=10607", "t3.",
        ),
    )
}  # fmt: skip

# Processors that come with so many MB of a Cloud Run function, checked 2026-11-24:
# https://cloud.google.com/run/docs/configuring/services/memory-limits
CLOUD_RUN_CPUS_BY_MEMORY = (
    (128, 0.083), (256, 0.167), (512, 0.333), (1024, 0.583), (2048, 1.0), (8192, 2.0), (16_384, 4.0),
    (24_576, 6.0), (32_768, 8.0),
)  # fmt: skip

# USD per write or listing, and per read, checked 2026-11-24: Standard in us-east-1, as quoted by
# https://c3x.dev/blog/s3-request-fees-explained; Standard in a US region,
# https://cloud.google.com/storage/pricing-examples. Requests to others are not priced.
USD_PER_WRITE_AND_READ = {"aws_s3": (5.0e-6, 4.0e-7), "gcp_storage": (5.0e-6, 4.0e-7)}


@dataclass(frozen=True)
class Cost:
    """An estimate in US dollars.

    Attributes
    ----------
    compute
        Memory and processors for as long as workers ran.
    calls
        Of the functions.
    requests
        To the storage, where their price is known. Data stored for minutes, and transfers within a region,
        cost next to nothing.
    """

    compute: float
    calls: float
    requests: float

    @property
    def total(self) -> float:
        """Compute, calls and requests together."""
        return self.compute + self.calls + self.requests

    def __str__(self) -> str:
        parts = ((self.compute, "compute"), (self.calls, "calls"), (self.requests, "storage requests"))
        return f"${self.total:.2g} (" + ", ".join(f"${amount:.2g} {name}" for amount, name in parts) + ")"


def estimate_map_cost(
    worker_spec: WorkerSpec, call_seconds: Sequence[float], polling_seconds: float
) -> Cost | None:
    """What a map costs at list price; None where polarmap knows no price.

    Parameters
    ----------
    worker_spec : Worker
    call_seconds : sequence of float
        That each call ran, abandoned ones included.
    polling_seconds : float
        Seconds the driver looked for results, every `worker_spec.poll_seconds`.

    Examples
    --------
    >>> lambda_ = WorkerSpec("aws_lambda", "aws_s3", memory_mb=1769, poll_seconds=0.3)
    >>> print(estimate_map_cost(lambda_, [10.0] * 32, polling_seconds=11.0))
    $0.011 ($0.01 compute, $6.4e-06 calls, $0.0011 storage requests)
    >>> estimate_map_cost(WorkerSpec("k8s", "minio", memory_mb=2048), [10.0], 11.0) is None
    True
    """
    price_list, n_calls = find_price_list(worker_spec), len(call_seconds)
    if price_list is None:
        return None
    billed_increments = (
        math.ceil(round((run_seconds + CALL_OVERHEAD_SECONDS) / price_list.billing_increment, 6))
        for run_seconds in call_seconds
    )
    billed_seconds = sum(
        max(price_list.min_billed_seconds, n_increments * price_list.billing_increment)
        for n_increments in billed_increments
    )
    n_liveness_checks = sum(run_seconds / LIVENESS_INTERVAL for run_seconds in call_seconds)
    n_listings = count_listing_requests(n_calls) * polling_seconds / worker_spec.poll_seconds
    return _compute_cost(worker_spec, price_list, billed_seconds, n_calls, n_listings, n_liveness_checks)


class PersistentUsage(NamedTuple):
    """What persistent workers have been paid for since the map before, idle or not.

    worker_seconds : that all of them have run.
    n_started : of them since then.
    n_writes, n_reads : requests to the storage; listings are writes.
    """

    worker_seconds: float
    n_started: int
    n_writes: int = 0
    n_reads: int = 0


def estimate_persistent_cost(worker_spec: WorkerSpec, usage: PersistentUsage) -> Cost | None:
    """What persistent workers cost from one map to the end of the next; None if no price is known.

    >>> lambda_ = WorkerSpec("aws_lambda", "aws_s3", memory_mb=1769)
    >>> usage = PersistentUsage(worker_seconds=32 * 60.0, n_started=0)  # a minute of 32 that wait
    >>> print(estimate_persistent_cost(lambda_, usage))
    $0.055 ($0.055 compute, $0 calls, $0 storage requests)
    """
    price_list = find_price_list(worker_spec)
    if price_list is None:
        return None
    billed_seconds = max(
        usage.worker_seconds + usage.n_started * CALL_OVERHEAD_SECONDS,
        usage.n_started * price_list.min_billed_seconds,
    )
    return _compute_cost(
        worker_spec, price_list, billed_seconds, usage.n_started, usage.n_writes, usage.n_reads
    )


def find_price_list(worker_spec: WorkerSpec) -> PriceList | None:
    """The list price of a worker; None if polarmap knows none of its kind.

    >>> find_price_list(WorkerSpec("aws_batch", "aws_s3", 2048, instance_type="FARGATE")).min_billed_seconds
    60.0
    >>> find_price_list(WorkerSpec("aws_batch", "aws_s3", 2048, instance_type="FARGATE_SPOT")) is None
    True
    """
    price_list, instance_type = PRICE_LISTS.get(worker_spec.backend), worker_spec.instance_type
    if price_list is None or "spot" in instance_type.lower():
        return None
    return price_list if instance_type.startswith(price_list.instance_type) else None


def count_listing_requests(n_tasks: int) -> int:
    """Requests of one look at the start and end marks of so many tasks, all of which have ended.

    >>> count_listing_requests(24), count_listing_requests(501), count_listing_requests(10_000)
    (1, 2, 20)
    """
    return max(1, math.ceil(MARKERS_PER_TASK * n_tasks / KEYS_PER_LISTING))


def get_cloud_run_cpus(memory_mb: int) -> float:
    """Processors of a Cloud Run function with so many MB.

    >>> get_cloud_run_cpus(256), get_cloud_run_cpus(4096), get_cloud_run_cpus(32_768)
    (0.167, 2.0, 8.0)
    """
    return next(
        (n_cpus for max_memory_mb, n_cpus in CLOUD_RUN_CPUS_BY_MEMORY if memory_mb <= max_memory_mb),
        CLOUD_RUN_CPUS_BY_MEMORY[-1][1],
    )


def _compute_cost(
    worker_spec: WorkerSpec,
    price_list: PriceList,
    billed_seconds: float,
    n_calls: int,
    n_writes: float,
    n_reads: float,
) -> Cost:
    """The cost of so many seconds that are billed, of calls with their requests, and of further requests."""
    cpus, memory_gb = worker_spec.cpus, worker_spec.allocated_mb / 1024
    if cpus is None:
        cpus = get_cloud_run_cpus(worker_spec.allocated_mb)
    usd_per_second = memory_gb * price_list.usd_per_gb_second + cpus * price_list.usd_per_cpu_second
    usd_per_write, usd_per_read = USD_PER_WRITE_AND_READ.get(worker_spec.storage, (0.0, 0.0))
    writes_usd = (WRITES_PER_TASK * n_calls + n_writes) * usd_per_write
    reads_usd = (READS_PER_TASK * n_calls + n_reads) * usd_per_read
    calls_usd = n_calls * price_list.usd_per_call
    return Cost(billed_seconds * usd_per_second, calls_usd, writes_usd + reads_usd)
