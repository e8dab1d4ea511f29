# %% [markdown]
# # Least squares with two dead workers
#
# In this notebook you solve a least-squares problem with scipy, although two workers are killed in every
# product. You only need to replace the matrix by a `CodedOperator`.
#
# scipy's LSQR minimizes |A x - b| by products with A and its transpose. polarmap computes these products on
# the cores of this machine. It cuts A into 12 blocks, adds 4 parity blocks, and runs one task for each block.

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
# scipy does not notice the dead workers. polarmap decodes the lost results from the results that arrive,
# almost to full precision.

# %%
x, _, n_iterations = lsqr(operator, b, atol=1e-12, btol=1e-12)[:3]
print(f"{n_iterations} iterations, {operator.n_products} products; the last one:")
print(operator.report)

numpy_solution = np.linalg.lstsq(A, b)[0]
error = np.linalg.norm(x - numpy_solution) / np.linalg.norm(numpy_solution)
print(f"relative difference from numpy's solution: {error:.0e}")
assert np.allclose(x, numpy_solution)

# %% [markdown]
# This picture shows the tasks of the last product. A bar ends when its result arrived, and a diamond marks a
# decoded block.

# %%
operator.report.plot()

# %%
operator.close()
