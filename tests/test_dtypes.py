from __future__ import annotations

import numpy as np
import pytest

from polarmap import dtypes
from polarmap.errors import CodeError

EVERY = ["f2", "f4", "f8", "c8", "c16", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]


@pytest.mark.parametrize("name", EVERY)
def test_every_byte_order_is_accepted(name: str) -> None:
    swapped = np.dtype(name).newbyteorder()
    assert dtypes.check_supported_dtype(swapped, "x") == np.dtype(name)


@pytest.mark.parametrize("name", [bool, object, str, bytes, "M8[ns]", "m8[ns]", [("a", "f8")]])
def test_unsupported_dtypes_are_rejected_by_name(name: object) -> None:
    with pytest.raises(CodeError) as error:
        dtypes.check_supported_dtype(name, "block 3")
    assert str(error.value).startswith(f"block 3 has dtype {np.dtype(name)}: ")


@pytest.mark.parametrize("name", EVERY[:5])
def test_sums_are_taken_in_at_least_float32(name: str) -> None:
    dtype = np.dtype(name)
    assert dtypes.choose_accumulator_dtype(dtype).itemsize >= 4
    real = dtypes.to_real_dtype(dtype)
    assert dtypes.choose_accumulator_dtype(dtype) == dtypes.choose_accumulator_dtype(real)
    assert dtypes.machine_epsilon(dtype) == np.finfo(real).eps


@pytest.mark.parametrize("name", EVERY[:5])
def test_default_rtol_leaves_room_for_a_hundredfold_amplification(name: str) -> None:
    dtype = np.dtype(name)
    assert dtypes.get_default_rtol(dtype) / dtypes.machine_epsilon(dtype) >= 100


@pytest.mark.parametrize("name", EVERY[5:])
@pytest.mark.parametrize("norm_inf", [1, 3, 127, 128, 129, 2**20])
def test_parity_dtype_holds_every_sum(name: str, norm_inf: int) -> None:
    limits, wide = np.iinfo(name), dtypes.choose_parity_dtype(np.dtype(name), norm_inf)
    # Sums of 64-bit integers wrap, and so does the parity dtype.
    assert wide.kind == ("u" if name == "u8" else "i")
    if wide.itemsize < 8:
        assert np.iinfo(wide).min <= norm_inf * limits.min
        assert norm_inf * max(limits.max, -limits.min) <= np.iinfo(wide).max
    assert dtypes.machine_epsilon(np.dtype(name)) == dtypes.get_default_rtol(np.dtype(name)) == 0
