from __future__ import annotations

import numpy as np
import pytest

from polarmap.codes.checks import checked_count, is_number, is_one_of, is_positive
from polarmap.errors import CodeError


@pytest.mark.parametrize("value", [1, 0.5, np.float32(2), np.int8(3)])
def test_positive_numbers(value: object) -> None:
    assert is_number(value) and is_positive(value)


@pytest.mark.parametrize("value", [0, -1.0, np.inf])
def test_numbers_that_are_not_positive_and_finite(value: object) -> None:
    assert is_number(value) and not is_positive(value)


@pytest.mark.parametrize("value", [True, None, "1", 1j, np.nan, np.ones(2), [1]])
def test_no_numbers(value: object) -> None:
    assert not is_number(value) and not is_positive(value) and not is_one_of(value, ("auto",))


@pytest.mark.parametrize("value", [1, np.int8(3)])
def test_counts(value: object) -> None:
    counted = checked_count("blocks", value)
    assert (type(counted), counted) == (int, value)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "1", np.ones(1)])
def test_no_counts(value: object) -> None:
    with pytest.raises(CodeError, match=r"blocks must be a positive integer, not "):
        checked_count("blocks", value)
