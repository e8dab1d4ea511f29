# %% [markdown]
# # Least squares with two dead workers
#
# LSQR of scipy solves min |A x - b|. It asks for products with A and its transpose, and polarmap computes
# them on the cores of this machine: 12 blocks of A and 4 parity blocks, a task each. In every product two
# of the 16 tasks are killed.

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
# scipy does not notice: the results that arrive determine those that are lost, to the last digits.

# %%
x, _, n_iterations = lsqr(operator, b, atol=1e-12, btol=1e-12)[:3]
print(f"{n_iterations} iterations, {operator.n_products} products; the last one:")
print(operator.report)

numpy_solution = np.linalg.lstsq(A, b)[0]
error = np.linalg.norm(x - numpy_solution) / np.linalg.norm(numpy_solution)
print(f"off numpy's solution by {error:.0e} (relative)")
assert np.allclose(x, numpy_solution)

# %% [markdown]
# That product, task by task. Bars end where results arrived; a diamond marks what was decoded.

# %%
operator.report.plot()

# %%
operator.close()
