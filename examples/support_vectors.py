# %% [markdown]
# # A support vector machine with a proof
#
# In this notebook you separate two kinds of tumours by a line, with `polarmap.convex.LinearSVC`. In every
# product, one of nine tasks fails and another one sleeps.
#
# You can check that the result is right all the same. The estimator computes a duality gap, which proves how
# close its objective is to the minimum.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import scale

from polarmap.convex import LinearSVC
from polarmap.testing import Fault, FaultyExecutor

data = load_breast_cancer()
X, y = scale(data.data[:, [0, 1]]), data.target

# %%
unlucky_executor = FaultyExecutor(None, {1: Fault("raise", attempts=9), 4: Fault("sleep", seconds=30)})
model = LinearSVC(0.1, blocks=6, tasks=9, executor=unlucky_executor).fit(X, y)
print(f"accuracy {model.score(X, y):.1%}")
print(f"objective {model.objective_:.6f}, at most {model.dual_gap_:.0e} above its minimum")
print(model.report_)

# %% [markdown]
# The circles mark the support vectors. Only these points determine the line.

# %%
figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
axes.scatter(*X.T, c=y, cmap="coolwarm", s=12)
support = X[np.ravel(model.dual_coef_) != 0]
axes.scatter(*support.T, facecolors="none", edgecolors="black", s=50, linewidths=0.6)
x = np.linspace(-2.5, 3, 2)
(slope_x, slope_y), level = model.coef_.ravel(), float(np.ravel(model.intercept_)[0])
for side, style in ((-1, ":"), (0, "-"), (1, ":")):
    axes.plot(x, (side - level - slope_x * x) / slope_y, "black", linestyle=style)
axes.set(xlabel=data.feature_names[0], ylabel=data.feature_names[1], ylim=(-2.5, 4.5))
plt.show()
