"""Draw images, their changes and the changed images below one another."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

AMPLIFICATION = 10


def save_figure(changes: list[tuple[np.ndarray, np.ndarray, str]], path: str) -> None:
    """Draw (image, changed image, title) in columns, with changes amplified around grey."""
    figure = Figure((1.6 * len(changes), 4.6), layout="tight")
    for (image, changed, title), axes in zip(changes, figure.subplots(3, len(changes), squeeze=False).T):
        axes[0].set_title(title, fontsize=10)
        for axis, panel in zip(axes, (image, 0.5 + AMPLIFICATION * (changed - image), changed)):
            axis.imshow(np.clip(panel, 0, 1))
            axis.axis("off")
    figure.savefig(path, dpi=100)
