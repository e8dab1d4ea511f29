"""Networks against their formula, and units that are taken from convex weights."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from polarmap.convexnn.network import TwoLayerNetwork, extracted_units

STREAM = np.random.default_rng(0)
X = STREAM.standard_normal((9, 3))


def test_units_have_the_products_of_the_weights_and_the_least_squares() -> None:
    W = STREAM.standard_normal((4, 2, 3, 2))
    W[:, 1, 2, 0] = 0
    (first, second), bias, gate = extracted_units(W, True)
    assert first.shape == (3, 11) and second.shape == (11, 2) and gate.shape == (11,)
    whole = np.vstack([first, bias])
    product = np.einsum("fu,uo->fo", whole, second)
    np.testing.assert_allclose(product, (W[:, 0] - W[:, 1]).sum(axis=1))
    squares = np.sum(whole**2) + np.sum(second**2)
    np.testing.assert_allclose(squares / 2, np.linalg.norm(W, axis=0).sum())


def test_nothing_is_one_unit_of_zeros() -> None:
    (first, second), bias, gate = extracted_units(np.zeros((3, 1, 4, 2)), False)
    assert first.shape == (3, 1) and second.shape == (1, 2) and bias.shape == (1,) and gate.tolist() == [0]
    assert not first.any() and not second.any()


def test_gated_units_pass_on_what_is_negative() -> None:
    gates = np.array([[1.0], [0.0], [0.0]]), np.array([0.2]), np.zeros(2, np.intp)
    first, second = STREAM.standard_normal((3, 2)), STREAM.standard_normal((2, 2))
    network = TwoLayerNetwork([first, second], [np.ones(2), np.zeros(2)], gates)
    passed = X[:, :1] + 0.2 >= 0
    expected = (passed * (X @ first + 1)) @ second
    np.testing.assert_allclose(network(X), expected)
    np.testing.assert_allclose(network(csr_array(X)), expected)
    relu = network._replace(gates=None)
    np.testing.assert_allclose(relu(X), np.maximum(X @ first + 1, 0) @ second)
