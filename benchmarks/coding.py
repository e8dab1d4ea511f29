"""Encoding and recovery as rows of `steps`: beside np.copyto of all n blocks, and of those of data.

Results go to memory that is there already, or to new memory. "BLAS" is a dense product of the same size,
which is arithmetic, and no longer memory, where blocks are many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import NamedTuple

import numpy as np

from benchmarks import Row, in_turns, milliseconds
from polarmap.codes import ArrivalTracker, PolarCode

KIB, MIB = 1 << 10, 1 << 20


class Case(NamedTuple):
    """A code, blocks of so many bytes, the share that is missing; targets, as ratios to copies."""

    n: int
    k: int
    dtype: str
    size: int
    share: float
    encode: str
    encode_anew: str
    recover: str

    def __str__(self) -> str:
        missing = f", {self.share:.0%} missing"
        return f"({self.n}, {self.k}) {self.dtype}, {self.size // KIB:,} KiB{missing}"


CASES = [
    Case(64, 48, "float64", 2 * MIB, 0.05, "0.9", "1.1", "0.7"),
    Case(256, 192, "float64", 2 * MIB, 0.05, "1.3", "1.5", "1.2"),
    Case(1024, 768, "float64", MIB, 0.05, "1.5", "1.8", "2.0"),
    Case(64, 48, "int64", MIB, 0.05, "2", "", "8"),
    Case(256, 192, "int64", MIB, 0.05, "4", "", "8"),
    Case(64, 48, "int64", MIB, 0.15, "2", "", "8"),
    Case(64, 48, "int64", 6 * MIB, 0.15, "2", "", "8"),  # large enough for the compiled loops
    Case(64, 48, "int32", MIB, 0.15, "4", "", "8"),
    Case(64, 48, "uint8", MIB, 0.15, "4", "", "8"),
]
PLANS = [  # n, k, kernel and decoder, target
    (256, 192, "rotation", "optimal", ""),
    (1024, 768, "rotation", "optimal", "50 ms"),
    (10_000, 7_500, "rotation", "optimal", "500 ms"),
    (10_000, 7_500, "arikan", "optimal", ""),
    (10_000, 7_500, "arikan", "sequential", ""),
]


def arrivals(n: int, share: float = 0.05) -> list[int]:
    """In random order, without a share that never arrives."""
    order = np.random.default_rng(1).permutation(n)
    return [int(index) for index in order[int(share * n) :]]


def rows(case: Case, repeats: int) -> Iterator[Row]:
    """Encoding and recovery, of floats beside what BLAS takes, too."""
    code = PolarCode(case.n, case.k, "rotation" if case.dtype == "float64" else "arikan")
    data = some_data(case.k, case.dtype, case.size)
    coded = np.concatenate([data, code.encode_parity(data)])
    copies, parity = np.zeros_like(coded), coded[case.k :].copy()
    decoder, arrived = ArrivalTracker(code, modular=data.dtype.kind != "f"), {}
    for index in arrivals(case.n, case.share):
        decoder.add(index)
        arrived[index] = coded[index]
    missing = decoder.missing_indices
    assert np.allclose(decoder.decoder.decode(arrived, data.dtype), data[missing], rtol=0, atol=1e-6)
    actions: list[Callable[[], object]] = [
        lambda: np.copyto(copies, coded),
        lambda: np.copyto(copies[: case.k], data),
        lambda: code.encode_parity(data, out=parity),
        lambda: code.encode_parity(data),
        lambda: decoder.decoder.decode(arrived, data.dtype),
    ]
    if data.dtype.kind == "f":
        weights = np.random.default_rng(1).standard_normal((len(missing), len(arrived)))
        out = np.zeros((len(missing), data.shape[1]))
        actions += [
            lambda: np.matmul(code.encoding_matrix, data, out=parity),
            lambda: np.matmul(weights, coded[: len(arrived)], out=out),
        ]
    of_n, of_k, encode, anew, recover, *blas = map(milliseconds, in_turns(actions, repeats))
    yield Row(f"encode {case}", encode, "copy", of_n, case.encode)
    yield Row("the same in new memory", anew, "copy", of_n, case.encode_anew)
    yield Row(f"recover {len(missing)} of them", recover, "copy", of_k, case.recover)
    for what, taken, copy in zip(("encode by BLAS", "recover by BLAS"), blas, (of_n, of_k)):
        yield Row(what, taken, "copy", copy)


def some_data(k: int, dtype: str, size: int) -> np.ndarray:
    """k blocks of so many bytes; integers of all sizes."""
    stream, shape = np.random.default_rng(0), (k, size // np.dtype(dtype).itemsize)
    if dtype == "float64":
        return stream.standard_normal(shape)
    limits = np.iinfo(dtype)
    return stream.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def planning(n: int, k: int, kernel: str, decoder: str, target: str, repeats: int) -> Iterator[Row]:
    """What decides and prepares recovery, beside what a code takes at its first use; arikan of integers."""
    made, few, none = [], [], []
    for _ in range(repeats):
        code, began = PolarCode(n, k, kernel, decoder), perf_counter()
        code.encode(zeros(code, k))  # of few blocks P is formed, of many the angles
        made.append(perf_counter() - began)
        few.append(planned(code, sorted(arrivals(n))))
        none.append(planned(code, arrivals(n, 0.0)))
    for taken, which in ((few, "5 % missing"), (none, "of the first arrivals")):
        what = f"plan for ({n:,}, {k:,}) {code.name}, {which}"
        yield Row(what, milliseconds(taken), "a first encoding", milliseconds(made), target)


def zeros(code: PolarCode, count: int) -> np.ndarray:
    """Blocks of a single number each."""
    return np.zeros((count, 1), int if code.supports_integers else float)


def planned(code: PolarCode, order: list[int]) -> float:
    """Seconds from the first arrival to the decoded blocks of a single number, decision included."""
    start = perf_counter()
    decoder, one = ArrivalTracker(code, modular=code.supports_integers), zeros(code, 1)[0]
    assert any(decoder.add(index) for index in order)
    decoder.decoder.decode(dict.fromkeys(decoder.decoder.arrived_indices.tolist(), one), one.dtype)
    return perf_counter() - start
