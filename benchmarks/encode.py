"""Parity of k data blocks, of float64 and of integers, relative to np.copyto of all n blocks.

Copy, encoding and the dense product write into memory that is there already; `in new memory` includes
what the system takes to provide it, and `touch` is what it takes to fill as much of it with zeros, less
what that takes again: no code can have less between the two. PolarCode.encode also copies the data
blocks: it is relative to a copy of all n blocks into new memory, `copy to new`, which its result takes at
the least.
"""

from __future__ import annotations

import numpy as np

from benchmarks import interleaved, is_quick, show
from polarmap import PolarCode

CASES = [  # n, k, bytes of a block, target
    (64, 48, 2 << 20, 1.5),
    (256, 192, 2 << 20, 2.0),
    (1024, 768, 1 << 20, 3.0),
]


INTEGERS = [  # n, k, dtype, bytes of a block
    (64, 48, "int64", 1 << 20),
    (64, 48, "int64", 6 << 20),  # large enough for the compiled loops
    (64, 48, "int32", 1 << 20),
    (64, 48, "uint8", 1 << 20),
    (256, 192, "int64", 1 << 20),
]


def measure(n: int, k: int, size: int, target: float, repeats: int) -> list[object]:
    code, width = PolarCode(n, k), size // 8
    blocks = np.random.default_rng(0).standard_normal((n, width))
    copies, parity = np.zeros((n, width)), np.zeros((n - k, width))
    copy, new_copy, touch, fill, encode, fresh, whole, dense = interleaved(
        [
            lambda: np.copyto(copies, blocks),
            lambda: blocks.copy(),
            lambda: np.empty_like(parity).fill(0),
            lambda: parity.fill(0),
            lambda: code.parity(blocks[:k], out=parity),
            lambda: code.parity(blocks[:k]),
            lambda: code.encode(blocks[:k]),
            lambda: np.matmul(code.coefficients, blocks[:k], out=parity),
        ],
        repeats,
    )
    new = [fresh / copy, (touch - fill) / copy, new_copy / copy, whole / new_copy]
    ratios = [encode / copy, target, *new, dense / copy]
    return [f"({n}, {k})", f"{size >> 10} KiB", 1e3 * copy, *ratios]


def measure_integers(n: int, k: int, dtype: str, size: int, repeats: int) -> list[object]:
    code, width = PolarCode(n, k, "arikan"), size // np.dtype(dtype).itemsize
    limits = np.iinfo(dtype)
    data = np.random.default_rng(0).integers(limits.min, limits.max, (k, width), dtype, endpoint=True)
    coded = code.encode(data)
    copies = np.zeros_like(coded)
    parity = copies[k:]
    copy, new_copy, touch, fill, encode, fresh, whole = interleaved(
        [
            lambda: np.copyto(copies, coded),
            lambda: coded.copy(),
            lambda: np.empty_like(parity).fill(0),
            lambda: parity.fill(0),
            lambda: code.parity(data, out=parity),
            lambda: code.parity(data),
            lambda: code.encode(data),
        ],
        repeats,
    )
    new = [fresh / copy, (touch - fill) / copy, new_copy / copy, whole / new_copy]
    ratios = [encode / copy, 4.0, *new]
    return [f"({n}, {k})", dtype, f"{size >> 10} KiB", 1e3 * copy, *ratios]


def main() -> None:
    quick = is_quick(__doc__)
    shrink, repeats = (2, 3) if quick else (1, 9)
    shared = ["copy ms", "encode/copy", "target", "in new memory", "touch", "copy to new", "encode()/that"]
    show(
        ["code", "block", *shared, "dense/copy"],
        (measure(n, k, size // shrink, target, repeats) for n, k, size, target in CASES),
    )
    print()
    show(
        ["code", "dtype", "block", *shared],
        (measure_integers(n, k, dtype, size // shrink, repeats) for n, k, dtype, size in INTEGERS),
    )


if __name__ == "__main__":
    main()
