"""Tests that a map detects that f is not linear, whichever results arrive."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from coded_maps import DATA, FLOATS, coded, losing
from plain import arriving

from polarmap import coded_map
from polarmap.codes import PolarCode
from polarmap.driver.function_properties import LINEAR_OR_AFFINE, FunctionProperty
from polarmap.driver.verification import Verifier
from polarmap.errors import NotDecodableError, NotLinearError
from polarmap.testing import ReplayExecutor
from polarmap.worker.pytree import get_layout


def test_one_nonlinear_block_does_not_count_as_garbage() -> None:
    # The worker returned f of its block, so the map blames f and not the worker.
    data = DATA.copy()
    data[6, 0] = 101
    with pytest.raises(NotLinearError, match="f of block 2 does not fit"):
        coded(lambda block: np.clip(block, -1e9, 100), data, executor=ReplayExecutor({3: math.inf}))


def test_a_random_function_is_refused() -> None:
    noise = np.random.default_rng(0)
    with pytest.raises(NotLinearError, match="or not deterministic"):
        coded(lambda block: block + noise.standard_normal(), executor=ReplayExecutor({3: math.inf}))


@pytest.mark.parametrize("f", [np.abs, np.square, lambda block: block.clip(0, 1)])
def test_equal_blocks_do_not_verify_a_function(f: Callable[[Any], Any]) -> None:
    options = {"blocks": 8, "tasks": 12, "timeout": 100}
    coded_map(f, np.ones((48, 3)), executor=losing(0), **options)
    with pytest.raises(NotLinearError):
        coded_map(f, FLOATS, executor=losing(0), **options)


def test_equal_results_do_not_make_f_linear() -> None:
    # The results that arrive are equal, because all these numbers are positive. The lost block is negative.
    data = np.array([[-1.0], [2.0], [3.0], [4.0]])
    arrived = [task for task in range(12) if task and (PolarCode(12, 4).encode(data)[task] > 0).all()]
    assert len(arrived) >= 5
    with pytest.raises(NotLinearError):
        coded_map(np.sign, data, blocks=4, tasks=12, executor=arriving(arrived, 12), timeout=100)


def test_copies_of_blocks_do_not_make_f_linear() -> None:
    # Three parity blocks of the (8, 3) code are copies of a data block, so f agrees on both.
    data = np.random.default_rng(0).integers(-99, 99, (9, 2))
    for order in ([1, 5, 4, 2], [1, 4, 5, 2, 6], [3, 7, 0, 1, 2], range(8)):
        executor = arriving([*order, *(task for task in range(8) if task not in order)], 8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            coded_map(np.square, data, blocks=3, tasks=8, executor=executor)
        assert FunctionProperty(np.square, LINEAR_OR_AFFINE, get_layout([data[:3]])).value is None


@pytest.mark.parametrize("lost", [(), (5,), (2,)])
def test_ragged_results_do_not_count_as_garbage(lost: tuple[int, ...]) -> None:
    # A single result has another shape. This is caused by f and not by the worker.
    data = np.arange(24.0).reshape(12, 2)
    with pytest.raises((NotLinearError, NotDecodableError), match="hedged_map"):
        coded_map(lambda block: block[block > 5], data, blocks=4, tasks=6, executor=losing(*lost))


def test_mixing_of_checks_is_examined_only_until_f_is_verified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = list[object]()
    is_mixing = Verifier.has_check_of_block_sum.fget
    assert is_mixing is not None
    monkeypatch.setattr(
        Verifier,
        "has_check_of_block_sum",
        property(lambda verifier: asked.append(verifier) or is_mixing(verifier)),
    )
    # Integers need as many arrivals as their pattern requires. The remaining few serve as checks.
    order = np.random.default_rng(0).permutation(64).tolist()
    executor = ReplayExecutor({task: 1.0 + turn / 10 for turn, task in enumerate(order)})
    whole, options = np.arange(144).reshape(48, 3), {"blocks": 48, "tasks": 64, "executor": executor}
    assert coded_map(np.negative, whole, **options).report.verified == "parity"
    assert asked
    asked.clear()
    assert coded_map(np.negative, whole, **options).report.verified == "parity"
    assert not asked
