# %% [markdown]
# # Least squares with two dead workers
#
# scipy's LSQR solves min |A x - b| by products with A and its transpose, and polarmap computes these on the
# cores of this machine: 12 blocks of A and 4 parity blocks, with a task for each. In every product two of
# the 16 tasks are killed.

# %%
import numpy as np
from scipy.sparse.linalg import lsqr

from polarmap import CodedOperator
from polarmap.testing import Fault, FaultyExecutor

rng = np.random.default_rng(0)
A = rng.standard_normal((6_000, 150))
b = A @ rng.standard_normal(150) + rng.standard_normal(6_000)
unlucky_executor = FaultyExecutor(None, {3: Fault("kill", attempts=9), 8: Fault("kill", attempts=9)})
operator = CodedOperator(A, blocks=12, tasks=16, executor=unlucky_executor)

# %% [markdown]
# scipy does not notice: the lost results are decoded from the results that arrive, almost to full precision.

# %%
x, _, n_iterations = lsqr(operator, b, atol=1e-12, btol=1e-12)[:3]
print(f"{n_iterations} iterations, {operator.n_products} products; the last one:")
print(operator.report)

numpy_solution = np.linalg.lstsq(A, b)[0]
error = np.linalg.norm(x - numpy_solution) / np.linalg.norm(numpy_solution)
print(f"relative difference from numpy's solution: {error:.0e}")
assert np.allclose(x, numpy_solution)

# %% [markdown]
# The tasks of this product: a bar ends when its result arrived; a diamond marks a decoded block.

# %%
operator.report.plot()

# %%
operator.close()
