"""Integrals over probabilities, also of functions concentrated at 0 or 1; the oracles are closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap.planning import Pareto, ShiftedExponential
from polarmap.planning.quadrature import (
    compute_cell_widths,
    compute_expected_run_time,
    compute_logistic_and_complement,
    integrate_over_cells,
    make_full_logit_grid,
    make_logit_spaced_nodes,
)


def test_probabilities_and_complements_are_accurate() -> None:
    logits = np.array([-700.0, -1.0, 0.0, 1.0, 700.0])
    below, above = compute_logistic_and_complement(logits)
    np.testing.assert_array_equal(below, above[::-1])
    np.testing.assert_allclose(np.log(below) - np.log(above), logits, rtol=1e-14)


def test_cell_widths_sum_to_one_even_below_eps() -> None:
    widths = compute_cell_widths(make_full_logit_grid())
    assert (widths > 0).all()
    assert widths.sum() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("power", [0, 1, 2, 5])
def test_smooth_densities_are_integrated_accurately(power: int) -> None:
    nodes = make_logit_spaced_nodes(-40.0, 40.0, 2001)
    assert integrate_over_cells(nodes.cdf**power, compute_cell_widths(nodes)) == pytest.approx(
        1 / (power + 1), rel=1e-6
    )


@pytest.mark.parametrize(
    ("run_times", "mean"),
    [(ShiftedExponential(1.0, 2.0), 3.0), (Pareto(1.0, 2.0), 2.0), (Pareto(1.0, 1.1), 11.0)],
)
def test_the_mean_quantile_over_all_workers_is_the_mean(
    run_times: ShiftedExponential | Pareto, mean: float
) -> None:
    nodes = make_full_logit_grid()
    assert compute_expected_run_time(run_times, compute_cell_widths(nodes), nodes) == pytest.approx(
        mean, rel=1e-6
    )
