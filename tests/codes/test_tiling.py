"""Tiles: every column once, and the compiled path for rows of any kind."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap.codes import tiling
from polarmap.codes.polar import PolarCode


@pytest.mark.parametrize("width", [0, 1, 64, 1000])
@pytest.mark.parametrize("cores", [1, 2, 5])
def test_tiles_cover_every_column_once(width: int, cores: int, monkeypatch) -> None:
    monkeypatch.setattr(tiling, "count_available_cores", lambda: cores)
    seen = np.zeros(width, int)

    def count(columns: slice) -> None:
        seen[columns] += 1

    tiling.parallel_for(count, list(tiling.iter_column_tiles(width, 1 << 10, 8)))
    assert (seen == 1).all()


def test_rows_of_other_lengths_are_not_read_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "MIN_COMPILED_BYTES", 0)
    with pytest.raises(ValueError, match="broadcast"):
        tiling.combine_rows(np.ones((1, 2)), [np.ones(5), np.ones(3)], np.empty((1, 5)))


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
@pytest.mark.parametrize("strided", [False, True])
def test_decode_takes_the_compiled_path_for_any_rows(
    dtype: str, strided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling, "MIN_COMPILED_BYTES", 0)
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
    monkeypatch.setattr(tiling, "MIN_COMPILED_BYTES", 0)
    tolerance = 1e-12 if data.dtype.itemsize >= (16 if dtype[0] == "c" else 8) else 1e-5
    np.testing.assert_allclose(code.encode_parity(rows), expected, atol=tolerance)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(
    ("height", "length", "width"),
    [(8, 24, 100), (8, 24, 5000), (3, 7, 250_000), (300, 60, 40), (70, 2500, 90)],
)
def test_products_of_every_size_are_numpys(height: int, length: int, width: int, dtype: str) -> None:
    stream = np.random.default_rng(0)
    matrix = stream.standard_normal((height, length)).astype(dtype)
    rows = stream.standard_normal((length, width)).astype(dtype)
    out = np.full((height, width), np.nan, dtype)
    gathered = np.full((height, width), np.nan, dtype)
    tiling.dense_matmul(matrix, list(rows), gathered)
    for made in (tiling.matmul(matrix, rows), gathered, tiling.matmul(matrix, rows, out)):
        assert made.dtype == dtype
        assert np.abs(made - matrix @ rows).max() < 100 * max(1, length // 100) * np.finfo(dtype).eps
    assert out is made


def test_rows_gathered_into_one_tile_are_cast_and_of_one_length() -> None:
    rows = [np.array([2**63 + 1, 5], np.uint64), np.array([-1, 2**62 + 1])]
    assert tiling.gather_columns(rows, slice(0, 2), np.int64).tolist() == [[1 - 2**63, 5], [-1, 2**62 + 1]]
    with pytest.raises(ValueError, match="shape"):
        tiling.gather_columns([np.ones(5), np.ones(3)], slice(0, 5), np.float64)


@pytest.mark.parametrize("dtype", ["f8", "i2"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_copies_are_shared_row_by_row(count: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "COPY_CHUNK_BYTES", 2 * 8 * 30)
    rows = np.arange(count * 30).reshape(count, 30).astype(dtype)
    out = np.full((count, 30), -1.0)
    tiling.parallel_copy(rows, out)
    assert (out == rows).all()
