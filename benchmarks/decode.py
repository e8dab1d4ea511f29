"""Decoding, relative to np.copyto of the k results: floats at 5 % missing, integers; and planning alone.

What is missing of floats is a product, weights (missing x arrived) @ results. `BLAS/copy` is that by
np.matmul on one array: at (1024, 768) 43 x 973 multiplications for 768 numbers, so that the bound is
arithmetic and not memory.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np

from benchmarks import interleaved, is_quick, show
from polarmap import Decoder, PolarCode

CASES = [(64, 48, 2 << 20), (256, 192, 2 << 20), (1024, 768, 1 << 20)]  # n, k, bytes of a block
TARGET = 1.5
INTEGERS = [  # n, k, dtype, bytes of a block, share that is missing
    (64, 48, "int64", 1 << 20, 0.05),
    (64, 48, "int64", 1 << 20, 0.15),
    (64, 48, "int64", 6 << 20, 0.15),  # large enough for the compiled loops
    (64, 48, "int32", 1 << 20, 0.15),
    (64, 48, "uint8", 1 << 20, 0.15),
    (256, 192, "int64", 1 << 20, 0.05),
]
PLANS = [(256, 192, ""), (1024, 768, "0.05 s"), (10_000, 7_500, "0.5 s")]  # n, k, target


def recovery(n: int, k: int, size: int, repeats: int) -> list[object]:
    code, width = PolarCode(n, k), size // 8
    blocks = np.random.default_rng(0).standard_normal((n, width))  # any: the time is the same
    copies = np.zeros((k, width))
    decoder = Decoder(code)
    for index in lossy(n):
        decoder.add(index)
    rows = {index: blocks[index] for index in lossy(n)}
    weights = np.random.default_rng(1).standard_normal((len(decoder.missing), len(rows)))
    out = np.zeros((len(weights), width))
    copy, recover, product = interleaved(
        [
            lambda: np.copyto(copies, blocks[:k]),
            lambda: decoder.recovery.recover(rows, blocks.dtype),
            lambda: np.matmul(weights, blocks[: len(rows)], out=out),
        ],
        repeats,
    )
    ratios = [recover / copy, TARGET, product / copy]
    return [f"({n}, {k})", f"{size >> 10} KiB", len(weights), 1e3 * copy, *ratios]


def planning(n: int, k: int, target: str) -> list[object]:
    code = PolarCode(n, k)
    start = perf_counter()
    code.encode(np.zeros((k, 1)))  # of few blocks P is formed, of many the angles
    made = perf_counter() - start
    return [f"({n}, {k})", made, planned(code, sorted(lossy(n))), planned(code, shuffled(n)), target]


def planned(code: PolarCode, order: list[int]) -> float:
    """Seconds from the first arrival to the decoded blocks of a single number, decision included."""
    start = perf_counter()
    decoder = Decoder(code)
    assert any(decoder.add(index) for index in order)
    one = np.zeros(1)
    decoder.recovery.recover(dict.fromkeys(decoder.recovery.arrived.tolist(), one), one.dtype)
    return perf_counter() - start


def shuffled(n: int) -> list[int]:
    return [int(index) for index in np.random.default_rng(1).permutation(n)]


def lossy(n: int, share: float = 0.05) -> list[int]:
    """A share of them never arrives."""
    return shuffled(n)[int(share * n) :]


def integers(n: int, k: int, dtype: str, size: int, share: float, repeats: int) -> list[object]:
    code, width = PolarCode(n, k, "arikan"), size // np.dtype(dtype).itemsize
    limits = np.iinfo(dtype)
    data = np.random.default_rng(0).integers(limits.min, limits.max, (k, width), dtype, endpoint=True)
    coded, copies = [*data, *code.parity(data)], np.zeros_like(data)
    decoder = Decoder(code, exact=True)
    for index in lossy(n, share):
        decoder.add(index)
    assert decoder.ready
    rows, missing = {index: coded[index] for index in lossy(n, share)}, decoder.missing
    assert np.array_equal(decoder.recovery.recover(rows, data.dtype), data[missing])
    copy, recover = interleaved(
        [lambda: np.copyto(copies, data), lambda: decoder.recovery.recover(rows, data.dtype)], repeats
    )
    return [f"({n}, {k})", dtype, f"{size >> 10} KiB", len(missing), 1e3 * copy, recover / copy, 8.0]


def main() -> None:
    quick = is_quick(__doc__)
    shrink, repeats = (2, 3) if quick else (1, 9)
    show(
        ["code", "block", "missing", "copy ms", "recover/copy", "target", "BLAS/copy"],
        (recovery(n, k, size // shrink, repeats) for n, k, size in CASES),
    )
    print()
    show(
        ["code", "dtype", "block", "missing", "copy ms", "recover/copy", "target"],
        (integers(n, k, dtype, size // shrink, *rest, repeats) for n, k, dtype, size, *rest in INTEGERS),
    )
    print()
    show(
        ["code", "code made s", "5 % missing s", "k-th arrival s", "target"],
        (planning(*case) for case in PLANS[: 2 if quick else 3]),
    )


if __name__ == "__main__":
    main()
