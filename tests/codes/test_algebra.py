"""The algebra of every code: weights G[arrived] = T[missing], equations G[arrived] = 0, for any arrivals."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap.codes.algebra import INTEGER_CHECKS
from polarmap.codes.decoder import Decoder
from polarmap.codes.gradient_coding import GradientCode
from polarmap.codes.lagrange import LagrangeCode
from polarmap.codes.linear import LinearCode
from polarmap.codes.masked import MaskedCode
from polarmap.codes.modular import independent_rows
from polarmap.codes.polar import PolarCode
from polarmap.codes.product import ProductCode
from polarmap.codes.symmetric import SymmetricProductCode
from polarmap.codes.uncoded import Uncoded
from polarmap.errors import CodeError

INTEGERS = PolarCode(12, 8, "arikan")
CODES: list[LinearCode] = [
    PolarCode(12, 8),
    INTEGERS,
    PolarCode(16, 8, "arikan", "sequential"),
    ProductCode(PolarCode(4, 3), PolarCode(5, 3)),
    ProductCode(PolarCode(4, 3, "arikan"), PolarCode(5, 3, "arikan")),
    SymmetricProductCode(PolarCode(5, 3)),
    LagrangeCode(12, 4, 2),
    LagrangeCode(80, 9, 2),
    MaskedCode(12, 6, 2),
    GradientCode(9, 2),
    GradientCode(8, 2),
    Uncoded(5),
]
every_code = pytest.mark.parametrize("code", CODES, ids=repr)
# Its recovered blocks are made of blocks and of their transposes, which no single weight describes.
plain = pytest.mark.parametrize(
    "code", [code for code in CODES if not isinstance(code, SymmetricProductCode)], ids=repr
)


def determined(code: LinearCode, exact: bool, seed: int) -> Decoder:
    """When random arrivals have just become enough, or some more than that."""
    rng = np.random.default_rng(seed)
    decoder = Decoder(code, exact=exact)
    beyond = int(rng.integers(4))
    for index in rng.permutation(code.n).tolist():
        beyond -= decoder.add(index)
        if beyond < 0:
            break
    assert decoder.ready
    return decoder


@every_code
def test_sizes_agree(code: LinearCode) -> None:
    assert code.generator.shape[0] == code.n
    assert code.targets.shape == (code.wanted, code.generator.shape[1])
    np.testing.assert_array_equal(code.generator[code.systematic], code.targets[: len(code.systematic)])
    assert code.recovery_threshold <= code.n
    assert code.name and code.assumption


@plain
def test_what_is_made_without_the_coefficients_is_made_of_them(code: LinearCode) -> None:
    stream = np.random.default_rng(0)
    count, blocks = code.coefficients.shape
    some = stream.permutation(blocks)[: max(1, blocks // 2)]
    np.testing.assert_allclose(code.columns(some), code.coefficients[:, some], rtol=0, atol=1e-12)
    combinations = stream.standard_normal((3, count))
    np.testing.assert_allclose(code.transposed(combinations), combinations @ code.coefficients, atol=1e-10)


@plain
@pytest.mark.parametrize("seed", range(8))
def test_weights_make_targets_of_the_generator(code: LinearCode, seed: int) -> None:
    recovery = determined(code, False, seed).recovery
    found = recovery.weights @ code.generator[recovery.arrived]
    np.testing.assert_allclose(found, code.targets[recovery.missing], atol=1e-9)


@every_code
@pytest.mark.parametrize("seed", range(8))
def test_equations_vanish_on_the_generator(code: LinearCode, seed: int) -> None:
    recovery = determined(code, False, seed).recovery
    equations = recovery.equations(8)
    assert len(equations) == min(max(recovery.surplus, 0), 8)
    np.testing.assert_allclose(equations @ code.generator[recovery.arrived], 0, atol=1e-9)


@pytest.mark.parametrize("code", [code for code in CODES if code.carries_integers], ids=repr)
@pytest.mark.parametrize("seed", range(8))
def test_the_same_modulo_two_to_the_64(code: LinearCode, seed: int) -> None:
    recovery = determined(code, True, seed).recovery
    weights, checks = recovery.integer_weights(), recovery.integer_checks()
    assert recovery.exact and recovery.amplification == 0 and weights is not None and checks is not None
    generator = code.generator.astype(np.int64).view(np.uint64)[recovery.arrived]
    targets = code.targets.astype(np.int64).view(np.uint64)
    np.testing.assert_array_equal(weights @ generator, targets[recovery.missing])
    np.testing.assert_array_equal(checks @ generator, 0)
    assert len(checks) == len(independent_rows(checks)) == min(recovery.surplus, INTEGER_CHECKS)


@every_code
@pytest.mark.parametrize("seed", range(4))
def test_too_few_results_say_how_many_more_it_takes_at_the_least(code: LinearCode, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(code.n)
    for count in range(code.n + 1):
        arrived = np.zeros(code.n, bool)
        arrived[order[:count]] = True
        recovery = code.recovery(arrived, exact=False)
        decoder = Decoder(code)
        for index in order[:count].tolist():
            decoder.add(index)
        assert (recovery.deficit == 0) == decoder.ready
        assert count + recovery.deficit <= code.n
        if recovery.deficit:
            assert recovery.amplification == np.inf


@pytest.mark.parametrize("value", [None, "rotation", 3, PolarCode, np.zeros(3)])
def test_other_things_are_no_codes(value: object) -> None:
    with pytest.raises(CodeError, match="a Decoder takes a code and a number, not "):
        Decoder(value)  # type: ignore[arg-type]
