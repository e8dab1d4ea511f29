# %% [markdown]
# # Logistic regression that loses a worker
#
# In this notebook you train a classifier for handwritten digits, and one of eight tasks fails in every
# product.
#
# `polarmap.glm.LogisticRegression` has the interface of scikit-learn's class of the same name. The workers
# compute its matrix products. The digits are images of 8 x 8 pixels.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn import linear_model
from sklearn.datasets import load_digits

from polarmap.glm import LogisticRegression
from polarmap.testing import Fault, FaultyExecutor

X, y = load_digits(return_X_y=True)
X, train_mask = X / 16, np.arange(len(X)) < 1_300

# %%
unlucky_executor = FaultyExecutor(None, {1: Fault("raise", attempts=9)})
model = LogisticRegression(C=0.1, blocks=6, tasks=8, executor=unlucky_executor).fit(
    X[train_mask], y[train_mask]
)
print(f"accuracy on unseen digits: {model.score(X[~train_mask], y[~train_mask]):.1%}")
print(f"{model.n_iter_} iterations; the last product:")
print(model.report_)

# %% [markdown]
# The coefficients agree with scikit-learn's. In the pictures below, a dark pixel is evidence for the digit,
# and a light pixel is evidence against it.

# %%
sklearn_model = linear_model.LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(
    X[train_mask], y[train_mask]
)
print(f"largest difference between coefficients: {np.abs(model.coef_ - sklearn_model.coef_).max():.0e}")
assert np.allclose(model.coef_, sklearn_model.coef_, atol=1e-3)

figure, axes = plt.subplots(2, 5, figsize=(7, 3.2), layout="constrained")
for digit, axis in enumerate(axes.flat):
    axis.imshow(model.coef_[digit].reshape(8, 8), cmap="binary", vmin=-0.6, vmax=0.6)
    axis.set(title=digit, xticks=[], yticks=[])
plt.show()
