"""Solve convex problems while workers fail: sparse coefficients, and a portfolio.

python examples/constraints.py (needs the extra `convex`)"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from sklearn.datasets import load_diabetes

from polarmap import CodedOperator
from polarmap.convex import Lasso, SquaredLoss, fista, simplex
from polarmap.testing import Fault, FaultyExecutor


def fit_portfolio(options: dict) -> None:
    """Find the shares of 40 assets that follow an index most closely: nonnegative, with sum 1."""
    rng = np.random.default_rng(0)
    returns = rng.standard_normal((500, 40)) * 0.01
    index = returns[:, :8] @ np.full(8, 1 / 8) + rng.standard_normal(500) * 1e-3
    with CodedOperator(returns, **options) as operator:
        solution = fista(operator, SquaredLoss(index), simplex(40))
        n_products, report = operator.n_products, operator.report
    gradient = returns.T @ (returns @ solution.x - index)
    slack = gradient - gradient @ solution.x  # 0 for assets in the portfolio, else >= 0
    residual = abs(np.where(solution.x > 0, slack, np.minimum(slack, 0))).max() / abs(gradient).max()
    print(f"portfolio: objective {solution.objective:.9f}, KKT residual {residual:.1e} of the largest slope")
    print(f"    sum {solution.x.sum():.12f}, smallest share {solution.x.min():.1g}")
    print(f"    {solution.n_iter} iterations, {n_products} products, the last without {report.recovered}")


def main() -> None:
    with ThreadPoolExecutor(12) as pool:
        faults = {1: Fault("raise", attempts=99), 4: Fault("sleep", seconds=0.2)}
        options = {"blocks": 6, "tasks": 9, "executor": FaultyExecutor(pool, faults)}
        fit_portfolio(options)
        X, y = load_diabetes(return_X_y=True)
        model = Lasso(0.5, **options).fit(X, y)
        gradient = (X - X.mean(axis=0)).T @ (y - model.predict(X)) / len(y)
        print(f"lasso: objective {model.objective_:.6f}, duality gap {model.dual_gap_:.1e}")
        print(f"    largest slope {abs(gradient).max():.6f}, features {np.flatnonzero(model.coef_)}")


if __name__ == "__main__":
    main()
