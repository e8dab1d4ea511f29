"""Tests of the padded last block of a map that loses tasks: its result is awaited, decoded or estimated."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from coded_maps import faulty, losing
from driver.test_padding import (
    DATA,
    DECODABLE,
    LAST,
    MIXING,
    SIZES,
    _local_f_ends_within_one_poll,  # noqa: F401
    gram,
    mean,
    plain,
    total,
    twice,
)
from plain import assert_same

import polarmap
from polarmap import coded_map
from polarmap.errors import CodedTimeoutError, NotDecodableError
from polarmap.testing import Fault, ReplayExecutor


@pytest.mark.parametrize("lost", [(0,), (3, 7), (5, 16), (15, 19), (0, 1, 2, 13)])
@pytest.mark.parametrize("f", [*MIXING, *DECODABLE])
def test_only_lost_blocks_are_decoded(f: Callable[[Any], Any], lost: tuple[int, ...]) -> None:
    expected, result = plain(f, DATA, 15), coded_map(f, DATA, **SIZES, executor=losing(*lost))
    assert_same(result, expected, 1e-11)
    assert_same(result[LAST:], expected[LAST:])
    assert result.report.recovered == tuple(index for index in lost if index < 15)
    assert result.report.last_block == "own rows"


@pytest.mark.parametrize("schedule", ["upfront", "on_demand"])
@pytest.mark.parametrize("shape", ["raises", "is odd"])
def test_a_last_block_without_a_symbol_counts_as_lost_when_decoding(schedule: str, shape: str) -> None:
    def total_of_true_rows(block: np.ndarray) -> np.ndarray:
        """Return the sum of the rows. If a row is zero, raise ValueError or return another shape."""
        if not block.any(axis=1).all():
            if shape == "raises":
                raise ValueError("no row may be zero")
            return np.zeros(17)
        return block.sum(axis=0)

    executor = faulty({2: Fault("kill"), 5: Fault("kill")})
    result = coded_map(total_of_true_rows, DATA, **SIZES, schedule=schedule, executor=executor)
    assert_same(result, plain(total_of_true_rows, DATA, 15), 1e-11)
    assert result.report.last_block == "own rows"


@pytest.mark.parametrize(
    ("f", "how"), [(twice, "rows cut off"), (total, "zeros ignored"), (gram, "zeros ignored")]
)
def test_the_last_block_is_decoded_where_zeros_do_not_matter(f: Callable[[Any], Any], how: str) -> None:
    result = coded_map(f, DATA, **SIZES, executor=losing(2, LAST))
    assert_same(result, plain(f, DATA, 15), 1e-11)
    assert (result.report.recovered, result.report.last_block) == ((2, LAST), how)
    assert result.report.tasks[LAST].attempts == 1


@pytest.mark.parametrize("kind", ["kill", "exit", "raise"])
@pytest.mark.parametrize("f", MIXING)
def test_a_last_block_that_cannot_be_decoded_is_retried(f: Callable[[Any], Any], kind: str) -> None:
    result = coded_map(f, DATA, **SIZES, executor=faulty({2: Fault("kill"), LAST: Fault(kind)}))
    assert_same(result, plain(f, DATA, 15), 1e-11)
    assert_same(result[LAST:], plain(f, DATA, 15)[LAST:])
    report = result.report
    assert (report.recovered, report.last_block) == ((2,), "awaited")
    assert [task.index for task in report.tasks if task.attempts > 1] == [LAST]
    assert (
        "block 14 could not be decoded, as rows of zeros, of which it has 1, change the result of f"
        in str(report)
    )
    assert '"last_block": "awaited"' in report.to_json()


@pytest.mark.parametrize("options", [{}, {"schedule": "on_demand"}])
def test_a_late_last_block_that_cannot_be_decoded_gets_a_backup(
    options: dict[str, Any],
) -> None:
    executor = faulty({LAST: Fault("sleep", 900.0), 17: Fault("sleep", 900.0)})
    result = coded_map(mean, DATA, **SIZES, executor=executor, **options)
    assert_same(result, plain(mean, DATA, 15))
    report = result.report
    assert (report.tasks[LAST].attempts, report.last_block, report.recovered) == (2, "awaited", ())
    assert report.tasks[LAST].arrived is not None and report.tasks[LAST].arrived < 100


def test_a_last_block_that_never_arrives_raises_a_clear_error() -> None:
    with pytest.raises(
        NotDecodableError, match=r"task 14 of 20: 59 rows do not divide into 15 blocks.*retries="
    ):
        coded_map(mean, DATA, **SIZES, retries=0, executor=faulty({LAST: Fault("kill")}))
    with pytest.raises(NotDecodableError, match=r"and its task failed: .*use blocks=59, which divides them"):
        coded_map(mean, DATA, **SIZES, retries=2, executor=faulty({LAST: Fault("kill", attempts=9)}))


def test_an_exception_of_f_on_the_last_rows_is_raised() -> None:
    def f(block: np.ndarray) -> np.ndarray:
        return np.ones((2, 4)) @ block

    with pytest.raises(ValueError, match="matmul") as caught:
        coded_map(f, DATA, **SIZES, executor=losing())
    assert "task 14 of 20: 59 rows do not divide into 15 blocks" in "".join(caught.value.__notes__)
    assert_same(coded_map(f, DATA[:56], blocks=14, executor=losing()), plain(f, DATA[:56], 14), 1e-11)


def test_the_timeout_may_expire_while_the_last_block_is_awaited() -> None:
    executor = faulty({LAST: Fault("sleep", 900.0, attempts=9)})
    with pytest.raises(CodedTimeoutError, match="task 14 has to return, as 59 rows do not divide"):
        coded_map(mean, DATA, **SIZES | {"timeout": 30.0}, executor=executor)


def test_garbage_from_the_last_worker_is_not_returned() -> None:
    for f in (mean, twice):
        result = coded_map(
            f, DATA, **SIZES, verify=True, executor=faulty({LAST: Fault("garbage"), 4: Fault("kill")})
        )
        assert_same(result, plain(f, DATA, 15), 1e-11)
        assert "garbage" in " ".join(result.report.tasks[LAST].failures).lower()


def test_at_a_deadline_the_last_block_is_exact_or_reported_as_an_estimate() -> None:
    options = {**SIZES, "on_timeout": "estimate", "timeout": 10.0}
    slow = dict.fromkeys([0, 1, 2, 3, 4, 5], math.inf)
    result = coded_map(mean, DATA, **options, executor=ReplayExecutor(slow))
    assert_same(result[LAST:], plain(mean, DATA, 15)[LAST:])
    assert result.report.errors[LAST] == 0 < result.report.errors[0]
    with pytest.warns(RuntimeWarning, match="59 rows do not divide .* estimate may be far off"):
        result = coded_map(mean, DATA, **options, executor=ReplayExecutor(slow | {LAST: math.inf}))
    assert math.isinf(result.report.errors[LAST]) and LAST in result.report.estimated_blocks
    result = coded_map(twice, DATA, **options, executor=ReplayExecutor(slow | {LAST: math.inf}))
    assert [len(block) for block in result] == [4] * 14 + [3]


def test_a_deadline_while_the_last_block_is_awaited_keeps_all_other_blocks_exact() -> None:
    executor = faulty({LAST: Fault("sleep", 900.0, attempts=9)})
    with pytest.warns(RuntimeWarning, match="estimate may be far off"):
        result = coded_map(
            mean, DATA, **{**SIZES, "on_timeout": "estimate", "timeout": 30.0}, executor=executor
        )
    assert_same(result[:LAST], plain(mean, DATA, 15)[:LAST])
    assert result.report.estimated_blocks == (LAST,)


def test_the_future_of_the_last_block_has_its_true_result() -> None:
    release = threading.Event()

    def f(block: np.ndarray) -> np.ndarray:
        if len(block) == 4 and block[0, 0] == DATA[0, 0]:
            release.wait(60)
        return block.mean(axis=0)

    with ThreadPoolExecutor(4) as pool:
        future = polarmap.submit(coded_map, f, DATA, blocks=15, tasks=16, executor=pool, verify=False)
        early = future.blocks[LAST].result(60)
        release.set()
        np.testing.assert_array_equal(early, mean(DATA[56:]))
        assert_same(future.result(60), plain(mean, DATA, 15), 1e-11)
        assert_same(future.blocks[LAST].result(60), mean(DATA[56:]))
