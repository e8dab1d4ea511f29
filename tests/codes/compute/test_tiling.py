"""Tests that tiles contain every column once."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap.codes.compute import tiling


@pytest.mark.parametrize("width", [0, 1, 64, 1000])
@pytest.mark.parametrize("cores", [1, 2, 5])
def test_tiles_cover_every_column_once(width: int, cores: int, monkeypatch) -> None:
    monkeypatch.setattr(tiling, "count_available_cores", lambda: cores)
    seen = np.zeros(width, int)

    def count(columns: slice) -> None:
        seen[columns] += 1

    tiling.parallel_for(count, list(tiling.iter_column_tiles(width, 1 << 10, 8)))
    assert (seen == 1).all()


def test_rows_gathered_into_a_tile_are_cast_and_must_have_equal_lengths() -> None:
    rows = [np.array([2**63 + 1, 5], np.uint64), np.array([-1, 2**62 + 1])]
    assert tiling.gather_columns(rows, slice(0, 2), np.int64).tolist() == [[1 - 2**63, 5], [-1, 2**62 + 1]]
    with pytest.raises(ValueError, match="shape"):
        tiling.gather_columns([np.ones(5), np.ones(3)], slice(0, 5), np.float64)


@pytest.mark.parametrize("dtype", ["f8", "i2"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_parallel_copies_are_complete(count: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "COPY_CHUNK_BYTES", 2 * 8 * 30)
    rows = np.arange(count * 30).reshape(count, 30).astype(dtype)
    out = np.full((count, 30), -1.0)
    tiling.parallel_copy(rows, out)
    assert (out == rows).all()
