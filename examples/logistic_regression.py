# %% [markdown]
# # Logistic regression that loses a worker
#
# `polarmap.glm.LogisticRegression` is scikit-learn's, with products on workers. Here it learns to read
# digits of 8 x 8 pixels. One of eight tasks fails in every product.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn import linear_model
from sklearn.datasets import load_digits

from polarmap.glm import LogisticRegression
from polarmap.testing import Fault, FaultyExecutor

X, y = load_digits(return_X_y=True)
X, seen = X / 16, np.arange(len(X)) < 1_300

# %%
unlucky = FaultyExecutor(None, {1: Fault("raise", attempts=9)})
model = LogisticRegression(C=0.1, blocks=6, tasks=8, executor=unlucky).fit(X[seen], y[seen])
print(f"{model.score(X[~seen], y[~seen]):.1%} of the digits that it has not seen are read right")
print(f"{model.n_iter_} iterations; the last product:")
print(model.report_)

# %% [markdown]
# The coefficients are those of scikit-learn. A dark pixel speaks for the digit, a light one against it.

# %%
theirs = linear_model.LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(X[seen], y[seen])
print(f"largest difference of a coefficient: {np.abs(model.coef_ - theirs.coef_).max():.0e}")
assert np.allclose(model.coef_, theirs.coef_, atol=1e-3)

figure, axes = plt.subplots(2, 5, figsize=(7, 3.2), layout="constrained")
for digit, axis in enumerate(axes.flat):
    axis.imshow(model.coef_[digit].reshape(8, 8), cmap="binary", vmin=-0.6, vmax=0.6)
    axis.set(title=digit, xticks=[], yticks=[])
plt.show()
