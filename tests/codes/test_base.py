"""Tests of the algebra of all codes: weights G[arrived] = T[missing] and checks G[arrived] = 0."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.base import COEFFICIENT_TOL, MAX_MODULAR_CHECKS
from polarmap.codes.gradient_coding import GradientCode
from polarmap.codes.lagrange import LagrangeCode
from polarmap.codes.linear_code import LinearCode
from polarmap.codes.modular_linalg import find_independent_rows_gf2
from polarmap.codes.polar import PolarCode
from polarmap.codes.product import ProductCode
from polarmap.codes.secret_sharing import SecretSharingCode
from polarmap.codes.symmetric import SymmetricProductCode
from polarmap.codes.uncoded import Uncoded
from polarmap.errors import CodeError

INTEGERS = PolarCode(12, 8, "arikan")
CODES: list[LinearCode] = [
    PolarCode(12, 8),
    INTEGERS,
    PolarCode(16, 8, "arikan", "sequential"),
    PolarCode(12, 8, "hadamard"),
    ProductCode(PolarCode(4, 3), PolarCode(5, 3)),
    ProductCode(PolarCode(4, 3, "arikan"), PolarCode(5, 3, "arikan")),
    SymmetricProductCode(PolarCode(5, 3)),
    LagrangeCode(12, 4, 2),
    LagrangeCode(80, 9, 2),
    SecretSharingCode(12, 6, 2),
    GradientCode(9, 2),
    GradientCode(8, 2),
    Uncoded(5),
]
every_code = pytest.mark.parametrize("code", CODES, ids=repr)
# SymmetricProductCode is excluded: it decodes from blocks and their transposes, not by one weight per block.
plain = pytest.mark.parametrize(
    "code", [code for code in CODES if not isinstance(code, SymmetricProductCode)], ids=repr
)


def make_ready_tracker(code: LinearCode, exact: bool, seed: int) -> ArrivalTracker:
    """Return a tracker after just enough random arrivals, or a few more."""
    rng = np.random.default_rng(seed)
    decoder = ArrivalTracker(code, modular=exact)
    beyond = int(rng.integers(4))
    for index in rng.permutation(code.n).tolist():
        beyond -= decoder.add(index)
        if beyond < 0:
            break
    assert decoder.is_ready
    return decoder


@every_code
def test_sizes_agree(code: LinearCode) -> None:
    assert code.generator_matrix.shape[0] == code.n
    assert code.target_matrix.shape == (code.n_targets, code.generator_matrix.shape[1])
    np.testing.assert_array_equal(
        code.generator_matrix[code.systematic_indices], code.target_matrix[: len(code.systematic_indices)]
    )
    assert code.recovery_threshold <= code.n
    assert code.name and code.requirement


@plain
def test_properties_computed_without_the_coefficients_match_them(code: LinearCode) -> None:
    stream = np.random.default_rng(0)
    count, blocks = code.encoding_matrix.shape
    columns = stream.permutation(blocks)[: max(1, blocks // 2)]
    np.testing.assert_allclose(
        code.compute_encoding_matrix_columns(columns), code.encoding_matrix[:, columns], rtol=0, atol=1e-12
    )
    combinations = stream.standard_normal((3, count))
    np.testing.assert_allclose(
        code.left_multiply_encoding_matrix(combinations), combinations @ code.encoding_matrix, atol=1e-10
    )


@plain
@pytest.mark.parametrize("seed", range(8))
def test_weights_map_the_generator_to_the_targets(code: LinearCode, seed: int) -> None:
    recovery = make_ready_tracker(code, False, seed).decoder
    actual = recovery.weights @ code.generator_matrix[recovery.arrived_indices]
    np.testing.assert_allclose(actual, code.target_matrix[recovery.missing_indices], atol=1e-9)


@every_code
@pytest.mark.parametrize("seed", range(8))
def test_equations_vanish_on_the_generator(code: LinearCode, seed: int) -> None:
    recovery = make_ready_tracker(code, False, seed).decoder
    equations = recovery.check_matrix
    assert len(equations) == min(max(recovery.n_redundant_checks, 0), 8)
    np.testing.assert_allclose(equations @ code.generator_matrix[recovery.arrived_indices], 0, atol=1e-9)


@pytest.mark.parametrize("code", [code for code in CODES if code.supports_integers], ids=repr)
@pytest.mark.parametrize("seed", range(8))
def test_weights_and_checks_modulo_two_to_the_64(code: LinearCode, seed: int) -> None:
    recovery = make_ready_tracker(code, True, seed).decoder
    weights, checks = recovery.weights, recovery.check_matrix
    assert recovery.modular and recovery.amplification == 0 and weights.dtype == checks.dtype == np.uint64
    generator = code.generator_matrix.astype(np.int64).view(np.uint64)[recovery.arrived_indices]
    targets = code.target_matrix.astype(np.int64).view(np.uint64)
    np.testing.assert_array_equal(weights @ generator, targets[recovery.missing_indices])
    np.testing.assert_array_equal(checks @ generator, 0)
    assert (
        len(checks)
        == len(find_independent_rows_gf2(checks))
        == min(recovery.n_redundant_checks, MAX_MODULAR_CHECKS)
    )


@pytest.mark.parametrize("code", [code for code in CODES if code.supports_integers], ids=repr)
@pytest.mark.parametrize("seed", range(4))
def test_real_and_modular_arithmetic_have_separate_decoders(code: LinearCode, seed: int) -> None:
    decoder = make_ready_tracker(code, True, seed).decoder
    integers, floats = decoder.over(np.dtype("i2")), decoder.over(np.dtype("c8"))
    assert integers is decoder and floats is decoder.over(np.dtype("f8")) is not decoder
    assert not floats.modular and floats.over(np.dtype("i8")) is floats
    assert (floats.missing_indices == decoder.missing_indices).all() and not floats.rank_deficit
    actual = floats.weights @ code.generator_matrix[decoder.arrived_indices]
    np.testing.assert_allclose(actual, code.target_matrix[decoder.missing_indices], atol=1e-9)
    results = code.generator_matrix[decoder.arrived_indices] @ np.arange(1.0, code.k + 1)[:, np.newaxis]
    received = dict(zip(decoder.arrived_indices.tolist(), results))
    for dtype in ("f8", "i8"):
        as_dtype = {index: block.astype(dtype) for index, block in received.items()}
        decoded = decoder.decode(as_dtype, np.dtype(dtype))
        np.testing.assert_allclose(decoded[:, 0], decoder.missing_indices + 1.0, atol=1e-9)


@every_code
@pytest.mark.parametrize("seed", range(4))
def test_magnitudes_match_the_weights(code: LinearCode, seed: int) -> None:
    decoder = make_ready_tracker(code, False, seed).decoder
    magnitudes = decoder.weight_magnitudes
    assert magnitudes.shape == (len(decoder.missing_indices), len(decoder.arrived_indices))
    np.testing.assert_array_equal(decoder.max_weight_magnitudes, magnitudes.max(axis=0, initial=0))
    if isinstance(code, SymmetricProductCode):
        with pytest.raises(NotImplementedError, match=r"has no decoding weights\. Use weight_magnitudes"):
            _ = decoder.weights
    else:
        np.testing.assert_array_equal(magnitudes, np.abs(decoder.weights))
        masks = decoder.get_weight_masks(np.dtype("f8"))
        assert (masks.used_arrivals_mask == (magnitudes > COEFFICIENT_TOL).any(axis=0)).all()


@every_code
@pytest.mark.parametrize("seed", range(4))
def test_the_error_for_too_few_results_gives_the_minimum_number_missing(code: LinearCode, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(code.n)
    for count in range(code.n + 1):
        arrived = np.zeros(code.n, bool)
        arrived[order[:count]] = True
        recovery = code.make_decoder(arrived, modular=False)
        decoder = ArrivalTracker(code)
        for index in order[:count].tolist():
            decoder.add(index)
        assert (recovery.rank_deficit == 0) == decoder.is_ready
        assert count + recovery.rank_deficit <= code.n
        if recovery.rank_deficit:
            assert recovery.amplification == np.inf


@pytest.mark.parametrize("value", [None, "rotation", 3, PolarCode, np.zeros(3)])
def test_objects_that_are_not_codes_are_refused(value: object) -> None:
    with pytest.raises(CodeError, match="code must be a LinearCode and max_amplification a number, not "):
        ArrivalTracker(value)  # type: ignore[arg-type]
