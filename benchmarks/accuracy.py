"""Error of decoding at the k-th arrival of random orders, relative to the largest number of the data.

And the share of such patterns of arrivals, and of those with one and two results more, that would
multiply rounding beyond the default rtol of a dtype: a map awaits one result more.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks import is_quick, show
from polarmap import Decoder, PolarCode
from polarmap.code.dtypes import default_rtol, epsilon

N, K = 1024, 768
TARGETS = {"float64": "1e-11", "int64": "0"}
WIDTH = 32
SIZES = {(8, 6): 4000, (16, 12): 20_000, (32, 24): 20_000, (64, 48): 20_000, (128, 96): 8000}
FLOATS = ("float64", "float32", "float16")


def errors(code: PolarCode, data: np.ndarray, count: int) -> list[float]:
    """Largest error of each decoding: as a share of the largest number, or for integers absolute."""
    stream = np.random.default_rng(1)
    coded = code.encode(data)
    return [worst(code, data, coded, stream.permutation(code.n)) for _ in range(count)]


def worst(code: PolarCode, data: np.ndarray, coded: np.ndarray, order: np.ndarray) -> float:
    decoder = Decoder(code, exact=data.dtype.kind == "i")
    assert any(decoder.add(int(index)) for index in order)
    plan = decoder.recovery
    recovered = plan.recover({index: coded[index] for index in plan.arrived.tolist()}, data.dtype)
    if data.dtype.kind == "i":
        return float(np.count_nonzero(recovered != data[plan.missing]))
    return float(np.abs(recovered - data[plan.missing]).max() / np.abs(data).max())


def measure(dtype: str, count: int) -> list[object]:
    stream = np.random.default_rng(0)
    if dtype == "int64":
        code, data = PolarCode(N, K, "arikan"), stream.integers(-(2**63), 2**63 - 1, (K, WIDTH))
    else:
        code, data = PolarCode(N, K), stream.standard_normal((K, WIDTH)).astype(dtype)
    found = errors(code, data, count)
    quantiles = [float(value) for value in np.quantile(found, [0.5, 0.99, 1.0])]
    return [f"({N}, {K})", dtype, count, *quantiles, TARGETS.get(dtype, "")]


def amplifications(code: PolarCode, arrivals: int, count: int) -> np.ndarray:
    """Of random patterns of so many arrivals; inf where they do not determine the data."""
    stream = np.random.default_rng(0)
    found = np.full(count, np.inf)
    for turn in range(count):
        arrived = np.isin(np.arange(code.n), stream.permutation(code.n)[:arrivals])
        plan = code.recovery(arrived, exact=False)
        if plan.deficit == 0:
            found[turn] = plan.amplification
    return found


def beyond_rtol(n: int, k: int, count: int) -> Iterator[list[object]]:
    """Per cent of patterns for each dtype, of k results and of one and two more."""
    code = PolarCode(n, k)
    limits = {name: default_rtol(np.dtype(name)) / epsilon(np.dtype(name)) for name in FLOATS}
    for more in range(3):
        found = amplifications(code, k + more, count)
        shares = [f"{100 * np.mean(found > limit):.2f}" for limit in limits.values()]
        yield [f"({n}, {k})", f"k + {more}", count, *shares, float(np.median(found)), float(found.max())]


def main() -> None:
    quick = is_quick(__doc__)
    count = 30 if quick else 500
    show(
        ["code", "dtype", "orders", "median", "99 %", "worst", "99 % target"],
        (measure(dtype, count) for dtype in ("float64", "float32", "int64")),
    )
    show(
        ["code", "results", "patterns", *(f"% {name}" for name in FLOATS), "median", "worst"],
        (row for size, count in SIZES.items() for row in beyond_rtol(*size, 100 if quick else count)),
    )


if __name__ == "__main__":
    main()
