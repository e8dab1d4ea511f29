"""Convex problems whose workers die: sparse coefficients, a portfolio.

python examples/constraints.py (needs the extra `convex`)"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from sklearn.datasets import load_diabetes

from polarmap import CodedOperator
from polarmap.convex import Lasso, SquaredLoss, fista, simplex
from polarmap.testing import Fault, FaultyExecutor


def portfolio(options: dict) -> None:
    """Shares of 40 assets that follow an index most closely: each 0 or more, all together 1."""
    stream = np.random.default_rng(0)
    returns = stream.standard_normal((500, 40)) * 0.01
    index = returns[:, :8] @ np.full(8, 1 / 8) + stream.standard_normal(500) * 1e-3
    with CodedOperator(returns, **options) as operator:
        found = fista(operator, SquaredLoss(index), simplex(40))
        products, report = operator.n_products, operator.report
    slope = returns.T @ (returns @ found.x - index)
    slack = slope - slope @ found.x  # 0 for each asset that is held, 0 or more for the others
    residual = abs(np.where(found.x > 0, slack, np.minimum(slack, 0))).max() / abs(slope).max()
    print(f"portfolio: objective {found.objective:.9f}, KKT residual {residual:.1e} of the largest slope")
    print(f"    sum {found.x.sum():.12f}, smallest share {found.x.min():.1g}")
    print(f"    {found.n_iter} iterations, {products} products, the last without {report.recovered}")


def main() -> None:
    with ThreadPoolExecutor(12) as pool:
        faults = {1: Fault("raise", attempts=99), 4: Fault("sleep", seconds=0.2)}
        options = {"blocks": 6, "tasks": 9, "executor": FaultyExecutor(pool, faults)}
        portfolio(options)
        X, y = load_diabetes(return_X_y=True)
        model = Lasso(0.5, **options).fit(X, y)
        slope = (X - X.mean(axis=0)).T @ (y - model.predict(X)) / len(y)
        print(f"lasso: objective {model.objective_:.6f}, duality gap {model.dual_gap_:.1e}")
        print(f"    largest slope {abs(slope).max():.6f}, features {np.flatnonzero(model.coef_)}")


if __name__ == "__main__":
    main()
