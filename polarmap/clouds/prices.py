"""What a map costs: list prices as data, and the estimate made of them. US dollars, seconds, MB."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from polarmap.clouds.limits import Worker
from polarmap.worker.processes import LIVENESS_INTERVAL

# Storage requests of one task: its block, Lithops' start and end marks and a large result are
# written; function, input, block, end mark and result are read. Also, every LIVENESS_SECONDS, a worker
# looks whether it is still wanted.
WRITES, READS = 4, 5
# Billed around f: Lithops fetches function and data and reports. On an emulated Lambda 1 to 2 s, two
# processors shared by eight workers; expect the lower end where each has its own.
AROUND_SECONDS = 1.0
MARKS = 2  # objects of each task that the driver lists: its start and end marks
LISTED = 1000  # objects that one request lists


@dataclass(frozen=True)
class Price:
    """List price of a compute backend in one region, without free tiers, discounts and taxes.

    Attributes
    ----------
    gigabyte_second
        USD per second and 1024 MB of memory.
    processor_second
        USD per second and processor, where that is charged apart.
    call
        USD each.
    step, least
        Seconds that a call is rounded up to, and its minimum.
    kind
        That it is the price of, where there are several: what its name begins with, see `Worker.kind`.
    """

    backend: str
    region: str
    gigabyte_second: float
    processor_second: float
    call: float
    step: float
    least: float
    checked: str
    source: str
    kind: str = ""


PRICES = {
    one.backend: one
    for one in (
        Price(
            "aws_lambda", "us-east-1, x86", 1.66667e-5, 0.0, 2.0e-7, 0.001, 0.0, "2026-11-24",
            "https://aws.amazon.com/lambda/pricing/ as quoted by https://cloudchipr.com/blog/aws-lambda-pricing",
        ),
        Price(
            "gcp_functions", "tier 1", 2.5e-6, 2.4e-5, 4.0e-7, 0.1, 0.0, "2026-11-24",
            "https://cloud.google.com/run/pricing (request-based billing)",
        ),
        Price(
            "azure_functions", "East US, Flex Consumption on demand", 2.6e-5, 0.0, 4.0e-7, 0.1, 1.0,
            "2026-11-24", "https://azure.microsoft.com/en-us/pricing/details/functions/ as quoted by "
            "https://modal.com/blog/azure-function-pricing-guide; steps: https://learn.microsoft.com/answers/a/12389275",
        ),
        Price(
            "gcp_cloudrun", "tier 1", 2.5e-6, 2.4e-5, 4.0e-7, 0.1, 0.0, "2026-11-24",
            "https://cloud.google.com/run/pricing (request-based billing)",
        ),
        Price(
            "aws_batch", "us-east-1, Fargate, x86", 0.004445 / 3600, 0.04048 / 3600, 0.0, 1.0, 60.0,
            "2026-11-29", "https://aws.amazon.com/fargate/pricing/ as quoted by https://www.vantage.sh/blog/fargate-pricing",
            "FARGATE",
        ),
        Price(
            # Of a task its share of the memory; t3.medium and larger cost the same for each GB.
            "aws_ec2", "us-east-1, t3, on demand", 0.0832 / 8 / 3600, 0.0, 0.0, 1.0, 0.0, "2026-11-29",
            "https://aws.amazon.com/ec2/pricing/on-demand/ as quoted by https://go-cloud.io/?p=10607", "t3.",
        ),
    )
}  # fmt: skip

# Processors that come with so many MB of a Cloud Run function, checked 2026-11-24:
# https://cloud.google.com/run/docs/configuring/services/memory-limits
PROCESSORS = (
    (128, 0.083), (256, 0.167), (512, 0.333), (1024, 0.583), (2048, 1.0), (8192, 2.0), (16_384, 4.0),
    (24_576, 6.0), (32_768, 8.0),
)  # fmt: skip

# USD per write or listing, and per read, checked 2026-11-24: Standard in us-east-1, as quoted by
# https://c3x.dev/blog/s3-request-fees-explained; Standard in a US region,
# https://cloud.google.com/storage/pricing-examples. Requests to others are not priced.
STORAGE = {"aws_s3": (5.0e-6, 4.0e-7), "gcp_storage": (5.0e-6, 4.0e-7)}


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
        return f"${self.total:.2g} (" + ", ".join(f"${one:.2g} {name}" for one, name in parts) + ")"


def cost(worker: Worker, seconds: Sequence[float], elapsed: float) -> Cost | None:
    """What a map costs at list price; None where polarmap knows no price.

    Parameters
    ----------
    worker : Worker
    seconds : sequence of float
        That each call ran, abandoned ones included.
    elapsed : float
        Seconds the driver looked for results, every `worker.interval`.

    Examples
    --------
    >>> lambda_ = Worker("aws_lambda", "aws_s3", memory=1769, interval=0.3)
    >>> print(cost(lambda_, [10.0] * 32, elapsed=11.0))
    $0.011 ($0.01 compute, $6.4e-06 calls, $0.0011 storage requests)
    >>> cost(Worker("k8s", "minio", memory=2048), [10.0], 11.0) is None
    True
    """
    price, calls = price_of(worker), len(seconds)
    if price is None:
        return None
    steps = (math.ceil(round((one + AROUND_SECONDS) / price.step, 6)) for one in seconds)
    billed = sum(max(price.least, count * price.step) for count in steps)
    looks = sum(one / LIVENESS_INTERVAL for one in seconds)
    listings = listing_requests(calls) * elapsed / worker.interval
    return _cost(worker, price, billed, calls, listings, looks)


class Stay(NamedTuple):
    """What workers that stay have been paid for since the map before, idle or not.

    seconds : that all of them have run.
    started : of them since then.
    writes, reads : requests to the storage; listings are writes.
    """

    seconds: float
    started: int
    writes: int = 0
    reads: int = 0


def cost_of_stay(worker: Worker, stay: Stay) -> Cost | None:
    """What workers that stay cost from one map to the end of the next; None if no price is known.

    >>> lambda_ = Worker("aws_lambda", "aws_s3", memory=1769)
    >>> print(cost_of_stay(lambda_, Stay(seconds=32 * 60.0, started=0)))  # a minute of 32 that wait
    $0.055 ($0.055 compute, $0 calls, $0 storage requests)
    """
    price = price_of(worker)
    if price is None:
        return None
    billed = max(stay.seconds + stay.started * AROUND_SECONDS, stay.started * price.least)
    return _cost(worker, price, billed, stay.started, stay.writes, stay.reads)


def price_of(worker: Worker) -> Price | None:
    """The list price of a worker; None if polarmap knows none of its kind.

    >>> price_of(Worker("aws_batch", "aws_s3", 2048, kind="FARGATE")).least
    60.0
    >>> price_of(Worker("aws_batch", "aws_s3", 2048, kind="FARGATE_SPOT")) is None
    True
    """
    price, kind = PRICES.get(worker.backend), worker.kind
    return price if price and kind.startswith(price.kind) and "spot" not in kind.lower() else None


def listing_requests(tasks: int) -> int:
    """Requests of one look at the start and end marks of so many tasks, all of which have ended.

    >>> listing_requests(24), listing_requests(501), listing_requests(10_000)
    (1, 2, 20)
    """
    return max(1, math.ceil(MARKS * tasks / LISTED))


def processors(memory: int) -> float:
    """Processors of a Cloud Run function with so many MB.

    >>> processors(256), processors(4096), processors(32_768)
    (0.167, 2.0, 8.0)
    """
    return next((share for size, share in PROCESSORS if memory <= size), PROCESSORS[-1][1])


def _cost(worker: Worker, price: Price, billed: float, calls: int, writes: float, reads: float) -> Cost:
    """The cost of so many seconds that are billed, of calls with their requests, and of further requests."""
    each = processors(worker.granted) if worker.processors is None else worker.processors
    rate = worker.granted / 1024 * price.gigabyte_second + each * price.processor_second
    write, read = STORAGE.get(worker.storage, (0.0, 0.0))
    requests = (WRITES * calls + writes) * write + (READS * calls + reads) * read
    return Cost(billed * rate, calls * price.call, requests)
