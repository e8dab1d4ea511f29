"""Map functions that no linear code covers: sums of gradients, and plain maps with backup tasks."""

from __future__ import annotations

from collections import Counter

import numpy as np

import polarmap
from polarmap.testing import Fault, FaultyExecutor


def make_loss_and_gradient(weights: list[np.ndarray]):
    """Return a function that computes a small network's loss and gradient on a batch of the data."""

    def loss_and_gradient(batch: dict[str, np.ndarray]) -> dict[str, object]:
        hidden = np.tanh(batch["x"] @ weights[0])
        errors = hidden @ weights[1] - batch["y"]
        hidden_gradient = np.outer(errors, weights[1]) * (1 - hidden**2)
        return {"loss": float(errors @ errors), "slopes": [batch["x"].T @ hidden_gradient, hidden.T @ errors]}

    return loss_and_gradient


def main() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1_200, 6))
    parts = [{"x": rows, "y": np.sin(rows.sum(axis=1))} for rows in np.split(x, 12)]
    weights = [rng.standard_normal((6, 16)) / 3, rng.standard_normal(16) / 4]
    for step in range(6):  # All steps run on the same persistent workers.
        sleeping_task, failing_task = rng.permutation(12)[:2].tolist()
        faults = {sleeping_task: Fault("sleep", seconds=30), failing_task: Fault("raise", attempts=9)}
        total = polarmap.coded_sum(
            make_loss_and_gradient(weights), parts, tolerate=2, executor=FaultyExecutor(None, faults)
        )
        weights = [weight - 2e-4 * gradient for weight, gradient in zip(weights, total.value["slopes"])]
        print(f"step {step}: loss {total.value['loss']:.1f} from {total.report.needed} of 12 workers")

    slow_executor = FaultyExecutor(None, {4: Fault("sleep", seconds=30)})
    medians = polarmap.hedged_map(lambda rows: np.median(rows, axis=0), x, blocks=12, executor=slow_executor)
    print(f"{len(medians)} medians; task 4 was started {medians.report.tasks[4].attempts} times")

    lines = ["to be or not to be", "that is the question", "whether to suffer or to act"]
    counts = polarmap.hedged_map(Counter, map(str.split, lines))  # Items and results may be of any type.
    print("words:", sum(counts, Counter()).most_common(2))


if __name__ == "__main__":
    main()
