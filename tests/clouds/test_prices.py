"""Check the price of a map against bills computed by hand, and the sources of the prices."""

from __future__ import annotations

import math
from datetime import date

import numpy as np
import pytest

import polarmap
from polarmap.clouds import prices
from polarmap.clouds.limits import BACKENDS, WorkerSpec
from polarmap.executors.replay import ReplayExecutor
from polarmap.planning import ShiftedExponential, plan

LAMBDA = WorkerSpec(
    "aws_lambda", "aws_s3", memory_mb=2048, timeout_seconds=180, max_workers=1000, poll_seconds=0.3
)


def test_prices_and_limits_have_a_date_and_a_source() -> None:
    for record in (*BACKENDS.values(), *prices.PRICE_LISTS.values()):
        assert date.fromisoformat(record.as_of) <= date(2100, 1, 1)
        assert record.source
    assert set(prices.PRICE_LISTS) <= set(BACKENDS)


def test_a_lambda_bill_computed_by_hand() -> None:
    # Three Lambda calls of 2 GB take 1, 1 and 4 s, and each is billed for one more second.
    bill = prices.estimate_map_cost(LAMBDA, [1.0, 1.0, 4.0], polling_seconds=6.0)
    assert bill is not None
    assert bill.compute == pytest.approx((2 + 2 + 5) * 2 * 1.66667e-5)
    assert bill.calls == pytest.approx(3 * 0.20 / 1e6)
    writes, reads = 3 * 4 + 6 / 0.3, 3 * 5 + 6 / 0.5
    assert bill.requests == pytest.approx(writes * 0.005 / 1000 + reads * 0.0004 / 1000)
    assert bill.total == pytest.approx(bill.compute + bill.calls + bill.requests)


def test_polls_that_need_several_listing_requests() -> None:
    # 1,000 calls leave 2,000 marker objects, so that each poll takes two requests.
    few, many = (
        prices.estimate_map_cost(LAMBDA, [1.0] * calls, polling_seconds=30.0) for calls in (500, 1000)
    )
    assert few is not None and many is not None
    assert many.requests - 2 * few.requests == pytest.approx(0, abs=1e-12)


def test_google_rounds_up_and_charges_processors() -> None:
    bill = prices.estimate_map_cost(WorkerSpec("gcp_functions", "gcp_storage", 4096), [0.01], 0.0)
    assert bill is not None
    assert bill.compute == pytest.approx(1.1 * (4 * 2.5e-6 + 2 * 2.4e-5))


def test_fargate_charges_a_minute_and_what_the_configuration_says() -> None:
    # Two processors and 4 GB are billed for a minute, however short the task.
    worker = WorkerSpec("aws_batch", "aws_s3", 4096, cpus=2, instance_type="FARGATE")
    bill = prices.estimate_map_cost(worker, [1.0], 0.0)
    assert bill is not None
    assert bill.compute == pytest.approx(2 * 0.04048 / 60 + 4 * 0.004445 / 60)


@pytest.mark.parametrize(("seconds", "billed"), [(3.0, 60.0), (100.0, 101.0)])
def test_a_persistent_worker_is_billed_the_minimum_time_once(seconds: float, billed: float) -> None:
    worker = WorkerSpec("aws_batch", "aws_s3", 2048, cpus=1, instance_type="FARGATE")
    bill = prices.estimate_persistent_cost(worker, prices.PersistentUsage(4 * seconds, n_started=4))
    assert bill is not None
    assert bill.compute == pytest.approx(4 * billed * (0.04048 + 2 * 0.004445) / 3600)


@pytest.mark.parametrize(
    ("kind", "is_priced"), [("t3.large", True), ("spot t3.large", False), ("m5.large", False)]
)
def test_only_machines_with_a_known_price_are_priced(kind: str, is_priced: bool) -> None:
    bill = prices.estimate_map_cost(WorkerSpec("aws_ec2", "aws_s3", 4096, instance_type=kind), [3599.0], 0.0)
    assert (bill is not None) == is_priced
    if bill is not None:  # An hour on half a t3.large.
        assert bill.compute == pytest.approx(0.0832 / 2)


def test_a_report_carries_its_cost() -> None:
    class Priced(ReplayExecutor):
        worker_spec = LAMBDA

    report = polarmap.coded_map(
        np.sum, np.ones((8, 3)), blocks=4, tasks=6, executor=Priced({3: math.inf})
    ).report
    assert report.cost is not None and report.cost.calls == pytest.approx(6 * 2e-7)
    assert "cost at list prices: $" in str(report)
    free = polarmap.coded_map(np.sum, np.ones((8, 3)), blocks=4, tasks=6, executor=ReplayExecutor())
    assert free.report.cost is None
    hedged = polarmap.hedged_map(np.sum, np.ones((8, 3)), blocks=4, executor=Priced({3: 9.0})).report
    # Two tasks got a backup.
    assert hedged.cost is not None and hedged.cost.calls == pytest.approx((4 + 2) * 2e-7)


def test_a_plan_says_what_it_costs_and_keeps_to_the_limits() -> None:
    distribution = ShiftedExponential(5.0, 1.0)
    free = plan(24, distribution)
    priced = plan(24, distribution, worker_spec=LAMBDA)
    assert (priced.n, free.cost) == (free.n, None)
    assert priced.cost is not None and priced.uncoded_cost is not None
    assert priced.cost.compute > 0.8 * priced.expected.worker_seconds * 2 * 1.66667e-5
    assert "mean cost: $" in str(priced)
    few = WorkerSpec("aws_lambda", "aws_s3", 2048, max_workers=26)
    assert plan(24, distribution, worker_spec=few).n <= 26
