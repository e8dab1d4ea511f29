# %% [markdown]
# # Singular values while workers sleep
#
# In this notebook you compute singular values with scipy, and the slow workers do not hold you up.
#
# scipy's `svds` finds the largest singular values of A by products with A and its transpose. In every
# product, two of 16 tasks sleep for 20 seconds and one fails. The results do not wait for these tasks.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
from scipy.sparse.linalg import svds

from polarmap import CodedOperator
from polarmap.testing import Fault, FaultyExecutor

rng = np.random.default_rng(0)
A = rng.standard_normal((2_000, 5)) @ rng.standard_normal((5, 400))  # rank 5
A += 0.1 * rng.standard_normal(A.shape)  # plus noise

# %%
faults = {2: Fault("sleep", 20), 7: Fault("sleep", 20), 9: Fault("raise", attempts=9)}
started_at = time.perf_counter()
with CodedOperator(A, blocks=12, tasks=16, executor=FaultyExecutor(None, faults)) as operator:
    singular_values = svds(operator, k=5, return_singular_vectors=False, rng=0)[::-1]
    print(f"{operator.n_products} products in {time.perf_counter() - started_at:.2f} s")
    print(operator.report)

# %% [markdown]
# The matrix has rank 5 plus noise, so five singular values are larger than the noise. They agree with
# numpy's values:

# %%
exact_values = np.linalg.svd(A, compute_uv=False)
error = np.abs(singular_values - exact_values[:5]).max() / exact_values[0]
print(f"largest difference: {error:.0e} of the largest value")
assert np.allclose(singular_values, exact_values[:5])

figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.semilogy(range(1, 31), exact_values[:30], ".", label="numpy, the first 30")
axes.semilogy(range(1, 6), singular_values, "o", fillstyle="none", markersize=10, label="svds on polarmap")
axes.set(xlabel="number", ylabel="singular value")
axes.legend()
plt.show()
