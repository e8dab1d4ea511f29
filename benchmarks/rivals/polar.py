"""The codes of polarmap behind the interface of rival codes, so that all are measured alike."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.rivals import Array, RivalCode
from polarmap.codes import ArrivalTracker, PolarCode
from polarmap.codes.polar_construction import round_up_to_power_of_two
from polarmap.codes.rotation_code import MAX_DENSE_ROWS, SyndromeDecoder
from polarmap.codes.successive_cancellation import InactivationDecoder, SuccessiveCancellationDecoder
from polarmap.planning.decodability import count_arrivals_needed, sequential_decoding_times


class PolarRival(RivalCode):
    """A PolarCode with floating-point blocks, or with integers.

    With the rotation kernel, the real decoder decides whether blocks suffice, by its own threshold for
    singular systems. With the arikan kernel, the optimal decoder decides by rank, and the sequential decoder
    by one sweep over all orders.
    """

    def __init__(self, code: PolarCode, is_integer: bool = False) -> None:
        self.code, self.n, self.k, self._is_integer = code, code.n, code.k, is_integer
        decoder_label = "optimal, integers" if is_integer else code.decoder
        self.name = (
            "rotation" if code.kernel == "rotation" else f"polar, {decoder_label}{_format_levels(code)}"
        )
        self.encode_operations = _count_encode_operations(code)

    @cached_property
    def norms(self) -> Array:
        return np.append(np.ones(self.k), np.linalg.norm(self.code.encoding_matrix.astype(float), axis=1))

    def count_arrivals(self, orders: Array) -> Array:
        if self.code.decoder == "sequential":
            arrival_ranks = np.ascontiguousarray(np.argsort(orders, axis=1).T.astype(np.int32) + 1)
            return sequential_decoding_times(self.code, arrival_ranks)
        if self.code.kernel == "rotation":
            return np.array([self._count_arrivals_in_order(order.tolist()) for order in orders])
        return count_arrivals_needed(self.code, orders, modular=self._is_integer)

    def _count_arrivals_in_order(self, arrival_order: list[int]) -> int:
        tracker = ArrivalTracker(self.code)
        assert any(tracker.add(index) for index in arrival_order)
        return tracker.n_arrived

    def encode(self, data: Array) -> Array:
        return self.code.encode(data)

    def make_plan(self, arrived_indices: Array) -> PolarmapPlan:
        return PolarmapPlan(self.code, arrived_indices, self._is_integer)


class PolarmapPlan:
    """polarmap's own plan for one arrival pattern, of any systematic code."""

    def __init__(self, code: Any, arrived_indices: Array, modular: bool) -> None:
        arrived_mask = np.zeros(code.n, bool)
        arrived_mask[arrived_indices] = True
        self._decoder = decoder = code.make_decoder(arrived_mask, modular)
        self._k = code.k
        if isinstance(decoder, (InactivationDecoder, SuccessiveCancellationDecoder)):
            self.operations = float(
                sum(
                    len(row_operation.target_rows)
                    for row_operation in decoder.solver.operation_batches
                    if np.any(row_operation.factor)
                )
            )
        elif isinstance(decoder, SyndromeDecoder):
            assert not decoder.rank_deficit  # The decoder solves for the missing blocks.
            self.operations = _count_encode_operations(code) + 2.0 * len(decoder.missing_indices) * len(
                decoder.arrived_parity_indices
            )
        else:
            self.operations = 2.0 * len(decoder.missing_indices) * len(decoder.arrived_indices)
            if not decoder.modular:
                _ = decoder.weights

    def decode(self, blocks: Array) -> Array:
        decoder = self._decoder
        data = blocks[: self._k].copy()
        received = {index: blocks[index] for index in decoder.arrived_indices.tolist()}
        data[decoder.missing_indices] = decoder.decode(received, blocks.dtype)
        return data


def _format_levels(code: PolarCode) -> str:
    n_butterflies = code.transform_shape[1]
    return (
        f", {code.levels} of {round_up_to_power_of_two(code.n).bit_length() - 1} levels"
        if n_butterflies > 1
        else ""
    )


def _count_encode_operations(code: PolarCode) -> float:
    k, r = code.k, code.n - code.k
    if code.kernel == "arikan":  # Encoding takes two butterflies of additions.
        return float(code.mother_code_length * code.levels)
    if min(k, r) <= MAX_DENSE_ROWS:
        return 2.0 * k * r
    size = max(16, round_up_to_power_of_two(min(k, r)))
    groups = -(-k // size) + -(-r // size)
    # A pair takes four products and two sums.
    return groups * 3.0 * size * (size.bit_length() - 1) + k + 2 * r
