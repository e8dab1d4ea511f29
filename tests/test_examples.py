"""Check that the examples run, and that the attack on a network finds minimal changes."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from programs import Interpreter
from scipy.optimize import minimize

from polarmap import CodedGradient
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.name != "__pycache__")
CNN = ROOT / "examples" / "adversarial_cnn"
ARGUMENTS = {
    "imagenet_shape.py": ["--scale", "1e-5", "--steps", "3"],
    "adversarial_cnn": ["1"],  # one image instead of four
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs_and_is_short(example: Path, interpreter: Interpreter) -> None:
    for path in example.glob("*.py") if example.is_dir() else [example]:
        assert len(path.read_text().splitlines()) < 50
    done = interpreter.run(example, ARGUMENTS.get(example.name, []), ROOT.parent, 100)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout


# --- the convolutional network that is attacked ----------------------------------------------------


@pytest.fixture(scope="module")
def cnn() -> Iterator[dict[str, ModuleType]]:
    """Import the modules of the example, by name."""
    names = [path.stem for path in CNN.glob("*.py") if path.stem not in ("__main__", "picture")]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CNN)
        yield {name: import_module(name) for name in names}
        for name in names:
            patch.delitem(sys.modules, name)


@pytest.fixture(scope="module")
def trained(cnn: dict[str, ModuleType]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Train kernels briefly, and return them with unseen images and their labels."""
    images, labels = cnn["images"].draw_images(1000, seed=1)
    return cnn["training"].train_network(images[:900], labels[:900]), images[900:], labels[900:]


def margin_gradient(cnn: dict[str, ModuleType], kernels: list[np.ndarray], image: np.ndarray, x: Any) -> Any:
    """Return the gradient by the network's own derivatives, which the black box does not show."""
    layer_outputs = cnn["network"].forward(kernels, np.array([image, x]))
    second, first = layer_outputs[-1][0].ravel().argsort()[-2:]
    weights = np.zeros((2, 1, 1, 5))
    weights[1, ..., [second, first]] = [[[1.0]], [[-1.0]]]
    _, slope = cnn["backpropagation"].backward(kernels, layer_outputs, weights)
    return cnn["backpropagation"].input_gradient(kernels[0], slope[1:], (1, *x.shape))[0]


def test_projection_on_a_linear_margin_equals_that_of_a_solver(cnn: dict[str, ModuleType]) -> None:
    stream = np.random.default_rng(5)
    for _ in range(20):
        image, x, slope = stream.random(7), stream.random(7), stream.standard_normal(7)
        inside = stream.random(7)  # a point on the plane
        value = float(slope @ (x - inside))
        if value + slope @ (image - x) > 0:
            slope, value = -slope, -value
        point = cnn["minimal_change"].project_on_margin(image, x, value, slope)
        plane = {"type": "eq", "fun": lambda z, x=x, value=value, slope=slope: value + slope @ (z - x)}
        options = {"bounds": [(0, 1)] * 7, "constraints": plane, "method": "SLSQP", "tol": 1e-12}
        solver = minimize(lambda z, image=image: np.sum((z - image) ** 2), image, **options)
        np.testing.assert_allclose(point, solver.x, atol=1e-5)


def test_the_attack_changes_the_class_and_little_else(
    cnn: dict[str, ModuleType], trained: tuple[list[np.ndarray], np.ndarray, np.ndarray]
) -> None:
    kernels, images, labels = trained
    assert cnn["training"].accuracy(kernels, images, labels) > 0.6
    late = FaultyExecutor(ReplayExecutor({2: math.inf, 11: 3600.0}), {7: Fault("kill", attempts=9)})
    find_minimal_change = cnn["minimal_change"].find_minimal_change
    image = images[0]
    margin = cnn["margin"].make_margin(kernels, image)
    gradient = CodedGradient(margin, scheme="forward", blocks=24, tasks=32, executor=late)
    changed = find_minimal_change(margin, gradient, image)
    before, after = (cnn["network"].forward(kernels, x[None])[-1].argmax() for x in (image, changed))
    assert before != after
    assert changed.min() >= 0
    assert changed.max() <= 1
    exact = find_minimal_change(margin, lambda x: margin_gradient(cnn, kernels, image, x), image)
    np.testing.assert_allclose(changed, exact, atol=1e-5)
    assert np.linalg.norm(changed - image) < 0.1 * np.linalg.norm(image)


def test_an_image_with_a_constant_margin_is_given_up(cnn: dict[str, ModuleType]) -> None:
    image = np.full((4, 4), 0.5)
    assert cnn["minimal_change"].find_minimal_change(lambda x: np.float64(-1), np.ones_like, image) is None
