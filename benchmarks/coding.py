"""Time encoding and recovery against np.copyto of the same blocks, as rows of the table of `steps`.

Encoding is compared with a copy of all n blocks, recovery with a copy of the k data blocks. Results are
written to existing memory, unless a row says "new memory". "BLAS" is a dense matrix product of the same size:
with many blocks its time is spent on arithmetic, no longer on memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import NamedTuple

import numpy as np

from benchmarks import Row, time_in_turns, to_milliseconds
from polarmap.codes import ArrivalTracker, PolarCode

KIB, MIB = 1 << 10, 1 << 20


class Case(NamedTuple):
    """A code with its dtype, bytes of a block and missing share; targets are ratios to the time of a copy."""

    n: int
    k: int
    dtype: str
    block_bytes: int
    missing_fraction: float
    encode_target: str
    new_memory_target: str
    recover_target: str

    def __str__(self) -> str:
        missing = f", {self.missing_fraction:.0%} missing"
        return f"({self.n}, {self.k}) {self.dtype}, {self.block_bytes // KIB:,} KiB{missing}"


CASES = [
    Case(64, 48, "float64", 2 * MIB, 0.05, "0.9", "1.1", "0.7"),
    Case(256, 192, "float64", 2 * MIB, 0.05, "1.3", "1.5", "1.2"),
    Case(1024, 768, "float64", MIB, 0.05, "1.5", "1.8", "2.0"),
    Case(64, 48, "int64", MIB, 0.05, "2", "", "8"),
    Case(256, 192, "int64", MIB, 0.05, "4", "", "8"),
    Case(64, 48, "int64", MIB, 0.15, "2", "", "8"),
    Case(64, 48, "int64", 6 * MIB, 0.15, "2", "", "8"),  # Blocks are large enough for the compiled loops.
    Case(64, 48, "int32", MIB, 0.15, "4", "", "8"),
    Case(64, 48, "uint8", MIB, 0.15, "4", "", "8"),
]
PLANNING_CASES = [  # n, k, kernel, decoder, target
    (256, 192, "rotation", "optimal", ""),
    (1024, 768, "rotation", "optimal", "50 ms"),
    (10_000, 7_500, "rotation", "optimal", "500 ms"),
    (10_000, 7_500, "arikan", "optimal", ""),
    (10_000, 7_500, "arikan", "sequential", ""),
]


def make_arrival_order(n: int, missing_fraction: float = 0.05) -> list[int]:
    """Return the indices of the blocks that arrive, in random order; a share of them never arrives."""
    order = np.random.default_rng(1).permutation(n)
    return [int(index) for index in order[int(missing_fraction * n) :]]


def measure_case(case: Case, n_turns: int) -> Iterator[Row]:
    """Yield rows for encoding and recovery; for floats also the times of BLAS."""
    code = PolarCode(case.n, case.k, "rotation" if case.dtype == "float64" else "arikan")
    data = make_data(case.k, case.dtype, case.block_bytes)
    coded_blocks = np.concatenate([data, code.encode_parity(data)])
    copies, parity = np.zeros_like(coded_blocks), coded_blocks[case.k :].copy()
    tracker, received = ArrivalTracker(code, modular=data.dtype.kind != "f"), {}
    for index in make_arrival_order(case.n, case.missing_fraction):
        tracker.add(index)
        received[index] = coded_blocks[index]
    missing_indices = tracker.missing_indices
    assert np.allclose(tracker.decoder.decode(received, data.dtype), data[missing_indices], rtol=0, atol=1e-6)
    actions: list[Callable[[], object]] = [
        lambda: np.copyto(copies, coded_blocks),
        lambda: np.copyto(copies[: case.k], data),
        lambda: code.encode_parity(data, out=parity),
        lambda: code.encode_parity(data),
        lambda: tracker.decoder.decode(received, data.dtype),
    ]
    if data.dtype.kind == "f":
        weights = np.random.default_rng(1).standard_normal((len(missing_indices), len(received)))
        out = np.zeros((len(missing_indices), data.shape[1]))
        actions += [
            lambda: np.matmul(code.encoding_matrix, data, out=parity),
            lambda: np.matmul(weights, coded_blocks[: len(received)], out=out),
        ]
    copy_n_times, copy_k_times, encode_times, new_memory_times, recover_times, *blas_times = map(
        to_milliseconds, time_in_turns(actions, n_turns)
    )
    yield Row(f"encode {case}", encode_times, "copy", copy_n_times, case.encode_target)
    yield Row("encode into new memory", new_memory_times, "copy", copy_n_times, case.new_memory_target)
    yield Row(
        f"recover {len(missing_indices)} missing blocks",
        recover_times,
        "copy",
        copy_k_times,
        case.recover_target,
    )
    for label, times, copy_times in zip(
        ("encode by BLAS", "recover by BLAS"), blas_times, (copy_n_times, copy_k_times)
    ):
        yield Row(label, times, "copy", copy_times)


def make_data(k: int, dtype: str, block_bytes: int) -> np.ndarray:
    """Return k random blocks of `block_bytes` bytes; integers span the full range of the dtype."""
    rng, shape = np.random.default_rng(0), (k, block_bytes // np.dtype(dtype).itemsize)
    if dtype == "float64":
        return rng.standard_normal(shape)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def measure_planning(n: int, k: int, kernel: str, decoder: str, target: str, n_repeats: int) -> Iterator[Row]:
    """Yield rows for planning a recovery, compared with the first encoding by a new code.

    Codes with the Arikan kernel are measured on integers.
    """
    encode_seconds, few_missing_seconds, none_missing_seconds = [], [], []
    for _ in range(n_repeats):
        code, started_at = PolarCode(n, k, kernel, decoder), perf_counter()
        # Builds the parity matrix for few blocks, the rotation angles for many.
        code.encode(make_zero_blocks(code, k))
        encode_seconds.append(perf_counter() - started_at)
        few_missing_seconds.append(time_planning(code, sorted(make_arrival_order(n))))
        none_missing_seconds.append(time_planning(code, make_arrival_order(n, 0.0)))
    for plan_seconds, condition in (
        (few_missing_seconds, "5 % missing"),
        (none_missing_seconds, "first arrivals"),
    ):
        label = f"plan for ({n:,}, {k:,}) {code.name}, {condition}"
        yield Row(
            label, to_milliseconds(plan_seconds), "a first encoding", to_milliseconds(encode_seconds), target
        )


def make_zero_blocks(code: PolarCode, n_blocks: int) -> np.ndarray:
    """Return blocks of a single number each."""
    return np.zeros((n_blocks, 1), int if code.supports_integers else float)


def time_planning(code: PolarCode, arrival_order: list[int]) -> float:
    """Return the seconds from the first arrival to the decoded blocks, each of a single number."""
    started_at = perf_counter()
    tracker, zero_block = ArrivalTracker(code, modular=code.supports_integers), make_zero_blocks(code, 1)[0]
    assert any(tracker.add(index) for index in arrival_order)
    tracker.decoder.decode(
        dict.fromkeys(tracker.decoder.arrived_indices.tolist(), zero_block), zero_block.dtype
    )
    return perf_counter() - started_at
