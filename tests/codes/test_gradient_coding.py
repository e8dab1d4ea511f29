"""Tests of the losses that GradientCode tolerates, for every pattern of small codes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarmap.codes.gradient_coding import GradientCode, choose_group_sizes

SIZES = [(n, s) for n in range(1, 9) for s in range(n)]


@pytest.mark.parametrize(("n", "tolerate"), [*SIZES, (11, 4), (12, 5)])
def test_every_pattern_of_losses_leaves_the_sum(n: int, tolerate: int) -> None:
    code = GradientCode(n, tolerate)
    assert (np.count_nonzero(code.generator_matrix, axis=1) == tolerate + 1).all()
    assert (np.count_nonzero(code.generator_matrix, axis=0) == tolerate + 1).all()
    for lost in combinations(range(n), tolerate):
        plan = code.make_decoder(~np.isin(np.arange(n), lost), modular=False)
        assert plan.rank_deficit == 0
        np.testing.assert_allclose(
            plan.weights[0] @ code.generator_matrix[plan.arrived_indices], 1, rtol=0, atol=1e-9
        )
        assert plan.amplification < 1000


@pytest.mark.parametrize(("n", "tolerate"), [*SIZES, (9, 5)])
def test_determined_exactly_when_the_rows_span_the_all_ones_vector(n: int, tolerate: int) -> None:
    code = GradientCode(n, tolerate)
    for bits in range(1 << n):
        arrived = (bits >> np.arange(n) & 1).astype(bool)
        rows = code.generator_matrix[arrived]
        spans = len(rows) > 0 and np.linalg.matrix_rank(np.vstack([rows, np.ones(n)]), 1e-9) == (
            np.linalg.matrix_rank(rows, 1e-9)
        )
        plan = code.make_decoder(arrived, modular=False)
        assert (plan.rank_deficit == 0) == spans
        if len(rows):
            assert plan.n_redundant_checks == len(rows) - np.linalg.matrix_rank(rows, 1e-9)
            assert np.allclose(plan.compute_parity_check_matrix(99) @ rows, 0)


@given(tolerate=st.integers(0, 20), more=st.integers(1, 60))
def test_groups_hold_everybody_and_none_is_too_small(tolerate: int, more: int) -> None:
    sizes = choose_group_sizes(tolerate + more, tolerate)
    assert sum(sizes) == tolerate + more
    assert min(sizes) > tolerate
