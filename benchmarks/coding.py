"""Encoding and decoding as ratios to np.copyto of all n blocks, and of the k results; planning in seconds.

All write into memory that is there already. `BLAS`: a dense product of the same size, which is arithmetic and
no longer memory where blocks are many.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np

from benchmarks import interleaved, is_quick, show
from polarmap import Decoder, PolarCode

MIB = 1 << 20
CASES = [  # n, k, dtype, bytes of a block, share that is missing, targets of encoding and decoding
    (64, 48, "float64", 2 * MIB, 0.05, 1.5, 1.5),
    (256, 192, "float64", 2 * MIB, 0.05, 2.0, 1.5),
    (1024, 768, "float64", MIB, 0.05, 3.0, 1.5),
    (64, 48, "int64", MIB, 0.05, 4.0, 8.0),
    (64, 48, "int64", MIB, 0.15, 4.0, 8.0),
    (64, 48, "int64", 6 * MIB, 0.15, 4.0, 8.0),  # large enough for the compiled loops
    (64, 48, "int32", MIB, 0.15, 4.0, 8.0),
    (64, 48, "uint8", MIB, 0.15, 4.0, 8.0),
    (256, 192, "int64", MIB, 0.05, 4.0, 8.0),
]
PLANS = [(256, 192, ""), (1024, 768, "0.05 s"), (10_000, 7_500, "0.5 s")]  # n, k, target


def arrivals(n: int, share: float = 0.05) -> list[int]:
    """In random order, without a share that never arrives."""
    order = np.random.default_rng(1).permutation(n)
    return [int(index) for index in order[int(share * n) :]]


def measure(code: PolarCode, data: np.ndarray, share: float, repeats: int) -> tuple[int, list[float]]:
    """How many are missing, and seconds: copies of n and k blocks, encoding, decoding, products by BLAS."""
    n, k = code.n, code.k
    coded = np.concatenate([data, code.parity(data)])
    copies, parity = np.zeros_like(coded), coded[k:].copy()
    decoder, rows = Decoder(code, exact=data.dtype.kind != "f"), {}
    for index in arrivals(n, share):
        decoder.add(index)
        rows[index] = coded[index]
    missing = decoder.missing
    assert np.allclose(decoder.recovery.recover(rows, data.dtype), data[missing], rtol=0, atol=1e-6)
    actions = [
        lambda: np.copyto(copies, coded),
        lambda: np.copyto(copies[:k], data),
        lambda: code.parity(data, out=parity),
        lambda: decoder.recovery.recover(rows, data.dtype),
    ]
    if data.dtype.kind == "f":
        weights = np.random.default_rng(1).standard_normal((len(missing), len(rows)))
        out = np.zeros((len(missing), data.shape[1]))
        actions += [
            lambda: np.matmul(code.coefficients, data, out=parity),
            lambda: np.matmul(weights, coded[: len(rows)], out=out),
        ]
    return len(missing), interleaved(actions, repeats)


def some_data(k: int, dtype: str, size: int) -> np.ndarray:
    """k blocks of so many bytes; integers of all sizes."""
    stream, shape = np.random.default_rng(0), (k, size // np.dtype(dtype).itemsize)
    if dtype == "float64":
        return stream.standard_normal(shape)
    limits = np.iinfo(dtype)
    return stream.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def row(
    n: int, k: int, dtype: str, size: int, share: float, encoding: float, decoding: float, repeats: int
) -> list[object]:
    data, kernel = some_data(k, dtype, size), "rotation" if dtype == "float64" else "arikan"
    missing, (copy, of_k, encode, decode, *blas) = measure(PolarCode(n, k, kernel), data, share, repeats)
    ratios = [encode / copy, encoding, decode / of_k, decoding]
    by_blas = [one / of_what for one, of_what in zip(blas, (copy, of_k))]
    return [f"({n}, {k}) {dtype}", f"{size >> 10} KiB", missing, 1e3 * copy, *ratios, *by_blas]


def planning(n: int, k: int, target: str) -> list[object]:
    code = PolarCode(n, k)
    start = perf_counter()
    code.encode(np.zeros((k, 1)))  # of few blocks P is formed, of many the angles
    made = perf_counter() - start
    return [f"({n}, {k})", made, planned(code, sorted(arrivals(n))), planned(code, arrivals(n, 0.0)), target]


def planned(code: PolarCode, order: list[int]) -> float:
    """Seconds from the first arrival to the decoded blocks of a single number, decision included."""
    start = perf_counter()
    decoder = Decoder(code)
    assert any(decoder.add(index) for index in order)
    one = np.zeros(1)
    decoder.recovery.recover(dict.fromkeys(decoder.recovery.arrived.tolist(), one), one.dtype)
    return perf_counter() - start


def main() -> None:
    quick = is_quick(__doc__)
    shrink, repeats = (2, 3) if quick else (1, 9)
    ratios = ["encode/copy", "target", "decode/copy", "target", "P by BLAS", "weights, BLAS"]
    show(
        ["code", "block", "missing", "copy ms", *ratios],
        (row(*case[:3], case[3] // shrink, *case[4:], repeats) for case in CASES),
    )
    print()
    show(
        ["code", "code made s", "5 % missing s", "k-th arrival s", "target"],
        (planning(*case) for case in PLANS[: 2 if quick else 3]),
    )


if __name__ == "__main__":
    main()
