"""Second moments, norms and products in whitened coordinates; the oracle is dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.linalg import aslinearoperator

from polarmap.models import whitening as module
from polarmap.models.whitening import fit_whitening_operator

STREAM = np.random.default_rng(0)
X = STREAM.standard_normal((30, 4)) @ STREAM.standard_normal((4, 4)) * [1, 100, 0.01, 1] + 3
SHARES = STREAM.random(30) / 15
SHARES /= SHARES.sum()


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_second_moments_become_one(is_sparse: bool, fit_intercept: bool) -> None:
    A = np.column_stack([X, np.ones(30)]) if fit_intercept else X
    white = fit_whitening_operator(csr_array(X) if is_sparse else X, SHARES, fit_intercept)
    W = (aslinearoperator(A) @ white) @ np.eye(A.shape[1])
    np.testing.assert_allclose(W.T @ (SHARES[:, None] * W), np.eye(A.shape[1]), atol=1e-6)
    z, u = STREAM.standard_normal((A.shape[1], 2)), STREAM.standard_normal((30, 2))
    w = white @ z
    np.testing.assert_allclose(W @ z, A @ w, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(w, axis=0), np.linalg.norm(z / white.scale[:, None], axis=0))
    np.testing.assert_allclose((aslinearoperator(A) @ white).T @ u, W.T @ u, rtol=1e-6)


def test_dependent_features_are_not_amplified() -> None:
    copies = np.column_stack([X, X[:, 0], np.zeros(30)])
    W = (aslinearoperator(copies) @ fit_whitening_operator(copies, SHARES, False)) @ np.eye(6)
    moments = np.linalg.eigvalsh(W.T @ (SHARES[:, None] * W))
    assert moments.max() <= 1 + 1e-6 and (moments < 1e-3).sum() == 2
    assert (fit_whitening_operator(np.zeros((3, 2)), np.full(3, 1 / 3), False).scale == 1).all()


@pytest.mark.parametrize("is_sparse", [False, True])
def test_very_many_features_are_only_scaled(is_sparse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROTATED_FEATURES", 3)
    white = fit_whitening_operator(csr_array(X) if is_sparse else X, SHARES, True)
    A = np.column_stack([X, np.ones(30)])
    W = (aslinearoperator(A) @ white) @ np.eye(5)
    moments = np.linalg.eigvalsh(W.T @ (SHARES[:, None] * W))
    assert moments.max() <= 1 + 1e-12
