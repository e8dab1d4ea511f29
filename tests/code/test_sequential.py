"""The sequential decoder against recursions written from the paper (arXiv 1901.06811)."""

from __future__ import annotations

import code_oracles as oracles
import numpy as np
import pytest

from polarmap.code import sequential
from polarmap.code.polar import PolarCode


@pytest.mark.parametrize(("n", "k"), [(16, 12), (30, 17), (64, 48), (100, 70)])
def test_progress_is_the_genies(n: int, k: int) -> None:
    code, stream = PolarCode(n, k, "arikan", "sequential"), np.random.default_rng(n)
    for _ in range(20):
        arrived = np.zeros(n, bool)
        progress = sequential.Progress(frozen_and_unsent(code))
        for index in stream.permutation(n).tolist():
            arrived[index] = True
            ready = progress.arrive(int(code.order[index]))
            assert ready == oracles.sequential_decodable(code, arrived)


@pytest.mark.parametrize(("n", "k"), [(16, 12), (30, 17), (64, 48)])
def test_schedule_fills_every_leaf(n: int, k: int) -> None:
    code, stream = PolarCode(n, k, "arikan", "sequential"), np.random.default_rng(n)
    data = stream.integers(-(2**62), 2**62, (k, 3))
    coded = code.encode(data)
    length = oracles.power_of_two(n)
    for _ in range(50):
        arrived = stream.random(n) < 0.95
        if not oracles.sequential_decodable(code, arrived):
            continue
        rows, known = np.zeros((2 * length, 3), np.int64), np.zeros(length, bool)
        leaves = code.order[arrived]
        known[leaves], rows[leaves] = True, coded[arrived]
        sequential.replay(sequential.schedule(frozen_and_unsent(code), known), rows)
        assert (rows[code.order] == coded).all()


def test_schedule_is_n_log_n() -> None:
    code = PolarCode(1024, 768, "arikan", "sequential")
    arrived = np.random.default_rng(0).random(1024) < 0.9
    known = np.zeros(1024, bool)
    known[code.order[arrived]] = True
    steps = sequential.schedule(frozen_and_unsent(code), known)
    assert sum(len(step.target) for step in steps) <= 1.5 * 1024 * 10


def frozen_and_unsent(code: PolarCode) -> np.ndarray:
    mask = np.zeros(oracles.power_of_two(code.n), bool)
    mask[code.frozen] = True
    mask[: len(mask) - code.n] = True
    return mask
