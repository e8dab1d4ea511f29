from __future__ import annotations

import numpy as np
import pytest

from polarmap.errors import CodeError
from polarmap.validation import check_positive_int, is_choice, is_positive_number, is_real_number


@pytest.mark.parametrize("value", [1, 0.5, np.float32(2), np.int8(3)])
def test_positive_numbers(value: object) -> None:
    assert is_real_number(value) and is_positive_number(value)


@pytest.mark.parametrize("value", [0, -1.0, np.inf])
def test_numbers_that_are_not_positive_and_finite(value: object) -> None:
    assert is_real_number(value) and not is_positive_number(value)


@pytest.mark.parametrize("value", [True, None, "1", 1j, np.nan, np.ones(2), [1]])
def test_values_that_are_not_numbers(value: object) -> None:
    assert not is_real_number(value) and not is_positive_number(value) and not is_choice(value, ("auto",))


@pytest.mark.parametrize("value", [1, np.int8(3)])
def test_positive_integers(value: object) -> None:
    counted = check_positive_int("blocks", value)
    assert (type(counted), counted) == (int, value)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "1", np.ones(1)])
def test_values_that_are_not_positive_integers(value: object) -> None:
    with pytest.raises(CodeError, match=r"blocks must be a positive integer, not "):
        check_positive_int("blocks", value)
