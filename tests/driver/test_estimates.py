"""Tests of streams of estimates: estimates are computed only while a caller waits for the latest one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from polarmap.driver.estimates import EstimateSnapshot, EstimateStream

SECONDS = 30.0


def test_an_estimate_is_computed_only_while_a_caller_waits() -> None:
    stream, asked, built = EstimateStream(), threading.Event(), list[int]()

    def make() -> str:
        built.append(1)
        return "three"

    stream.publish_estimate_if_awaited(2, make)
    assert built == []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stream.wait_for_next_estimate, 0, asked.set)
        assert asked.wait(SECONDS)
        stream.publish_estimate_if_awaited(3, lambda: None)  # No estimate is possible yet.
        stream.publish_estimate_if_awaited(3, make)
        assert waiting.result(SECONDS) == EstimateSnapshot(3, "three")
    # Another caller asked for this estimate.
    assert stream.wait_for_next_estimate(0, lambda: None) == EstimateSnapshot(3, "three")
    stream.publish_estimate_if_awaited(4, make)
    assert built == [1]


def test_a_caller_with_the_latest_estimate_waits_for_the_next_or_the_end() -> None:
    stream, asked = EstimateStream(), threading.Semaphore(0)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(stream.wait_for_next_estimate, 5, asked.release) for _ in range(2)]
        assert asked.acquire(timeout=SECONDS)
        assert asked.acquire(timeout=SECONDS)
        stream.publish_estimate_if_awaited(5, lambda: "seen")
        stream.publish_estimate_if_awaited(6, lambda: "new")
        assert {future.result(SECONDS) for future in both} == {EstimateSnapshot(6, "new")}
        last = pool.submit(stream.wait_for_next_estimate, 6, asked.release)
        assert asked.acquire(timeout=SECONDS)
        stream.close()
        assert last.result(SECONDS) is None
    assert stream.wait_for_next_estimate(0, lambda: None) is None
