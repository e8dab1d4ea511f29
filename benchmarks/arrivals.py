"""Results needed beyond k until the data are determined: mean over random orders of arrival."""

from __future__ import annotations

import numpy as np

from benchmarks import is_quick, show
from polarmap import Decoder, PolarCode

SIZES = [(16, 12), (64, 48), (256, 192), (1024, 768)]


def beyond(code: PolarCode, orders: list[list[int]], exact: bool) -> float:
    return float(np.mean([needed(code, order, exact) for order in orders])) - code.k


def needed(code: PolarCode, order: list[int], exact: bool) -> int:
    decoder = Decoder(code, exact=exact)
    assert any(decoder.add(index) for index in order)
    return decoder.count


def measure(n: int, k: int, count: int) -> list[object]:
    stream = np.random.default_rng(n)
    orders = [stream.permutation(n).tolist() for _ in range(count)]
    sequential, optimal = (PolarCode(n, k, "arikan", decoder) for decoder in ("sequential", "optimal"))
    return [
        f"({n}, {k})",
        count,
        beyond(sequential, orders, exact=True),
        beyond(optimal, orders, exact=True),
        beyond(PolarCode(n, k), orders, exact=False),
    ]


def main() -> None:
    count = 40 if is_quick(__doc__) else 500
    show(
        ["code", "orders", "arikan seq.", "arikan optimal", "rotation"],
        (measure(n, k, count) for n, k in SIZES),
    )


if __name__ == "__main__":
    main()
