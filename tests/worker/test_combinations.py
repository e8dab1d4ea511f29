from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polarmap.worker.combinations import combination

PARTS = [np.arange(3.0), np.arange(3.0) + 10]


def test_results_are_added_up_with_their_coefficients() -> None:
    combine = combination(lambda part: {"square": part**2, "sum": part.sum()})
    total = combine((np.array([2.0, -1.0]), PARTS))
    assert total["square"].tolist() == (2 * PARTS[0] ** 2 - PARTS[1] ** 2).tolist()
    assert float(total["sum"]) == 2 * 3.0 - 33.0


def test_truth_values_are_counted() -> None:
    total = combination(lambda part: part > 1)((np.array([1, 1]), PARTS))
    assert total.tolist() == [1, 1, 2]
    assert total.dtype.kind == "i"


@pytest.mark.parametrize(
    ("f", "error", "words"),
    [
        (lambda part: part.astype(str), TypeError, "cannot be added up: return numbers"),
        (
            lambda part: [part] * (1 + int(part[0] > 1)),
            ValueError,
            "different structures",
        ),
    ],
)
def test_what_cannot_be_added_up_is_said(f: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        combination(f)((np.ones(2), PARTS))
