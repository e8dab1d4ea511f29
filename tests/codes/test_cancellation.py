"""Recovery by cancellation against P and dense algebra modulo 2^64, where cancellation gets stuck too."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap.codes.cancellation import InactivationRecovery
from polarmap.codes.decoder import Decoder
from polarmap.codes.modular import ModularRecovery
from polarmap.codes.polar import PolarCode


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize(("n", "k"), [(16, 12), (30, 17), (64, 48)])
def test_weights_and_equations_are_those_of_the_steps_and_of_p(n: int, k: int, levels: int | None) -> None:
    code, stream = PolarCode(n, k, "arikan", "sequential", levels=levels), np.random.default_rng(n)
    for _ in range(20):
        arrived = stream.random(n) < 0.95
        recovery = code.recovery(arrived, exact=False)
        combinations = stream.standard_normal((3, len(recovery.parity)))
        known = code.coefficients[np.ix_(recovery.parity, recovery.known)]
        np.testing.assert_allclose(recovery.through_known(combinations), combinations @ known, atol=1e-12)
        assert (recovery.system == code.coefficients[np.ix_(recovery.parity, recovery.missing)]).all()
        if recovery.deficit:
            continue
        units = dict(zip(recovery.arrived.tolist(), np.eye(len(recovery.arrived)), strict=True))
        assert (recovery.weights == recovery.recover(units, np.dtype("f8"))).all()


@pytest.mark.parametrize(
    ("n", "k", "levels"), [(16, 12, None), (64, 48, 5), (100, 70, None), (256, 192, None), (300, 200, None)]
)
def test_patterns_that_get_stuck_are_decided_and_decoded_as_by_dense_algebra(
    n: int, k: int, levels: int | None
) -> None:
    code, stream = PolarCode(n, k, "arikan", levels=levels), np.random.default_rng(n)
    coded = code.encode(stream.integers(-(2**63), 2**63 - 1, (k, 3)))
    stuck = 0
    for _ in range(12):
        order = stream.permutation(n)
        decoder = Decoder(code, exact=True)
        count = next(count for count, index in enumerate(order.tolist(), 1) if decoder.add(index))
        for some in {k, (k + count) // 2, count - 1}:
            arrived = np.isin(np.arange(n), order[:some])
            assert code.recovery(arrived, exact=True).deficit == ModularRecovery(code, arrived).deficit
        recovery = decoder.recovery
        assert (
            isinstance(recovery, InactivationRecovery) and ModularRecovery(code, decoder.arrived).deficit == 0
        )
        stuck += recovery._schedule.variables > 0
        rows = {index: coded[index] for index in recovery.arrived.tolist()}
        assert (recovery.recover(rows, np.dtype("i8")) == coded[recovery.missing]).all()
        weights, checks = recovery.integer_weights(), recovery.integer_checks()
        assert weights is not None and checks is not None
        assert (weights.view("i8") @ coded[recovery.arrived] == coded[recovery.missing]).all()
        assert not (checks.view("i8") @ coded[recovery.arrived]).any()
        assert len(checks) == min(recovery.surplus, 16)
        used, mixed, shown = recovery.composition(np.dtype("i8"))
        assert (used == weights.any(axis=0)).all() and (shown == weights % 2).all()
        assert (mixed == (np.count_nonzero(weights, axis=1) > 1)).all()
    assert stuck or n == 16


def test_ten_thousand_results_are_decided_and_decoded_by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """P is never asked for, which would be 150 MB, and no equation solved but those of the variables."""
    code = PolarCode(10_000, 7_500, "arikan")
    monkeypatch.setattr(type(code), "coefficients", property(lambda code: pytest.fail("P is formed")))
    data = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, (7_500, 2))
    coded = np.concatenate([data, code.parity(data)])
    decoder, order = Decoder(code, exact=True), np.random.default_rng(1).permutation(10_000)
    count = next(count for count, index in enumerate(order.tolist(), 1) if decoder.add(index))
    assert 7_500 < count < 7_700
    recovery = decoder.recovery
    assert isinstance(recovery, InactivationRecovery) and 0 < recovery._schedule.variables < 400
    rows = {index: coded[index] for index in recovery.arrived.tolist()}
    assert (recovery.recover(rows, np.dtype("i8")) == data[recovery.missing]).all()
    checks = recovery.integer_checks()
    assert checks is not None and len(checks) == 16
    assert not (checks.view("i8") @ coded[recovery.arrived]).any()
