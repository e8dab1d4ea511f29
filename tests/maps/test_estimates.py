"""future.estimates(): estimates of the results while a map runs, and then the exact results."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polarmap
from polarmap.arrays import Stored
from polarmap.codes import LagrangeCode, SecretSharing
from polarmap.errors import CodeError, NotDecodableError
from polarmap.testing import ReplayExecutor
from polarmap.types import CodedResult
from tests.plain import arriving

SECONDS = 60.0
BLOCKS = 10 * np.random.default_rng(0).standard_normal(7) + np.random.default_rng(1).standard_normal((6, 7))


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(24) as pool:
        yield pool


class Turnstile:
    """A function for thread pools that blocks until the test releases the block it was called with.

    The first entry of a block identifies it.
    """

    def __init__(self, firsts: Any) -> None:
        self.gates = {float(first): threading.Event() for first in firsts}
        self.parity_gate = threading.Event()  # shared by all parity blocks

    def __call__(self, block: np.ndarray) -> np.ndarray:
        assert self.gates.get(float(block[0]), self.parity_gate).wait(SECONDS)
        return 2 * block

    def let_through(self, *blocks: int) -> None:
        for block in blocks:
            self.gates[float(BLOCKS[block, 0])].set()

    def open(self) -> None:
        for gate in (*self.gates.values(), self.parity_gate):
            gate.set()


def after(estimates: Iterator[CodedResult[Any]], arrived: int) -> CodedResult[Any]:
    """Return the first estimate that is based on exactly `arrived` results."""
    for estimate in estimates:
        if sum(task.arrived is not None for task in estimate.report.tasks) == arrived:
            return estimate
    raise AssertionError(f"no estimate from {arrived} results")


def test_estimates_improve_as_results_arrive_and_the_last_is_exact(threads: ThreadPoolExecutor) -> None:
    f = Turnstile(BLOCKS[:, 0])
    future = polarmap.submit(polarmap.coded_map, f, list(BLOCKS), tasks=8, executor=threads)
    estimates = future.estimates()
    f.let_through(0, 2, 5)
    few = after(estimates, 3)
    f.let_through(1)
    more = after(estimates, 4)
    for estimate, arrived in ((few, [0, 2, 5]), (more, [0, 1, 2, 5])):
        for index, result in enumerate(estimate):
            expected = 2 * (BLOCKS[index] if index in arrived else BLOCKS[arrived].mean(axis=0))
            np.testing.assert_allclose(result, expected)
            assert not result.flags.writeable
        assert estimate.report.estimated_blocks == tuple(index for index in range(6) if index not in arrived)
        assert not estimate.report.is_final
        assert "estimated blocks: " in str(estimate.report)
    assert math.inf > few.report.error_p90 > more.report.error_p90 > 0
    f.open()
    *_, last = estimates
    assert last is future.result()
    assert last.report.error_p90 == 0
    assert last.report.errors == ()
    np.testing.assert_allclose(np.stack(list(last)), 2 * BLOCKS, rtol=1e-9)
    assert list(future.estimates()) == [last]  # a finished map yields its result only


def test_estimate_equals_result_of_a_map_with_a_deadline(threads: ThreadPoolExecutor) -> None:
    f = Turnstile(BLOCKS[:, 0])
    future = polarmap.submit(polarmap.coded_map, f, list(BLOCKS), tasks=8, executor=threads)
    f.let_through(4)
    f.parity_gate.set()
    now = after(future.estimates(), 3)  # one data block and two parity blocks
    f.open()
    late = polarmap.coded_map(
        lambda block: 2 * block,
        list(BLOCKS),
        tasks=8,
        executor=arriving([4, 6, 7], 8),
        timeout=9,
        on_timeout="estimate",
    )
    np.testing.assert_allclose(np.stack(list(now)), np.stack(list(late)))
    assert now.report.errors == pytest.approx(late.report.errors)
    assert now.report.error_p90 == pytest.approx(late.report.error_p90)


def test_rows_of_padding_are_cut_off(threads: ThreadPoolExecutor) -> None:
    data = np.arange(1.0, 24.0).reshape(23, 1)  # four blocks of six rows, with one padding row
    gate, first = threading.Event(), threading.Semaphore(2)

    def f(block: np.ndarray) -> np.ndarray:
        if len(block) == 6 and not first.acquire(blocking=False):
            assert gate.wait(SECONDS)
        return 3 * block

    future = polarmap.submit(polarmap.coded_map, f, data, blocks=4, tasks=6, executor=threads)
    now = after(future.estimates(), 2)
    gate.set()
    assert now.concatenate().shape == (23, 1)
    np.testing.assert_allclose(future.result(SECONDS).concatenate(), 3 * data)


def test_estimates_end_with_the_error_of_a_map_that_loses_too_many_tasks(threads: ThreadPoolExecutor) -> None:
    turnstile = Turnstile(BLOCKS[:, 0])

    def f(block: np.ndarray) -> np.ndarray:
        result = turnstile(block)
        if block[0] in BLOCKS[:3, 0]:
            raise ValueError("no")
        return result

    estimates = polarmap.submit(
        polarmap.coded_map, f, list(BLOCKS), tasks=8, executor=threads, retries=0
    ).estimates()
    turnstile.let_through(3)
    assert next(estimates).report.estimated_blocks == (0, 1, 2, 4, 5)
    turnstile.open()
    with pytest.raises(NotDecodableError):
        list(estimates)


@pytest.mark.filterwarnings("ignore:the data contains NaN", "ignore:the data holds NaN")
def test_results_that_cannot_be_encoded_are_not_estimated() -> None:
    blocks = BLOCKS.copy()
    blocks[3] = np.nan
    future = polarmap.submit(
        polarmap.coded_map, np.negative, list(blocks), tasks=8, executor=ReplayExecutor({3: 0.5})
    )
    [only] = future.estimates()
    np.testing.assert_array_equal(np.stack(list(only)), -blocks)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"degree": 2}, "supports only linear f, and not degree="),
        ({"code": SecretSharing()}, "supports only linear f, and not degree="),
        (
            {"code": LagrangeCode(12, 4, 2), "blocks": 4},
            "supports only linear f, and not degree=, SecretSharing or the code",
        ),
        ({"verb": polarmap.hedged_map}, "supports only coded_map, and not with out="),
        ({"verb": polarmap.coded_sum}, "supports only coded_map, and not with out="),
        ({"out": "y"}, "supports only coded_map, and not with out="),
    ],
)
def test_other_maps_have_no_estimates(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    options = {**options} | ({"out": Stored(options["out"], str(tmp_path))} if "out" in options else {})
    verb = options.pop("verb", polarmap.coded_map)
    future = polarmap.submit(verb, np.negative, np.eye(24), executor=ReplayExecutor(), **options)
    with pytest.raises(CodeError, match=words):
        future.estimates()
    future.result(SECONDS)
