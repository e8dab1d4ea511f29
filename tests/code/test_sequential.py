"""The sequential decoder against recursions written from the paper (arXiv 1901.06811)."""

from __future__ import annotations

import code_oracles as oracles
import numpy as np
import pytest
from polar_codes import arikan, received

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


SIZES = [(n, k) for n in range(2, 9) for k in range(1, n)]

SIZES += [(9, 2), (9, 6), (10, 3), (10, 5), (10, 8)]

by_size = pytest.mark.parametrize(("n", "k"), SIZES)


@by_size
def test_sequential_decodes_iff_the_genie_does(n: int, k: int) -> None:
    code = arikan(n, k, "sequential")
    for arrived in oracles.patterns(n):
        lost_data = not arrived[:k].all()
        assert code.decodable(arrived) == (oracles.sequential_decodable(code, arrived) or not lost_data)


@by_size
def test_sequential_decodes_only_what_optimal_does(n: int, k: int) -> None:
    same = PolarCode(n, k, "arikan", erasure=arikan(n, k, "sequential").erasure)
    for arrived in oracles.patterns(n):
        if arikan(n, k, "sequential").decodable(arrived):
            assert same.decodable(arrived)


@by_size
def test_sequential_recovers_floats_and_integers(n: int, k: int) -> None:
    code = arikan(n, k, "sequential")
    data = np.random.default_rng(n * k).integers(-1000, 1000, (k, 2))
    whole, real = code.encode(data), code.encode(data.astype(float))
    for arrived in filter(code.decodable, oracles.patterns(n)):
        assert code.decode(received(whole, arrived)).tolist() == data.tolist()
        assert code.decode(received(real, arrived)).tolist() == data.tolist()
