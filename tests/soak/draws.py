"""Random parts of a case, drawn from its seed: numbers, arrays and their memory layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

INTEGERS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
FLOATS = ["f2", "f4", "f8", "f8", "f8", "c8", "c16"]
LAYOUTS = {"plain": 6, "fortran": 1, "strided": 1, "reversed": 1, "big-endian": 1, "read-only": 1}


class Draw:
    """Random choices of one case."""

    def __init__(self, seed: int) -> None:
        self.seed, self.stream = seed, np.random.default_rng(seed)

    def chance(self, share: float) -> bool:
        return bool(self.stream.random() < share)

    def number(self, low: int, high: int) -> int:
        """Draw an integer between low and high, inclusive."""
        return int(self.stream.integers(low, high + 1))

    def pick(self, options: Sequence[Any] | Mapping[Any, float]) -> Any:
        """Draw one of the items; the values of a mapping are the weights of its keys."""
        names = list(options)
        weights = np.array(list(options.values()) if isinstance(options, Mapping) else [1.0] * len(names))
        return names[int(self.stream.choice(len(names), p=weights / weights.sum()))]

    def some(self, options: Sequence[int], count: int) -> list[int]:
        """Draw the given number of different items, in any order."""
        return [int(one) for one in self.stream.permutation(np.array(options, int))[:count]]

    def dtype(self, integers: float = 0.4) -> np.dtype[Any]:
        return np.dtype(self.pick(INTEGERS if self.chance(integers) else FLOATS))

    def values(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Draw numbers of a dtype, small or from its full range, scaled up or down."""
        if dtype.kind in "iu":
            return self._integers(shape, dtype)
        numbers = self.stream.standard_normal(shape)
        if dtype.kind == "c":
            numbers = numbers + 1j * self.stream.standard_normal(shape)
        if dtype.itemsize > 2 and self.chance(0.3):
            numbers = numbers * 10.0 ** self.number(-4, 4)
        if self.chance(0.1):
            numbers = numbers * (self.stream.random(shape) < 0.3)  # Most entries are zero.
        return numbers.astype(dtype)

    def _integers(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        limits = np.iinfo(dtype)
        if self.chance(0.5):
            low, high = max(-9, int(limits.min)), 9
        else:
            low, high = int(limits.min), int(limits.max)
        return self.stream.integers(low, high, shape, dtype=dtype, endpoint=True)

    def laid_out(self, array: np.ndarray) -> tuple[np.ndarray, str]:
        """Return the array in a random memory layout, and the name of the layout."""
        layout = self.pick(LAYOUTS)
        if layout == "fortran":
            array = np.asfortranarray(array)
        elif layout == "strided":
            wide = np.zeros((2 * array.shape[0], *array.shape[1:]), array.dtype)
            wide[::2] = array
            array = wide[::2]
        elif layout == "reversed":
            array = np.ascontiguousarray(array[::-1])[::-1]
        elif layout == "big-endian":
            array = array.astype(array.dtype.newbyteorder(">"))
        elif layout == "read-only":
            array.flags.writeable = False
        return array, layout
