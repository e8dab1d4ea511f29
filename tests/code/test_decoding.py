"""What callers hand over to be decoded is checked."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap.code.polar import PolarCode
from polarmap.errors import CodeError, NotDecodableError


def test_blocks_may_be_strided_read_only_listed_or_byte_swapped() -> None:
    code = PolarCode(40, 30)
    for dtype in ("f8", "c16"):
        data = np.random.default_rng(0).standard_normal((30, 8)).astype(dtype)
        expected = code.parity(data)
        strided = np.repeat(data, 2, axis=1)[:, ::2]
        strided.flags.writeable = False
        assert code.parity(strided).tobytes() == expected.tobytes()
        swapped = data.astype(data.dtype.newbyteorder())
        assert code.parity(swapped).tobytes() == expected.tobytes()
        assert code.encode(swapped)[30:].tobytes() == expected.tobytes()
        np.testing.assert_allclose(code.parity(list(strided)), expected)
        np.testing.assert_allclose(code.parity(np.asfortranarray(data)), expected)


def test_decode_refuses_what_does_not_fit() -> None:
    code = PolarCode(6, 4, "arikan")
    rows = {i: np.zeros(3, "i2") for i in range(4)}
    for index in (-1, 6, "a", 1.0):
        with pytest.raises(CodeError, match=f"positions run from 0 to 5, not {index!r}"):
            code.decode({index: np.zeros(3)})
    with pytest.raises(CodeError, match=r"block 3 is int16 of shape \(2,\), block 0 int16"):
        code.decode(rows | {3: np.zeros(2, "i2")})
    with pytest.raises(CodeError, match="block 3 is int32"):
        code.decode(rows | {3: np.zeros(3, "i4")})
    with pytest.raises(CodeError, match="block 4 is float64"):
        code.decode(rows | {4: np.zeros(3)})
    with pytest.raises(NotDecodableError, match="no blocks given; at least 4"):
        code.decode({})
    with pytest.raises(NotDecodableError, match=r"2 of 6 blocks .* at least 2 more needed"):
        code.decode({0: rows[0], 1: rows[1]})
