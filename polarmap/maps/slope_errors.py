"""What measured slopes may be off by although f is smooth: the parity equations allow for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.worker.finite_differences import Sizes

Array = npt.NDArray[Any]

SLACK = 64  # by which a residual must exceed the estimated error of slopes to tell a non-smooth f


class SlopeErrors:
    """What slopes may be off by, from the `Sizes` that came with them."""

    def __init__(self, h: float, scheme: str) -> None:
        self._h, self._scheme = h, scheme

    def __call__(self, received: list[list[Array]]) -> list[float]:
        """The errors of slopes; the sizes beside them are not meant to be decoded.

        The most extreme worker is left out, which may have returned garbage.
        """
        columns = dict(zip(Sizes._fields, np.stack([leaves[1] for leaves in received]).T))
        lowest, highest = -_second_largest(-columns["lowest"]), _second_largest(columns["highest"])
        rounding = _second_largest(columns["eps"]) * max(abs(lowest), abs(highest))
        truncation = self._h * max(0.0, highest - lowest)
        if self._scheme == "forward":
            truncation = _second_largest(columns["curvature"])
        error = _second_largest(columns["longest"]) * (rounding + truncation) / self._h
        return [SLACK * error, np.inf]


def _second_largest(column: Array) -> float:
    """The second largest of three finite values or more; the largest of fewer, 0 of none."""
    finite = np.sort(column[np.isfinite(column)])
    if len(finite) == 0:
        return 0.0
    return float(finite[-2] if len(finite) > 2 else finite[-1])
