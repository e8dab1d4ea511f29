# %% [markdown]
# # An attack on a classifier
#
# In this notebook you find the smallest change that makes a network misread a digit. The attack only sees
# probabilities. `CodedGradient` computes gradients from them on 16 workers, although three workers are lost.

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import Bounds, NonlinearConstraint, minimize
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from polarmap import CodedGradient
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

X, y = load_digits(return_X_y=True)
X /= 16
network = MLPClassifier((32,), "tanh", max_iter=600, tol=1e-3, random_state=0).fit(X[:1400], y[:1400])
print(f"accuracy on unseen digits: {network.score(X[1400:], y[1400:]):.0%}")
unlucky_executor = FaultyExecutor(ReplayExecutor({2: np.inf, 11: 3600.0}), {7: Fault("kill", attempts=9)})

# %% [markdown]
# scipy minimizes |x - x0|² under the constraint that another digit is more likely than the right one.

# %%
attacks = []
for x0 in X[1400:1403]:
    target, first = network.predict_log_proba(x0[None])[0].argsort()[-2:]  # the two most likely digits

    def margin(x, first=first, target=target):
        logs = network.predict_log_proba(np.reshape(x, (1, -1)))[0]
        return logs[target] - logs[first]

    gradient = CodedGradient(margin, blocks=12, tasks=16, executor=unlucky_executor)
    where = {"bounds": Bounds(0, 1), "constraints": NonlinearConstraint(margin, 0.05, np.inf, jac=gradient)}
    x = minimize(lambda x, x0: np.sum((x - x0) ** 2), x0, (x0,), "SLSQP", **where).x
    changed = np.linalg.norm(x - x0) / np.linalg.norm(x0)
    print(f"{first} becomes {target}: changed by {changed:.0%}, {gradient.calls} gradients")
    attacks.append((x0, x - x0, x, f"{first} → {network.predict(x[None])[0]}"))

# %%
figure, axes = plt.subplots(3, 3, figsize=(3.4, 3.6), layout="constrained")
for (*images, title), column in zip(attacks, axes.T):
    column[0].set_title(title)
    for axis, image in zip(column, images):
        axis.imshow(image.reshape(8, 8), cmap="RdBu_r", vmin=-1, vmax=1)
        axis.set_axis_off()
plt.show()
