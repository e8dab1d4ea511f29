"""Error of decoding at the k-th arrival of random orders, relative to the largest number of the data."""

from __future__ import annotations

import numpy as np

from benchmarks import is_quick, show
from polarmap import Decoder, PolarCode

N, K = 1024, 768
TARGETS = {"float64": "1e-11", "int64": "0"}
WIDTH = 32


def errors(code: PolarCode, data: np.ndarray, count: int) -> list[float]:
    """Largest error of each decoding: as a share of the largest number, or for integers absolute."""
    stream = np.random.default_rng(1)
    coded = code.encode(data)
    return [worst(code, data, coded, stream.permutation(code.n)) for _ in range(count)]


def worst(code: PolarCode, data: np.ndarray, coded: np.ndarray, order: np.ndarray) -> float:
    decoder = Decoder(code, exact=data.dtype.kind == "i")
    assert any(decoder.add(int(index)) for index in order)
    plan = decoder.plan
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


def main() -> None:
    count = 30 if is_quick(__doc__) else 500
    show(
        ["code", "dtype", "orders", "median", "99 %", "worst", "99 % target"],
        (measure(dtype, count) for dtype in ("float64", "float32", "int64")),
    )


if __name__ == "__main__":
    main()
