"""Tests of the butterflies of rotation codes. The oracle is a product of plain rotations."""

from __future__ import annotations

import code_oracles as oracles
import numpy as np
import pytest

from polarmap.codes.compute import transforms
from polarmap.codes.rotation_network import fuse_rotation_stages, generate_rotation_butterfly_network


@pytest.mark.parametrize(("n", "k"), [(20, 10), (64, 48), (70, 35), (600, 300)])
def test_butterfly_is_the_product_of_plain_rotations(n: int, k: int) -> None:
    network = generate_rotation_butterfly_network(n, k, seed=0)
    for turns in (*network.input_rotations, *network.output_rotations):
        matrix = transforms.apply_butterfly_stages(
            np.eye(network.size), fuse_rotation_stages(turns[np.newaxis])
        )
        np.testing.assert_allclose(matrix, oracles.dense_butterfly(turns), atol=1e-14)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(network.size), atol=1e-13)
