"""The codes of polarmap, seen as one more rival: the same measurements for all."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.rivals import Array, Rival
from polarmap.codes import ArrivalTracker, PolarCode
from polarmap.codes.polar_construction import next_power_of_two
from polarmap.codes.rotation_code import MAX_DENSE_ROWS, SyndromeDecoder
from polarmap.codes.successive_cancellation import InactivationDecoder
from polarmap.planning.decodability import count_arrivals_needed, sequential_decoding_times


class Polar(Rival):
    """A PolarCode with floating blocks.

    rotation: the real decoder decides, with its own threshold of what is singular. arikan: the
    optimal decoder by rank, the sequential one by one sweep over all orders at once.
    """

    def __init__(self, code: PolarCode, integers: bool = False) -> None:
        self.code, self.n, self.k, self._integers = code, code.n, code.k, integers
        kind = "optimal, integers" if integers else code.decoder
        self.name = "rotation" if code.kernel == "rotation" else f"polar, {kind}{_levels(code)}"
        self.encode_operations = _encode_operations(code)

    @cached_property
    def norms(self) -> Array:
        return np.append(np.ones(self.k), np.linalg.norm(self.code.encoding_matrix.astype(float), axis=1))

    def needed(self, orders: Array) -> Array:
        if self.code.decoder == "sequential":
            ranks = np.ascontiguousarray(np.argsort(orders, axis=1).T.astype(np.int32) + 1)
            return sequential_decoding_times(self.code, ranks)
        if self.code.kernel == "rotation":
            return np.array([self._arrivals(order.tolist()) for order in orders])
        return count_arrivals_needed(self.code, orders, modular=self._integers)

    def _arrivals(self, order: list[int]) -> int:
        decoder = ArrivalTracker(self.code)
        assert any(decoder.add(index) for index in order)
        return decoder.n_arrived

    def encode(self, data: Array) -> Array:
        return self.code.encode(data)

    def plan(self, arrived: Array) -> Planned:
        return Planned(self.code, arrived, self._integers)


class Planned:
    """polarmap's own plan of one pattern, of any systematic code."""

    def __init__(self, code: Any, arrived: Array, exact: bool) -> None:
        here = np.zeros(code.n, bool)
        here[arrived] = True
        self._recovery = plan = code.recovery(here, exact)
        self._k = code.k
        if isinstance(plan, InactivationDecoder):
            self.operations = float(
                sum(len(step.target_rows) for step in plan.operation_batches if np.any(step.factor))
            )
        elif isinstance(plan, SyndromeDecoder):
            assert not plan.rank_deficit  # which solves for the missing blocks
            self.operations = _encode_operations(code) + 2.0 * len(plan.missing_indices) * len(
                plan.arrived_parity_indices
            )
        else:
            self.operations = 2.0 * len(plan.missing) * len(plan.arrived)
            if not plan.modular:
                _ = plan.weights

    def decode(self, blocks: Array) -> Array:
        plan = self._recovery
        data = blocks[: self._k].copy()
        rows = {index: blocks[index] for index in plan.arrived.tolist()}
        data[plan.missing] = plan.decode(rows, blocks.dtype)
        return data


def _levels(code: PolarCode) -> str:
    count = code.transform_shape[1]
    return f", {code.levels} of {next_power_of_two(code.n).bit_length() - 1} levels" if count > 1 else ""


def _encode_operations(code: PolarCode) -> float:
    k, r = code.k, code.n - code.k
    if code.kernel == "arikan":  # two butterflies of additions
        return float(code.mother_length * code.levels)
    if min(k, r) <= MAX_DENSE_ROWS:
        return 2.0 * k * r
    size = max(16, next_power_of_two(min(k, r)))
    groups = -(-k // size) + -(-r // size)
    return groups * 3.0 * size * (size.bit_length() - 1) + k + 2 * r  # four products, two sums a pair
