"""Tests of the butterfly transforms. The oracles are Kronecker powers and products with P."""

from __future__ import annotations

import code_oracles as oracles
import numpy as np
import pytest

from polarmap.codes.compute import transforms
from polarmap.codes.polar import PolarCode

KERNEL = np.array([[1, 1], [0, 1]])


@pytest.mark.parametrize("stages", [0, 1, 2, 5])
def test_arikan_is_the_kronecker_power_of_its_kernel(stages: int) -> None:
    matrix = np.ones((1, 1), int)
    for _ in range(stages):
        matrix = np.kron(matrix, KERNEL)
    identity = np.eye(2**stages, dtype=int)
    assert (transforms.apply_arikan_transform(identity.copy()) == matrix).all()
    assert (transforms.apply_arikan_transform(matrix.copy(), inverse=True) == identity).all()
    assert (transforms.apply_arikan_transform(identity.copy(), transpose=True) == matrix.T).all()
    assert (
        transforms.apply_arikan_transform(matrix.T.copy(), inverse=True, transpose=True) == identity
    ).all()


def test_arikan_wraps_and_unwraps() -> None:
    x = np.random.default_rng(0).integers(0, 255, (16, 5), np.uint8)
    assert (
        transforms.apply_arikan_transform(transforms.apply_arikan_transform(x.copy()), inverse=True) == x
    ).all()


@pytest.mark.parametrize(("n", "k"), [(20, 10), (64, 48), (90, 20), (9, 8), (8, 1)])
def test_rotation_parity_matches_its_network(n: int, k: int) -> None:
    network = PolarCode(n, k).butterfly_network
    size, groups = network.size, len(network.input_rotations)
    data = np.random.default_rng(0).standard_normal((k, 4))
    padded = np.concatenate([data, np.zeros((groups * size - k, 4))]).reshape(groups, size, 4)
    added = sum(
        oracles.dense_butterfly(turns) @ group
        for turns, group in zip(network.input_rotations, padded, strict=True)
    )
    stacked = np.concatenate(
        [
            oracles.dense_butterfly(turns) @ added[shuffle]
            for turns, shuffle in zip(network.output_rotations, network.permutations, strict=True)
        ]
    )
    expected = network.scale[:, None] * stacked[network.kept_rows] + np.outer(network.shift, data.sum(axis=0))
    np.testing.assert_allclose(transforms.encode_rotation_parity(data, network), expected, atol=1e-12)


@pytest.mark.parametrize(("n", "k"), [(20, 10), (64, 48), (90, 20), (9, 8), (8, 1)])
def test_transposed_rotation_parity_matches_p(n: int, k: int) -> None:
    code = PolarCode(n, k)
    parity = np.random.default_rng(0).standard_normal((n - k, 3))
    actual = transforms.apply_rotation_parity_adjoint(parity, code.butterfly_network, k)
    np.testing.assert_allclose(actual, code.encoding_matrix.T @ parity, atol=1e-12)


def test_columns_are_transformed_independently() -> None:
    code, data = PolarCode(50, 30), np.random.default_rng(0).standard_normal((30, 9))
    whole = transforms.encode_rotation_parity(data, code.butterfly_network)
    for column in range(9):
        alone = transforms.encode_rotation_parity(data[:, column : column + 1], code.butterfly_network)
        np.testing.assert_allclose(alone[:, 0], whole[:, column], atol=1e-13)
