"""How long a map waits for a redundant result, and for f on the driver."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from coded_maps import K, N, assert_right, coded, product
from plain import arrivals, arriving

from polarmap.codes import PolarCode
from polarmap.driver import local_evaluation


@pytest.mark.parametrize(("usual", "bound"), [(0.01, 0.2), (1.0, 1.0), (3.0, 3.0), (50.0, 10.0)])
def test_the_wait_for_surplus_is_one_median_task_time_within_limits(
    usual: float, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # f here ends within one look, however busy this is
    monkeypatch.setattr(local_evaluation, "EVALUATION_POLL_SECONDS", 60.0)
    order = arrivals(PolarCode(N, K), K, np.random.default_rng(3))
    result = coded(executor=arriving(order, N, start=usual, step=0.0))
    assert_right(result)
    report = result.report
    assert report.verified == "local"
    assert bound <= report.redundancy_wait_seconds < bound + 0.5
    assert report.seconds == pytest.approx(usual + report.redundancy_wait_seconds)


@pytest.mark.parametrize(
    ("trouble", "usual", "bound"),
    [("raises", 0.1, 20.0), ("raises", 30.0, 120.0), ("does not end", 1.0, 20.0)],
)
def test_what_neither_surplus_nor_the_driver_can_verify_is_returned_in_bounded_time(
    trouble: str, usual: float, bound: float
) -> None:
    """Tasks hang and f cannot be evaluated here: after 20 s, or four task times, there is a warning."""
    calls, over = [], threading.Event()

    def only_on_workers(block: np.ndarray) -> np.ndarray:
        calls.append(block)
        if len(calls) > K:
            if trouble == "raises":
                raise RuntimeError("no accelerator here")
            over.wait()
        return product(block)

    order = arrivals(PolarCode(N, K), K, np.random.default_rng(3))
    text = "raised RuntimeError: no accelerator" if trouble == "raises" else "had not ended after"
    executor = arriving(order, N, start=usual, step=0.0)
    with pytest.warns(RuntimeWarning, match=f"could not be verified: no result beyond the 8.*{text}"):
        result = coded(only_on_workers, executor=executor, timeout=None)
    over.set()
    assert_right(result)
    assert result.report.verified == "no"
    assert usual + bound <= result.report.seconds < usual + bound + 1
