"""Tests of the compiled kernel. The oracles are NumPy and the Python source of the kernel, interpreted."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from polarmap.codes.compute import block_matmul, transforms, transforms_numba
from polarmap.codes.polar import PolarCode

SIZES = [(40, 30), (100, 37), (64, 32), (200, 100), (97, 72), (300, 260)]


def parity(code: PolarCode, data: np.ndarray) -> np.ndarray:
    out = np.full((code.n - code.k, data.shape[1]), np.nan)
    block_matmul.encode_rotation_parity_tiled(code.butterfly_network, data, out, transforms_numba)
    return out


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("width", [1, 255, 256, 1100])
def test_rotation_parity_matches_numpy(n: int, k: int, width: int) -> None:
    code = PolarCode(n, k)
    data = np.random.default_rng(width).standard_normal((k, width))
    expected = transforms.encode_rotation_parity(data, code.butterfly_network)
    np.testing.assert_allclose(parity(code, data), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 5), (4, 4), (7, 50)])
@pytest.mark.parametrize("width", [1, 255, 256, 1100])
def test_combined_rows_match_a_matrix_product(
    shape: tuple[int, int], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_matmul, "MIN_COMPILED_BYTES", 0)
    stream = np.random.default_rng(width)
    weights, rows = stream.standard_normal(shape), stream.standard_normal((shape[1], width))
    out = np.full((shape[0], width), np.nan)
    block_matmul.combine_rows(weights, list(rows), out)
    np.testing.assert_allclose(out, weights @ rows, atol=1e-12)


def test_the_interpreted_kernel_matches_the_compiled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    code = PolarCode(40, 24)
    stream = np.random.default_rng(0)
    data, weights = stream.standard_normal((24, 40)), stream.standard_normal((3, 24))
    expected, product = parity(code, data), np.empty((3, 40))
    for name in (
        "_apply_rotations",
        "_load_tile",
        "encode_rotation_parity",
        "_accumulate_four_rows",
        "combine_rows",
    ):
        monkeypatch.setattr(transforms_numba, name, getattr(transforms_numba, name).py_func)
    monkeypatch.setattr(transforms_numba, "_row_view", read_row_slice)
    np.testing.assert_allclose(parity(code, data), expected, atol=1e-13)
    monkeypatch.setattr(block_matmul, "MIN_COMPILED_BYTES", 0)
    block_matmul.combine_rows(weights, data, product)
    np.testing.assert_allclose(product, weights @ data, atol=1e-13)


def read_row_slice(addresses: np.ndarray, row: int, left: int, right: int) -> np.ndarray:
    """Return columns `left` to `right` of the row at an address, as `_row_view` does in compiled code."""
    doubles = ctypes.c_double * (right - left)
    return np.ctypeslib.as_array(doubles.from_address(int(addresses[row]) + 8 * left))
