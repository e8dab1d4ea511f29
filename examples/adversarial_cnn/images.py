"""Colour images of CIFAR's size, 32 x 32 x 3, drawn with numpy: shapes in any two colours."""

from __future__ import annotations

import numpy as np

SHAPES = ("disk", "square", "triangle", "ring", "cross")


def draw_images(n_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n_images, 32, 32, 3) in [0, 1], and the shape of each as an index of SHAPES."""
    rng = np.random.default_rng(seed)
    shape_indices = rng.integers(len(SHAPES), size=n_images)
    angle, size = rng.uniform(-0.3, 0.3, n_images), rng.uniform(8, 12, n_images)
    rotations = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / size
    pixels = np.mgrid[-15.5:16, -15.5:16] + rng.uniform(-4, 4, (n_images, 2, 1, 1))
    inside_mask = _inside_masks(*np.einsum("ijn,njab->inab", rotations, pixels))[
        shape_indices, np.arange(n_images)
    ]

    background, shade, color_offset = rng.random((3, n_images, 1, 1, 3))
    shape_color = (background + 0.3 + 0.4 * color_offset) % 1  # at least 0.3 from the background's
    shaded = background + (shade - 0.5) * np.linspace(-0.5, 0.5, 32)[:, None]
    noise = 0.03 * rng.standard_normal((n_images, 32, 32, 3))
    return np.clip(np.where(inside_mask[..., None], shape_color, shaded) + noise, 0, 1), shape_indices


def _inside_masks(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return which points are inside a shape of size 1 around the origin, for each of SHAPES."""
    radius, max_distance, min_distance = (
        np.hypot(p, q),
        np.maximum(abs(p), abs(q)),
        np.minimum(abs(p), abs(q)),
    )
    triangle = np.maximum(-q, q / 2 + 0.87 * abs(p)) < 0.6
    ring, cross = abs(radius - 0.75) < 0.25, (max_distance < 1) & (min_distance < 0.28)
    return np.array([radius < 1, max_distance < 0.85, triangle, ring, cross])
