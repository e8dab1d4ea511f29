"""Parity of k data blocks of float64, relative to np.copyto of all n blocks.

Copy, encoding and the dense product write into memory that is there already; `in new memory` includes
what the system takes to provide it, which is not the code's doing.
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


def measure(n: int, k: int, size: int, target: float, repeats: int) -> list[object]:
    code, width = PolarCode(n, k), size // 8
    blocks = np.random.default_rng(0).standard_normal((n, width))
    copies, parity = np.zeros((n, width)), np.zeros((n - k, width))
    copy, encode, fresh, dense = interleaved(
        [
            lambda: np.copyto(copies, blocks),
            lambda: code.parity(blocks[:k], out=parity),
            lambda: code.parity(blocks[:k]),
            lambda: np.matmul(code.coefficients, blocks[:k], out=parity),
        ],
        repeats,
    )
    return [f"({n}, {k})", f"{size >> 10} KiB", 1e3 * copy, encode / copy, target, fresh / copy, dense / copy]


def main() -> None:
    quick = is_quick(__doc__)
    shrink, repeats = (2, 3) if quick else (1, 9)
    show(
        ["code", "block", "copy ms", "encode/copy", "target", "in new memory", "dense/copy"],
        (measure(n, k, size // shrink, target, repeats) for n, k, size, target in CASES),
    )


if __name__ == "__main__":
    main()
