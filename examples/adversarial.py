"""Digits that a classifier takes for another: the least change, found from its probabilities alone."""

import sys

import numpy as np
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from scipy.optimize import Bounds, NonlinearConstraint, minimize
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from polarmap import CodedGradient


def main(count: int = 8, picture: str = "") -> None:
    X, y = load_digits(return_X_y=True)
    X = X / 16
    model = MLPClassifier((32,), "tanh", max_iter=600, random_state=0).fit(X[:1400], y[:1400])
    print(f"a network that is right on {model.score(X[1400:], y[1400:]):.0%} of the digits it has not seen")
    # Of 16 workers, 12 would do; task 2 never reports, task 7 is dead, task 11 lies an hour behind.
    late = FaultyExecutor(ReplayExecutor({2: np.inf, 11: 3600.0}), {7: Fault("kill", attempts=9)})
    shown = []
    for x0 in X[1400 : 1400 + count]:
        target, first = model.predict_log_proba(x0[None])[0].argsort()[-2:]  # the next likely class

        def margin(x, first=first, target=target):
            logs = model.predict_log_proba(np.reshape(x, (1, -1)))[0]
            return logs[target] - logs[first]

        # min |x - x0|^2 such that p_target > p_true, and pixels stay in [0, 1].
        gradient = CodedGradient(margin, blocks=12, tasks=16, executor=late)
        wins = NonlinearConstraint(margin, 0.05, np.inf, jac=gradient)
        options = {"bounds": Bounds(0, 1), "constraints": wins, "method": "SLSQP"}
        x = minimize(lambda x, x0: np.sum((x - x0) ** 2), x0, (x0,), **options).x
        lost, taken = len(gradient.report.recovered), model.predict(x[None])[0]
        print(f"{first} -> {taken}: changed by {np.linalg.norm(x - x0) / np.linalg.norm(x0):.0%},", end=" ")
        print(f"{gradient.calls} gradients, {gradient.evaluations} queries, {lost} blocks decoded in each")
        shown.append((x0, x - x0, x, f"{first} → {taken}"))
    if picture:
        from matplotlib.figure import Figure

        figure = Figure((count, 3), layout="tight")
        for (*images, title), axes in zip(shown, figure.subplots(3, count, squeeze=False).T):
            axes[0].set_title(title)
            for axis, image in zip(axes, images):
                axis.imshow(image.reshape(8, 8), cmap="RdBu_r", vmin=-1, vmax=1)
        figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
