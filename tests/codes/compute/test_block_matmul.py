"""Tests of products of all sizes, and of the compiled path for rows of any memory layout."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap.codes.compute import block_matmul
from polarmap.codes.polar import PolarCode


def test_rows_of_other_lengths_are_not_read_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_matmul, "MIN_COMPILED_BYTES", 0)
    with pytest.raises(ValueError, match="broadcast"):
        block_matmul.combine_rows(np.ones((1, 2)), [np.ones(5), np.ones(3)], np.empty((1, 5)))


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
@pytest.mark.parametrize("strided", [False, True])
def test_decode_takes_the_compiled_path_for_any_rows(
    dtype: str, strided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_matmul, "MIN_COMPILED_BYTES", 0)
    code = PolarCode(100, 70)
    data = np.random.default_rng(0).standard_normal((70, 600)).astype(dtype)
    coded = np.repeat(code.encode(data), 2, axis=1)[:, ::2] if strided else code.encode(data)
    decoded = code.decode({index: coded[index] for index in range(5, 90)})
    tolerance = 1e-11 if np.finfo(dtype).bits == 64 else 1e-4
    np.testing.assert_allclose(decoded, data, atol=tolerance)


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
@pytest.mark.parametrize("layout", ["rows", "list", "strided", "read-only"])
def test_parity_takes_the_compiled_path_for_any_rows(
    dtype: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = PolarCode(300, 200)
    data = np.random.default_rng(0).standard_normal((200, 500)).astype(dtype)
    expected = code.encoding_matrix @ data
    rows = {
        "rows": data,
        "list": list(data),
        "strided": np.repeat(data, 2, axis=1)[:, ::2],
        "read-only": np.frombuffer(data.tobytes(), data.dtype).reshape(data.shape),
    }[layout]
    monkeypatch.setattr(block_matmul, "MIN_COMPILED_BYTES", 0)
    tolerance = 1e-12 if data.dtype.itemsize >= (16 if dtype[0] == "c" else 8) else 1e-5
    np.testing.assert_allclose(code.encode_parity(rows), expected, atol=tolerance)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(
    ("height", "length", "width"),
    [(8, 24, 100), (8, 24, 5000), (3, 7, 250_000), (300, 60, 40), (70, 2500, 90)],
)
def test_products_of_all_sizes_match_numpy(height: int, length: int, width: int, dtype: str) -> None:
    stream = np.random.default_rng(0)
    matrix = stream.standard_normal((height, length)).astype(dtype)
    rows = stream.standard_normal((length, width)).astype(dtype)
    out = np.full((height, width), np.nan, dtype)
    gathered = np.full((height, width), np.nan, dtype)
    block_matmul.dense_matmul(matrix, list(rows), gathered)
    for product in (block_matmul.matmul(matrix, rows), gathered, block_matmul.matmul(matrix, rows, out)):
        assert product.dtype == dtype
        assert np.abs(product - matrix @ rows).max() < 100 * max(1, length // 100) * np.finfo(dtype).eps
    assert out is product
