"""The sequential decoder against recursions written from the paper (arXiv 1901.06811)."""

from __future__ import annotations

import math

import code_oracles as oracles
import numpy as np
import pytest
from polar_codes import SIZES, received

from polarmap.codes import row_operations, sequential
from polarmap.codes.polar import PolarCode


@pytest.mark.parametrize(
    ("n", "k", "fewer"), [(16, 12, 0), (30, 17, 0), (64, 48, 0), (100, 70, 0), (30, 17, 2), (50, 35, 3)]
)
def test_progress_is_the_genies(n: int, k: int, fewer: int) -> None:
    code, stream = with_fewer_levels(n, k, fewer), np.random.default_rng(n)
    for _ in range(20):
        arrived = np.zeros(n, bool)
        progress = sequential.Progress(frozen_and_unsent(code))
        for index in stream.permutation(n).tolist():
            arrived[index] = True
            ready = progress.arrive(int(code.order[index]))
            assert ready == oracles.sequential_decodable(code, arrived)


@pytest.mark.parametrize(
    ("n", "k", "fewer"), [(16, 12, 0), (30, 17, 0), (64, 48, 0), (30, 17, 2), (50, 35, 3)]
)
def test_schedule_fills_every_leaf(n: int, k: int, fewer: int) -> None:
    code, stream = with_fewer_levels(n, k, fewer), np.random.default_rng(n)
    data = stream.integers(-(2**62), 2**62, (k, 3))
    coded = code.encode(data)
    frozen = frozen_and_unsent(code)
    length = frozen.size
    for _ in range(50):
        arrived = stream.random(n) < 0.95
        if not oracles.sequential_decodable(code, arrived):
            continue
        rows, known = np.zeros((2 * length + 1, 3), np.int64), np.zeros(length, bool)
        leaves = code.order[arrived]
        known[leaves], rows[leaves] = True, coded[arrived]
        schedule = sequential.Schedule(frozen, known.reshape(frozen.shape))
        assert schedule.variables == 0
        row_operations.replay(schedule.steps, rows)
        assert (rows[code.order] == coded).all()


@pytest.mark.parametrize("levels", [10, 8, 5])
def test_schedule_is_n_log_n(levels: int) -> None:
    code = PolarCode(1024, 768, "arikan", "sequential", levels=levels)
    arrived = np.random.default_rng(0).random(1024) < 0.97
    assert oracles.sequential_decodable(code, arrived)
    known = np.zeros(1024, bool)
    known[code.order[arrived]] = True
    frozen = frozen_and_unsent(code)
    steps = sequential.Schedule(frozen, known.reshape(frozen.shape)).steps
    assert sum(len(step.target) for step in steps) <= 1.5 * 1024 * levels


def with_fewer_levels(n: int, k: int, fewer: int) -> PolarCode:
    most = oracles.power_of_two(n).bit_length() - 1
    return PolarCode(n, k, "arikan", "sequential", levels=most - fewer)


def frozen_and_unsent(code: PolarCode) -> np.ndarray:
    size = 2**code.levels
    mask = np.zeros(math.ceil(code.n / size) * size, bool)
    mask[code.frozen] = True
    mask[: len(mask) - code.n] = True
    return mask.reshape(size, -1)


PARTIAL = [(4, 2, 1), (6, 4, 2), (7, 4, 2), (8, 6, 2), (9, 5, 2), (10, 5, 1), (9, 6, 3)]


@pytest.mark.parametrize(("n", "k", "levels"), [*((n, k, None) for n, k in SIZES), *PARTIAL])
def test_what_the_genie_gets_through_is_decoded(n: int, k: int, levels: int | None) -> None:
    """And nothing else; all that an optimal decoder of the same code decodes, too, which is more."""
    code = PolarCode(n, k, "arikan", "sequential", levels=levels)
    optimal = PolarCode(n, k, "arikan", erasure=code.erasure, levels=levels)
    check = oracles.polar_check(optimal)
    data = np.random.default_rng(n * k).integers(-1000, 1000, (k, 2))
    coded, real = code.encode(data), code.encode(data.astype(float))
    assert (coded == optimal.encode(data)).all()
    assert not (check @ coded).any()
    for arrived in oracles.patterns(n):
        through = oracles.sequential_decodable(code, arrived) or arrived[:k].all()
        assert code.decodable(arrived) == through
        assert optimal.decodable(arrived) == (oracles.gf2_decodable(check, arrived) or arrived[:k].all())
        if through:
            assert optimal.decodable(arrived)
            assert code.decode(received(coded, arrived)).tolist() == data.tolist()
            assert code.decode(received(real, arrived)).tolist() == data.tolist()
