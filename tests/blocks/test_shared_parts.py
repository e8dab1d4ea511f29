from __future__ import annotations

import numpy as np
import pytest

from polarmap.blocks.shared_parts import SharedParts
from polarmap.blocks.uneven import cut_parts
from polarmap.errors import CodeError


@pytest.mark.parametrize(
    ("parts", "workers", "tolerate"), [(6, None, 1), (6, None, 2), (12, 6, 3), (5, 5, 0)]
)
def test_any_workers_but_as_many_as_may_be_missing_have_every_part(
    parts: int, workers: int | None, tolerate: int
) -> None:
    shares = SharedParts(*cut_parts(list(np.arange(float(parts))[:, None]), None), workers, tolerate)
    held = [{number for number in shares.pieces(index) if number < parts} for index in range(shares.n)]
    assert {len(one) for one in held} == {(tolerate + 1) * parts // shares.n}
    assert all(sum(number in one for one in held) == tolerate + 1 for number in range(parts))


def test_each_part_and_each_worker_s_coefficients_are_one_piece() -> None:
    shares = SharedParts(*cut_parts(list(np.arange(6.0)[:, None]), None), None, 1)
    coefficients, *parts = shares.leaves(2)
    assert coefficients.tolist() == [1, 1]
    assert coefficients.dtype == np.int64
    assert len(parts) == 2


def test_workers_that_do_not_divide_the_parts_are_refused() -> None:
    with pytest.raises(CodeError, match="workers=4 does not divide the 6 parts"):
        SharedParts(*cut_parts(list(np.ones((6, 1))), None), 4, 1)
