"""The iteration: its products, its bounds, its callback."""

from __future__ import annotations

import numpy as np
from plain_networks import PlainOperator

from polarmap.convexnn.admm import admm
from polarmap.convexnn.cones import ConeLoss
from polarmap.convexnn.gates import sample_gates
from polarmap.convexnn.group_norms import GroupNorms
from polarmap.convexnn.output_loss import Gaussian, OutputLoss

STREAM = np.random.default_rng(0)
A, _ = np.linalg.qr(STREAM.standard_normal((20, 3)))
A *= np.sqrt(20)  # whitened: A'A / 20 = 1
Y, SHARES = np.abs(A[:, :1]) + A[:, 1:2], np.full(20, 0.05)
GATES = sample_gates(A, SHARES, 4, False, np.random.RandomState(0))


def solved(tol: float, max_iter: int) -> tuple:
    loss = ConeLoss(OutputLoss(Gaussian(), Y, SHARES, True), GATES.patterns, GATES.margins, GATES.directions)
    operator, told = PlainOperator(A), []
    penalty, start = GroupNorms(0.05, np.ones(3), 8), np.zeros((3, 8))
    found = admm(
        operator, loss, penalty, start, tol=tol, max_iter=max_iter, callback=lambda *line: told.append(line)
    )
    return found, operator.products, told


def test_two_products_an_iteration_and_one_for_a_gap() -> None:
    found, products, told = solved(1e-5, 3000)
    assert found.converged and found.gap <= 1e-5 * found.objective
    assert products == 2 * found.n_iter + -(-found.n_iter // 10) == 2 * len(told) + len(told) // 10
    assert told[-1] == (found.objective, found.gradient_map)
    assert (np.hstack([2.0 * GATES.patterns - 1] * 2) * (A @ found.x)).min() >= -1e-12


def test_the_gap_is_an_upper_bound_at_every_iteration() -> None:
    best, *_ = solved(1e-7, 2000)
    for max_iter in range(1, 60, 12):
        found, *_ = solved(0.0, max_iter)
        assert not found.converged and found.n_iter == max_iter
        assert -1e-7 <= found.objective - best.objective <= found.gap + 1e-12
