"""Polar codes for tests, each made once, and what arrives of their blocks."""

from __future__ import annotations

from functools import cache

import numpy as np

from polarmap import Decoder, PolarCode


@cache
def arikan(n: int, k: int, decoder: str = "optimal") -> PolarCode:
    return PolarCode(n, k, "arikan", decoder)


@cache
def rotation(n: int, k: int) -> PolarCode:
    return PolarCode(n, k)


def received(coded: np.ndarray, arrived: np.ndarray) -> dict[int, np.ndarray]:
    return {int(index): coded[index] for index in np.flatnonzero(arrived)}


def arrive(code: PolarCode, order: np.ndarray, **options: float) -> Decoder:
    """A decoder that was told of arrivals in `order` until it was ready."""
    decoder = Decoder(code, **options)
    for index in order.tolist():
        if decoder.add(index):
            break
    return decoder
