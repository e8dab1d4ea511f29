# %% [markdown]
# # Least squares with early estimates
#
# In this notebook you get a first answer to a least-squares problem early, and watch it get better.
#
# `sketched_lstsq` estimates the solution from the results that have arrived, and states an error bound. Its
# last estimate is the exact solution. Here 12 of 16 workers are late, each one later than the one before.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

import polarmap
from polarmap.testing import Fault, FaultyExecutor

rng = np.random.default_rng(0)
A = rng.standard_normal((60_000, 40)) * np.logspace(0, 3, 40)
b = A @ rng.standard_normal(40) + 5 * np.linspace(0, 20, 60_000) * rng.standard_normal(60_000)
exact_solution = np.linalg.lstsq(A, b)[0]

# %%
rows = []
with polarmap.Pool(workers=16) as pool:
    slow_executor = FaultyExecutor(
        pool, {task: Fault("sleep", seconds=0.2 * (task + 1)) for task in range(12)}
    )
    started_at = time.perf_counter()
    for estimate in polarmap.linalg.sketched_lstsq(A, b, tasks=16, executor=slow_executor):
        error = np.linalg.norm(A @ (estimate.value - exact_solution)) / np.linalg.norm(b)
        rows.append((time.perf_counter() - started_at, estimate.n_arrived, error, estimate.error_p90))
        print("{:4.1f} s: {:2} of 16 results, error {:.1e}, stated bound {:.1e}".format(*rows[-1]))
assert np.allclose(estimate.value, exact_solution)

# %% [markdown]
# The last estimate agrees with numpy's solution. You can leave the loop earlier, as soon as an estimate is
# good enough. The remaining tasks are then cancelled.

# %%
seconds, n_arrived, errors, error_bounds = np.array(rows[:-1]).T
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.semilogy(seconds, error_bounds, ".--", label="stated error (90 % quantile)")
axes.semilogy(seconds, errors, "o-", label="actual error")
axes.set(xlabel="seconds", ylabel="relative error of the fitted values")
axes.legend()
plt.show()
