"""List prices of backends, and cost estimates of maps in US dollars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from polarmap.clouds.limits import WorkerSpec
from polarmap.worker.processes import LIVENESS_INTERVAL

# The number of storage requests per task. Four objects are written: the block, the result, and the two
# markers with which Lithops reports the start and the end. Five objects are read: the function, the input,
# the block, the end marker and the result. In addition, a worker sends a read request every
# LIVENESS_INTERVAL seconds to check whether its map is still running.
WRITES_PER_TASK, READS_PER_TASK = 4, 5
# The billed seconds of a call in addition to the run time of the user's function. In this time, Lithops
# fetches the function and its data, and reports the result. This takes 1 to 2 s on an emulated AWS Lambda
# with eight workers on two processors. Expect about 1 s if each worker has its own CPU.
CALL_OVERHEAD_SECONDS = 1.0
MARKERS_PER_TASK = 2  # Lithops writes one small object when a task starts, and another when it ends.
KEYS_PER_LISTING = 1000  # A listing request to the storage returns the names of up to 1,000 objects.


@dataclass(frozen=True)
class PriceList:
    """A compute backend's list prices in one region, without free tiers, discounts or taxes.

    Attributes
    ----------
    backend, region
        The name of the backend in Lithops, and the region and product to which the prices apply.
    usd_per_gb_second
        The price of 1024 MB of memory for one second, in US dollars.
    usd_per_cpu_second
        The price of one CPU for one second; 0 if CPUs are not charged separately.
    usd_per_call
        The price of a call.
    billing_increment, min_billed_seconds
        The billed duration of a call is rounded up to a multiple of `billing_increment` seconds, and is at
        least `min_billed_seconds`.
    instance_type
        A prefix of the instance types to which the prices apply (see `WorkerSpec.instance_type`).
    as_of, source
        When and where the prices were looked up.
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
            "https://aws.amazon.com/lambda/pricing/ as quoted by "
            "https://cloudchipr.com/blog/aws-lambda-pricing",
        ),
        PriceList(
            "gcp_functions", "tier 1", 2.5e-6, 2.4e-5, 4.0e-7, 0.1, 0.0, "2026-11-24",
            "https://cloud.google.com/run/pricing (request-based billing)",
        ),
        PriceList(
            "azure_functions", "East US, Flex Consumption on demand", 2.6e-5, 0.0, 4.0e-7, 0.1, 1.0,
            "2026-11-24", "https://azure.microsoft.com/en-us/pricing/details/functions/ as quoted by "
            "https://modal.com/blog/azure-function-pricing-guide; steps: "
            "https://learn.microsoft.com/answers/a/12389275",
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
            # EC2 charges for whole machines. Each task is assigned the price of its share of the memory, as
            # the price per GB is the same for all t3 machines from t3.medium up.
            "aws_ec2", "us-east-1, t3, on demand", 0.0832 / 8 / 3600, 0.0, 0.0, 1.0, 0.0, "2026-11-29",
            "https://aws.amazon.com/ec2/pricing/on-demand/ as quoted by https://go-cloud.io/?p=10607", "t3.",
        ),
    )
}  # fmt: skip

# Pairs (memory in MB, CPUs): a Cloud Run function with up to this much memory gets this many CPUs. Looked up
# 2026-11-24: https://cloud.google.com/run/docs/configuring/services/memory-limits
CLOUD_RUN_CPUS_BY_MEMORY = (
    (128, 0.083), (256, 0.167), (512, 0.333), (1024, 0.583), (2048, 1.0), (8192, 2.0), (16_384, 4.0),
    (24_576, 6.0), (32_768, 8.0),
)  # fmt: skip

# The prices of storage requests in US dollars, by the name of the storage. The first price is for a write or
# listing request, and the second one is for a read request. Other storage is not listed, because its prices
# are not known. The prices were looked up 2026-11-24 for the storage class Standard. Sources:
# S3 in us-east-1: as quoted by https://c3x.dev/blog/s3-request-fees-explained
# Google Cloud Storage in a US region: https://cloud.google.com/storage/pricing-examples
USD_PER_WRITE_AND_READ = {"aws_s3": (5.0e-6, 4.0e-7), "gcp_storage": (5.0e-6, 4.0e-7)}


@dataclass(frozen=True)
class Cost:
    """The estimated cost of a map in US dollars.

    Attributes
    ----------
    compute
        The cost of memory and CPUs while the workers ran.
    calls
        The cost of function calls.
    requests
        The cost of storage requests; 0 if it is not known. Storing data for minutes and transfers within a
        region cost almost nothing and are not included.
    """

    compute: float
    calls: float
    requests: float

    @property
    def total(self) -> float:
        """The total cost: `compute` + `calls` + `requests`."""
        return self.compute + self.calls + self.requests

    def __str__(self) -> str:
        parts = ((self.compute, "compute"), (self.calls, "calls"), (self.requests, "storage requests"))
        return f"${self.total:.2g} (" + ", ".join(f"${amount:.2g} {name}" for amount, name in parts) + ")"


def estimate_map_cost(
    worker_spec: WorkerSpec, call_seconds: Sequence[float], polling_seconds: float
) -> Cost | None:
    """Estimate the cost of a map at list prices. Return None if the backend's prices are not known.

    Parameters
    ----------
    worker_spec : WorkerSpec
        The resources of a worker.
    call_seconds : sequence of float
        The duration of each function call in seconds, including calls whose result was not needed.
    polling_seconds : float
        The time in seconds for which the driver polled the storage for results, every
        `worker_spec.poll_seconds` seconds.

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
    """The billed usage of persistent workers since the previous map.

    Persistent workers stay alive between maps. They are billed whether they are busy or idle.

    Attributes
    ----------
    worker_seconds : float
        The total run time of all workers in seconds.
    n_started : int
        The number of workers started.
    n_writes, n_reads : int
        The number of write and read requests to the storage. Listing requests count as writes.
    """

    worker_seconds: float
    n_started: int
    n_writes: int = 0
    n_reads: int = 0


def estimate_persistent_cost(worker_spec: WorkerSpec, usage: PersistentUsage) -> Cost | None:
    """Estimate the cost of persistent workers since the previous map.

    Return None if the prices of the backend are not known.

    >>> lambda_ = WorkerSpec("aws_lambda", "aws_s3", memory_mb=1769)
    >>> usage = PersistentUsage(worker_seconds=32 * 60.0, n_started=0)  # 32 workers wait for a minute
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
    """Return the price list that applies to a worker, or None if its prices are not known.

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
    """Return how many listing requests it takes to find out which of `n_tasks` tasks have ended.

    Lithops writes two objects for each task, one at its start and one at its end. A listing request returns
    up to 1,000 objects.

    >>> count_listing_requests(24), count_listing_requests(501), count_listing_requests(10_000)
    (1, 2, 20)
    """
    return max(1, math.ceil(MARKERS_PER_TASK * n_tasks / KEYS_PER_LISTING))


def get_cloud_run_cpus(memory_mb: int) -> float:
    """Return the number of CPUs of a Cloud Run function with `memory_mb` MB of memory.

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
    """Return the cost of `billed_seconds` of worker time, `n_calls` calls and their storage requests.

    Every call causes a fixed number of storage requests (WRITES_PER_TASK and READS_PER_TASK). `n_writes` and
    `n_reads` are the numbers of further requests.
    """
    cpus, memory_gb = worker_spec.cpus, worker_spec.allocated_mb / 1024
    if cpus is None:
        cpus = get_cloud_run_cpus(worker_spec.allocated_mb)
    usd_per_second = memory_gb * price_list.usd_per_gb_second + cpus * price_list.usd_per_cpu_second
    usd_per_write, usd_per_read = USD_PER_WRITE_AND_READ.get(worker_spec.storage, (0.0, 0.0))
    writes_usd = (WRITES_PER_TASK * n_calls + n_writes) * usd_per_write
    reads_usd = (READS_PER_TASK * n_calls + n_reads) * usd_per_read
    calls_usd = n_calls * price_list.usd_per_call
    return Cost(billed_seconds * usd_per_second, calls_usd, writes_usd + reads_usd)
