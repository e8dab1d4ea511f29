# %% [markdown]
# # A neural network at its global optimum
#
# In this notebook you train a small neural network that cannot get stuck in a local optimum. One of six
# tasks fails in every product.
#
# Training a network with two layers is equivalent to a convex problem. `polarmap.convexnn` solves this
# problem, so the network is globally optimal. A duality gap proves it.

# %%
from concurrent.futures import ThreadPoolExecutor

import matplotlib.pyplot as plt
import numpy as np

from polarmap.convexnn import ConvexMLPClassifier
from polarmap.testing import Fault, FaultyExecutor

rng = np.random.default_rng(0)  # points on two spiral arms
angle, arm = np.sqrt(rng.uniform(0.05, 1, 80)) * 1.5 * np.pi, np.arange(80) % 2
X = np.stack([np.cos(angle + arm * np.pi), np.sin(angle + arm * np.pi)], axis=1) * angle[:, None] / 3
X += 0.05 * rng.standard_normal(X.shape)

# %%
with ThreadPoolExecutor(8) as pool:
    unlucky = FaultyExecutor(pool, {1: Fault("raise", attempts=99)})
    options = {"blocks": 4, "tasks": 6, "executor": unlucky}
    model = ConvexMLPClassifier(1e-2, n_gates=20, tol=2e-2, **options).fit(X, arm)
print(f"accuracy {model.score(X, arm):.1%} with {model.coefs_[0].shape[1]} units")
print(f"objective {model.objective_:.5f}, at most {model.dual_gap_:.0e} above the optimum")
print(f"{model.n_iter_} iterations; the last product:")
print(model.report_)

# %% [markdown]
# The points come from the two arms of a spiral. The colours show to which arm the network assigns each
# point of the plane:

# %%
grid = np.linspace(-1.9, 1.9, 200)
grid_points = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
probability = model.predict_proba(grid_points)[:, 1].reshape(200, 200)
figure, axes = plt.subplots(figsize=(4.5, 4.5), layout="constrained")
axes.contourf(grid, grid, probability, levels=20, cmap="RdYlBu", alpha=0.7)
axes.scatter(*X.T, c=arm, cmap="RdYlBu", edgecolors="#333333", s=22)
plt.show()
