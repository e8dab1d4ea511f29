"""Tests of streams of estimates: estimates are computed only while a caller waits for the latest one."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import polarmap
from polarmap.codes import PolarCode
from polarmap.driver.estimates import EstimateSnapshot, EstimateStream
from polarmap.testing import ReplayExecutor

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


def test_each_group_is_estimated_from_its_own_results() -> None:
    code = PolarCode(60, 40, groups=3)
    data = np.random.default_rng(0).standard_normal((40, 6)) + 5
    decodable, undecodable, silent = code.group_blocks
    lost = {*undecodable[: code.group_codes[1].k // 2].tolist(), *undecodable[-4:].tolist(), *silent.tolist()}
    lost.add(int(decodable[0]))
    result = polarmap.coded_map(
        lambda block: 2 * block,
        list(data),
        code=code,
        executor=ReplayExecutor(dict.fromkeys(lost, math.inf)),
        timeout=5.0,
        on_timeout="estimate",
    )
    errors = np.array(result.report.errors)
    assert not errors[decodable[decodable < 40]].any()
    np.testing.assert_allclose(result[int(decodable[0])], 2 * data[decodable[0]], atol=1e-9)
    missing = [block for block in undecodable.tolist() if block < 40 and block in lost]
    assert (errors[missing] > 0).all() and np.isfinite(errors[missing]).all()
    assert np.isinf(errors[silent[silent < 40]]).all() and np.isinf(result.report.error_p90)
    mean = np.mean([2 * data[block] for block in range(40) if block not in lost], axis=0)
    for block in missing:
        assert np.linalg.norm(result[block] - 2 * data[block]) < np.linalg.norm(mean) * 2
