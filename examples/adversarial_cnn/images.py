"""Colour images of CIFAR's size, 32 x 32 x 3, made by numpy: shapes in any two colours."""

from __future__ import annotations

import numpy as np

SHAPES = ("disk", "square", "triangle", "ring", "cross")


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 32, 32, 3) from 0 to 1, and the number in SHAPES of what each shows."""
    random = np.random.default_rng(seed)
    shape = random.integers(len(SHAPES), size=count)
    angle, size = random.uniform(-0.3, 0.3, count), random.uniform(8, 12, count)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / size
    pixels = np.mgrid[-15.5:16, -15.5:16] + random.uniform(-4, 4, (count, 2, 1, 1))
    inside = _is_inside(*np.einsum("ijn,njab->inab", turn, pixels))[shape, np.arange(count)]

    ground, shade, away = random.random((3, count, 1, 1, 3))
    shape_colour = (ground + 0.3 + 0.4 * away) % 1  # at least 0.3 from the ground's
    shaded = ground + (shade - 0.5) * np.linspace(-0.5, 0.5, 32)[:, None]
    noise = 0.03 * random.standard_normal((count, 32, 32, 3))
    return np.clip(np.where(inside[..., None], shape_colour, shaded) + noise, 0, 1), shape


def _is_inside(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Which points lie in a shape of size 1 around the origin, for each of SHAPES."""
    radius, far, near = np.hypot(p, q), np.maximum(abs(p), abs(q)), np.minimum(abs(p), abs(q))
    triangle = np.maximum(-q, q / 2 + 0.87 * abs(p)) < 0.6
    ring, cross = abs(radius - 0.75) < 0.25, (far < 1) & (near < 0.28)
    return np.array([radius < 1, far < 0.85, triangle, ring, cross])
