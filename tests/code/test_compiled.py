"""The compiled kernel against numpy, and its own source interpreted."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap.code import butterfly, encode
from polarmap.code.polar import PolarCode

pytest.importorskip("numba")
from polarmap.code import compiled

SIZES = [(40, 30), (100, 37), (64, 32), (200, 100), (97, 72), (300, 260)]


def parity(code: PolarCode, data: np.ndarray) -> np.ndarray:
    out = np.full((code.n - code.k, data.shape[1]), np.nan)
    compiled.folded(data, out, 0, data.shape[1], *code._rotations[1:])
    return out


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("width", [1, 63, 64, 200])
def test_compiled_is_numpys(n: int, k: int, width: int) -> None:
    code = PolarCode(n, k)
    data = np.random.default_rng(width).standard_normal((k, width))
    np.testing.assert_allclose(parity(code, data), butterfly.folded(data, code._rotations), atol=1e-12)


def test_interpreted_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    code = PolarCode(40, 24)
    data = np.random.default_rng(0).standard_normal((24, 70))
    expected = parity(code, data)
    for name in ("_rotate", "_load", "folded"):
        monkeypatch.setattr(compiled, name, getattr(compiled, name).py_func)
    np.testing.assert_allclose(parity(code, data), expected, atol=1e-13)


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
@pytest.mark.parametrize("layout", ["rows", "list", "strided", "read-only"])
def test_parity_takes_the_compiled_path_for_any_rows(
    dtype: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = PolarCode(300, 200)
    data = np.random.default_rng(0).standard_normal((200, 500)).astype(dtype)
    expected = code.coefficients @ data
    rows = {
        "rows": data,
        "list": list(data),
        "strided": np.repeat(data, 2, axis=1)[:, ::2],
        "read-only": np.frombuffer(data.tobytes(), data.dtype).reshape(data.shape),
    }[layout]
    monkeypatch.setattr(encode, "COMPILED_FROM_BYTES", 0)
    tolerance = 1e-12 if data.dtype.itemsize >= (16 if dtype[0] == "c" else 8) else 1e-5
    np.testing.assert_allclose(code.parity(rows), expected, atol=tolerance)
