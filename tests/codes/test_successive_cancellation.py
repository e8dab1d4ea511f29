"""Tests of successive cancellation against the recursions of arXiv 1901.06811 and algebra modulo 2^64."""

from __future__ import annotations

import math

import code_oracles as oracles
import numpy as np
import pytest
from polar_codes import SIZES, received

from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.compute import row_program
from polarmap.codes.modular_decoders import ModularSystematicDecoder
from polarmap.codes.polar import PolarCode
from polarmap.codes.successive_cancellation import (
    CancellationProgram,
    CancellationTracker,
    InactivationDecoder,
)


@pytest.mark.parametrize(
    ("n", "k", "fewer"), [(16, 12, 0), (30, 17, 0), (64, 48, 0), (100, 70, 0), (30, 17, 2), (50, 35, 3)]
)
def test_progress_matches_the_genie(n: int, k: int, fewer: int) -> None:
    code, stream = with_fewer_levels(n, k, fewer), np.random.default_rng(n)
    for _ in range(20):
        order, progress = stream.permutation(n), CancellationTracker(frozen_and_unsent(code))
        ready = [progress.add_known_position(leaf) for leaf in code.codeword_positions[order].tolist()]
        count = ready.index(True) + 1
        assert all(ready[count:])
        assert oracles.sequential_decodable(code, np.isin(np.arange(n), order[:count]))
        assert not oracles.sequential_decodable(code, np.isin(np.arange(n), order[: count - 1]))


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
        leaves = code.codeword_positions[arrived]
        known[leaves], rows[leaves] = True, coded[arrived]
        schedule = CancellationProgram(frozen, known.reshape(frozen.shape))
        assert schedule.n_inactivated == 0
        row_program.execute_operation_batches(schedule.operation_batches, rows)
        assert (rows[code.codeword_positions] == coded).all()


@pytest.mark.parametrize("levels", [10, 8, 5])
def test_schedule_is_n_log_n(levels: int) -> None:
    code = PolarCode(1024, 768, "arikan", "sequential", levels=levels)
    arrived = np.random.default_rng(0).random(1024) < 0.97
    assert oracles.sequential_decodable(code, arrived)
    known = np.zeros(1024, bool)
    known[code.codeword_positions[arrived]] = True
    frozen = frozen_and_unsent(code)
    steps = CancellationProgram(frozen, known.reshape(frozen.shape)).operation_batches
    assert sum(len(step.target_rows) for step in steps) <= 1.5 * 1024 * levels


def with_fewer_levels(n: int, k: int, fewer: int) -> PolarCode:
    max_levels = oracles.power_of_two(n).bit_length() - 1
    return PolarCode(n, k, "arikan", "sequential", levels=max_levels - fewer)


def frozen_and_unsent(code: PolarCode) -> np.ndarray:
    size = 2**code.levels
    mask = np.zeros(math.ceil(code.n / size) * size, bool)
    mask[code.frozen_set] = True
    mask[: len(mask) - code.n] = True
    return mask.reshape(size, -1)


PARTIAL = [(4, 2, 1), (6, 4, 2), (7, 4, 2), (8, 6, 2), (9, 5, 2), (10, 5, 1), (9, 6, 3)]


@pytest.mark.parametrize(("n", "k", "levels"), [*((n, k, None) for n, k in SIZES), *PARTIAL])
def test_exactly_the_patterns_that_the_genie_decodes_are_decoded(n: int, k: int, levels: int | None) -> None:
    # Only these patterns are decoded. An optimal decoder of the same code decodes all of them, and more.
    code = PolarCode(n, k, "arikan", "sequential", levels=levels)
    optimal = PolarCode(n, k, "arikan", erasure=code.erasure, levels=levels)
    check = oracles.polar_check(optimal)
    data = np.random.default_rng(n * k).integers(-1000, 1000, (k, 2))
    coded, real = code.encode(data), code.encode(data.astype(float))
    assert (coded == optimal.encode(data)).all()
    assert not (check @ coded).any()
    for arrived in oracles.patterns(n):
        through = oracles.sequential_decodable(code, arrived) or arrived[:k].all()
        assert code.is_decodable(arrived) == through
        if levels:
            assert optimal.is_decodable(arrived) == (
                oracles.gf2_decodable(check, arrived) or arrived[:k].all()
            )
        if through:
            assert optimal.is_decodable(arrived)
            assert code.decode(received(coded, arrived)).tolist() == data.tolist()
            assert code.decode(received(real, arrived)).tolist() == data.tolist()


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize(("n", "k"), [(16, 12), (30, 17), (64, 48)])
def test_weights_and_checks_match_the_steps_and_p(n: int, k: int, levels: int | None) -> None:
    code, stream = PolarCode(n, k, "arikan", "sequential", levels=levels), np.random.default_rng(n)
    for _ in range(20):
        arrived = stream.random(n) < 0.95
        recovery = code.make_decoder(arrived, modular=False)
        combinations = stream.standard_normal((3, len(recovery.arrived_parity_indices)))
        known = code.encoding_matrix[np.ix_(recovery.arrived_parity_indices, recovery.arrived_data_indices)]
        np.testing.assert_allclose(
            recovery.multiply_by_arrived_data_columns(combinations), combinations @ known, atol=1e-12
        )
        assert (
            recovery.system_matrix
            == code.encoding_matrix[np.ix_(recovery.arrived_parity_indices, recovery.missing_indices)]
        ).all()
        if recovery.rank_deficit:
            continue
        units = dict(
            zip(recovery.arrived_indices.tolist(), np.eye(len(recovery.arrived_indices)), strict=True)
        )
        assert (recovery.weights == recovery.decode(units, np.dtype("f8"))).all()


def make_inactivation_decoder(code: PolarCode, arrived_mask: np.ndarray) -> InactivationDecoder:
    """Return the decoder that small codes use for wide blocks only."""
    return InactivationDecoder(code, arrived_mask, code.codeword_positions, code.zero_input_mask)


@pytest.mark.parametrize(
    ("n", "k", "levels"), [(16, 12, None), (64, 48, 5), (100, 70, None), (256, 192, None), (300, 200, None)]
)
def test_patterns_with_inactivations_match_dense_algebra(n: int, k: int, levels: int | None) -> None:
    code, stream = PolarCode(n, k, "arikan", levels=levels), np.random.default_rng(n)
    coded = code.encode(stream.integers(-(2**63), 2**63 - 1, (k, 3)))
    stuck = 0
    for _ in range(12):
        order = stream.permutation(n)
        decoder = ArrivalTracker(code, modular=True)
        count = next(count for count, index in enumerate(order.tolist(), 1) if decoder.add(index))
        for n_arrived in {k, (k + count) // 2, count - 1}:
            arrived = np.isin(np.arange(n), order[:n_arrived])
            assert (
                make_inactivation_decoder(code, arrived).rank_deficit
                == ModularSystematicDecoder(code, arrived).rank_deficit
            )
        recovery = make_inactivation_decoder(code, decoder.arrived_mask)
        assert recovery.rank_deficit == 0
        assert ModularSystematicDecoder(code, decoder.arrived_mask).rank_deficit == 0
        stuck += recovery.solver.n_inactivated > 0
        rows = {index: coded[index] for index in recovery.arrived_indices.tolist()}
        assert (recovery.decode(rows, np.dtype("i8")) == coded[recovery.missing_indices]).all()
        weights, checks = recovery.weights, recovery.check_matrix
        assert (weights.view("i8") @ coded[recovery.arrived_indices] == coded[recovery.missing_indices]).all()
        assert not (checks.view("i8") @ coded[recovery.arrived_indices]).any()
        assert len(checks) == min(recovery.n_redundant_checks, 16)
        used, mixed, [(_, _, shown)] = recovery.get_weight_masks(np.dtype("i8"))
        assert (used == weights.any(axis=0)).all() and (shown == weights % 2).all()
        assert (mixed == (np.count_nonzero(weights, axis=1) > 1)).all()
    assert stuck or n == 16


def test_ten_thousand_results_are_decoded_without_forming_p(monkeypatch: pytest.MonkeyPatch) -> None:
    # P would take 150 MB and is never formed. Only the equations of inactivated variables are solved.
    code = PolarCode(10_000, 7_500, "arikan")
    monkeypatch.setattr(type(code), "encoding_matrix", property(lambda code: pytest.fail("P is formed")))
    data = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, (7_500, 2))
    coded = np.concatenate([data, code.encode_parity(data)])
    decoder, order = ArrivalTracker(code, modular=True), np.random.default_rng(1).permutation(10_000)
    count = next(count for count, index in enumerate(order.tolist(), 1) if decoder.add(index))
    assert 7_500 < count < 7_700
    recovery = decoder.decoder
    assert isinstance(recovery, InactivationDecoder) and 0 < recovery.solver.n_inactivated < 400
    rows = {index: coded[index] for index in recovery.arrived_indices.tolist()}
    assert (recovery.decode(rows, np.dtype("i8")) == data[recovery.missing_indices]).all()
    checks = recovery.check_matrix
    assert len(checks) == 16
    assert not (checks.view("i8") @ coded[recovery.arrived_indices]).any()
