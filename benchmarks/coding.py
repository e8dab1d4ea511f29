"""Encoding and decoding as ratios to np.copyto of all n blocks, and of the k results; planning in seconds.

All write into memory that is there already. `BLAS`: a dense product of the same size, which is arithmetic and
no longer memory where blocks are many. Of floats 5 % of the blocks are missing.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np

from benchmarks import interleaved, is_quick, show
from polarmap import Decoder, PolarCode

MIB = 1 << 20
FLOATS = [  # n, k, bytes of a block, target of encoding
    (64, 48, 2 * MIB, 1.5),
    (256, 192, 2 * MIB, 2.0),
    (1024, 768, MIB, 3.0),
]
INTEGERS = [  # n, k, dtype, bytes of a block, share that is missing
    (64, 48, "int64", MIB, 0.05),
    (64, 48, "int64", MIB, 0.15),
    (64, 48, "int64", 6 * MIB, 0.15),  # large enough for the compiled loops
    (64, 48, "int32", MIB, 0.15),
    (64, 48, "uint8", MIB, 0.15),
    (256, 192, "int64", MIB, 0.05),
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


def floats(n: int, k: int, size: int, target: float, repeats: int) -> list[object]:
    data = np.random.default_rng(0).standard_normal((k, size // 8))
    missing, (copy, of_k, encode, decode, dense, product) = measure(PolarCode(n, k), data, 0.05, repeats)
    ratios = [encode / copy, target, dense / copy, decode / of_k, 1.5, product / of_k]
    return [f"({n}, {k})", f"{size >> 10} KiB", missing, 1e3 * copy, *ratios]


def integers(n: int, k: int, dtype: str, size: int, share: float, repeats: int) -> list[object]:
    limits, shape = np.iinfo(dtype), (k, size // np.dtype(dtype).itemsize)
    data = np.random.default_rng(0).integers(limits.min, limits.max, shape, dtype, endpoint=True)
    missing, (copy, of_k, encode, decode) = measure(PolarCode(n, k, "arikan"), data, share, repeats)
    ratios = [encode / copy, 4.0, decode / of_k, 8.0]
    return [f"({n}, {k}) {dtype}", f"{size >> 10} KiB", missing, 1e3 * copy, *ratios]


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
    sizes, encoding = ["block", "missing", "copy ms"], ["encode/copy", "target"]
    show(
        ["code", *sizes, *encoding, "P by BLAS", "decode/copy", "target", "weights, BLAS"],
        (floats(n, k, size // shrink, target, repeats) for n, k, size, target in FLOATS),
    )
    print()
    show(
        ["code", *sizes, *encoding, "decode/copy", "target"],
        (integers(n, k, dtype, size // shrink, share, repeats) for n, k, dtype, size, share in INTEGERS),
    )
    print()
    show(
        ["code", "code made s", "5 % missing s", "k-th arrival s", "target"],
        (planning(*case) for case in PLANS[: 2 if quick else 3]),
    )


if __name__ == "__main__":
    main()
