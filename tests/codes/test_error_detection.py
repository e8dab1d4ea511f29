"""Tests of redundant parity checks: all of them hold, or they locate the erroneous block."""

from __future__ import annotations

import numpy as np
import pytest
from product_codes import blocks_of, decoded, grid

from polarmap.codes import error_detection
from polarmap.codes.integer_secret_sharing import IntegerSecretSharingCode
from polarmap.codes.linear_code import LinearCode
from polarmap.codes.polar import PolarCode


def test_redundant_checks_hold_and_locate_garbage() -> None:
    code = grid((6, 4), (6, 4))
    data = blocks_of(code, "float64")
    arrived = np.ones(code.n, bool)
    arrived[[0, 5, 9, 20, 31]] = False
    decoder = decoded(code, arrived, False)
    assert decoder.n_redundant_checks == 15
    rows = {int(index): data[index].copy() for index in np.flatnonzero(arrived)}
    assert not len(error_detection.evaluate_parity_checks(decoder.decoder, rows, data.dtype).violations)
    rows[7] += 1
    broken = error_detection.evaluate_parity_checks(decoder.decoder, rows, data.dtype).violations
    assert broken.tolist() == [0, 1, 2]
    assert error_detection.locate_erroneous_blocks(decoder.decoder, rows, broken, data.dtype) == [7]


def test_checks_allow_the_rounding_of_large_terms() -> None:
    code = PolarCode(9, 6)
    data = 1e-9 * np.random.default_rng(0).standard_normal((6, 3))
    mixed = np.concatenate([data, code.encode_parity(data)])
    recovery = code.make_decoder(np.ones(9, bool), modular=False)
    terms = 1e3  # 2.3e-10 is 1024 times the rounding error of such terms.
    for deviation, alone, known in ((0.0, 0, 0), (1e-11, 1, 0), (1e-9, 1, 1)):
        rows = dict(enumerate(mixed.copy()))
        rows[2][1] += deviation
        assert len(error_detection.evaluate_parity_checks(recovery, rows, data.dtype).violations) == alone
        checks = error_detection.evaluate_parity_checks(
            recovery, rows, data.dtype, magnitude_before_cancellation=terms
        )
        assert len(checks.violations) == known
        assert known or checks.max_relative <= deviation / terms + 1e-24


@pytest.mark.parametrize("code", [PolarCode(12, 8, "arikan"), IntegerSecretSharingCode(16, 6, 1)], ids=repr)
@pytest.mark.parametrize("dtype", ["i8", "u2"])
@pytest.mark.parametrize("deviation", [1, 6, 1 << 15])
def test_all_blocks_that_could_be_erroneous_integers_are_located(
    code: LinearCode, dtype: str, deviation: int
) -> None:
    # A block is named if all remaining blocks determine the data and satisfy all checks.
    arrived = np.arange(code.n) > 0
    recovery = code.make_decoder(arrived, modular=True)
    data = np.random.default_rng(0).integers(0, 1 << 16, (code.n_input_blocks, 3)).astype("i8")
    mixed = (
        code.encode_parity(data)
        if len(code.systematic_indices) == 0
        else np.concatenate([data, code.encode_parity(data)])
    )
    for index in recovery.arrived_indices.tolist():
        received = {int(task): mixed[task].astype(dtype) for task in recovery.arrived_indices}
        received[index][1:2] += np.array(deviation).astype(dtype)
        broken = error_detection.evaluate_parity_checks(recovery, received, np.dtype(dtype)).violations
        if not len(broken):
            continue  # An even coefficient times an even deviation can vanish modulo 2^bits.
        named = error_detection.locate_erroneous_blocks(recovery, received, broken, np.dtype(dtype))
        assert index in named
        for other in recovery.arrived_indices.tolist():
            without = code.make_decoder(arrived & (np.arange(code.n) != other), modular=True)
            if without.rank_deficit:
                continue
            holds = not len(
                error_detection.evaluate_parity_checks(without, received, np.dtype(dtype)).violations
            )
            assert (other in named) == (holds and recovery.n_redundant_checks > 1)
