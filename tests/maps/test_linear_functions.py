"""Linear and affine functions are never reported as non-linear, and non-linear functions always are.

The maps run on a virtual clock, with and without more results than decoding needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse
from plain import arrivals, arriving, assert_same, leaves, plain_map

import polarmap
from polarmap.codes import PolarCode
from polarmap.errors import NotLinearError

N, K, ROWS, COLUMNS = 18, 12, 4, 10
SEEDS = (1, 2)
VIRTUAL_SECONDS = 100.0  # timeout on the virtual clock, so that a missing arrival fails the test


class Case(NamedTuple):
    """A function, a generator of its data, and the relative error that decoding may cause."""

    f: Callable[[Any], Any]
    data: Callable[[np.random.Generator], Any]
    rtol: float = 1e-11


# --- data --------------------------------------------------------------------------------------


def floats(stream: np.random.Generator) -> np.ndarray:
    return stream.standard_normal((K * ROWS, COLUMNS))


def singles(stream: np.random.Generator) -> np.ndarray:
    return floats(stream).astype(np.float32)


def halves(stream: np.random.Generator) -> np.ndarray:
    return floats(stream).astype(np.float16)


def complexes(stream: np.random.Generator) -> np.ndarray:
    return floats(stream) + 1j * floats(stream)


def positive(stream: np.random.Generator) -> np.ndarray:
    return np.exp(floats(stream))


def constant_rows(stream: np.random.Generator) -> np.ndarray:
    return np.repeat(stream.standard_normal((K * ROWS, 1)), COLUMNS, axis=1)


def badly_scaled(stream: np.random.Generator) -> np.ndarray:
    return floats(stream) * 10.0 ** np.linspace(-9, 9, COLUMNS)


def integers(stream: np.random.Generator) -> np.ndarray:
    return stream.integers(-1000, 1000, (K * ROWS, COLUMNS))


def bytes_(stream: np.random.Generator) -> np.ndarray:
    return stream.integers(-128, 128, (K * ROWS, COLUMNS)).astype(np.int8)


def images(stream: np.random.Generator) -> np.ndarray:
    return stream.integers(0, 256, (K * 2, 6, 5), dtype=np.uint8)


def batches(stream: np.random.Generator) -> list[dict[str, Any]]:
    normal = stream.standard_normal
    return [{"x": normal((ROWS, 3)), "pair": (normal(2), normal())} for _ in range(K)]


def counts_and_weights(stream: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(stream.integers(-99, 99, 5, dtype=np.int16), stream.standard_normal(4)) for _ in range(K)]


# --- functions ---------------------------------------------------------------------------------

FIXED = np.random.default_rng(0)
VECTOR = FIXED.standard_normal(COLUMNS)
MATRIX = FIXED.standard_normal((COLUMNS, 7))
WHOLE = FIXED.integers(-50, 50, (COLUMNS, 3))
SPARSE = scipy.sparse.random_array((COLUMNS, 8), density=0.3, rng=np.random.default_rng(5)).tocsr()


def nested(block: np.ndarray) -> dict[str, Any]:
    return {"rows": block @ VECTOR, "both": (block[0], [float(block.sum()), block.T])}


def mix(batch: dict[str, Any]) -> tuple[Any, Any]:
    return batch["x"] @ np.ones(3), {"sum": batch["pair"][0].sum() + batch["pair"][1] - 2}


LINEAR = {
    "matvec": Case(lambda block: block @ VECTOR, floats),
    "sum": Case(np.sum, floats),
    "fft": Case(np.fft.fft, floats),
    "rfft of float32": Case(np.fft.rfft, singles, 1e-4),
    "fft of constant rows": Case(np.fft.fft, constant_rows),
    "sparse product": Case(lambda block: block @ SPARSE, floats),
    "indexing": Case(lambda block: block[::2, [3, 1, 1]], floats),
    "affine": Case(lambda block: block @ MATRIX + 3.5, floats),
    "affine with large constant": Case(lambda block: block @ MATRIX + 1e6, floats, 1e-10),
    "constant": Case(lambda block: np.full(3, 2.5), floats),
    "constant python number": Case(lambda block: 7, floats),
    "zero": Case(np.zeros_like, floats),
    "badly scaled columns": Case(lambda block: block * 2, badly_scaled),
    "badly scaled sums": Case(lambda block: block.sum(axis=0), badly_scaled),
    "tiny outputs": Case(lambda block: 1e-200 * (block @ VECTOR), floats),
    "nested": Case(nested, floats),
    "nested blocks": Case(mix, batches),
    "nested blocks, integers and floats": Case(lambda pair: [pair[0] * 3, pair[1].sum()], counts_and_weights),
    "real part": Case(lambda block: block.real @ VECTOR, complexes),
    "conjugate": Case(lambda block: np.conj(block).T, complexes),
    "complex affine": Case(lambda block: (2 - 1j) * block + 1j, complexes),
    "complex64": Case(lambda block: block.astype(np.complex64) @ VECTOR.astype(np.complex64), singles, 1e-4),
    "float32": Case(lambda block: block @ MATRIX.astype(np.float32), singles, 1e-4),
    "float32 cumsum": Case(lambda block: np.cumsum(block, axis=1), singles, 1e-4),
    "float32 with float16 weights": Case(lambda block: block @ MATRIX.astype(np.float16), singles, 1e-4),
    "float32 with float64 weights": Case(lambda block: block @ MATRIX, singles, 1e-4),
    "float32 summed in float64": Case(lambda block: block.sum(axis=0, dtype=np.float64), singles, 1e-4),
    "float16": Case(lambda block: block * np.float16(0.5), halves, 0.1),
    "float16 sum": Case(lambda block: block.sum(axis=1), halves, 0.1),
    "float16 with float64 weights": Case(lambda block: block @ MATRIX, halves, 0.1),
    "integer product": Case(lambda block: block @ WHOLE, integers),
    "integer affine": Case(lambda block: 5 - 3 * block, integers),
    "integer to float": Case(lambda block: block @ MATRIX, integers),
    "integer mean": Case(lambda block: block.mean(axis=1), integers),
    "integer product that wraps around": Case(lambda block: block * 3**39, integers),
    "int8 that wraps around": Case(lambda block: block * 3 + 100, bytes_),
    "int8 summed in int8": Case(lambda block: block.sum(axis=0, dtype=np.int8), bytes_),
    "images by float weights": Case(lambda block: block.reshape(2, -1) @ FIXED_PIXELS, images),
    "negative images": Case(lambda block: 255 - block, images),
}
FIXED_PIXELS = FIXED.standard_normal((30, 2))

NON_LINEAR = {
    "norm": Case(np.linalg.norm, floats),
    "relu": Case(lambda block: np.maximum(block, 0), floats),
    "relu of float32": Case(lambda block: np.maximum(block, 0), singles),
    "relu of float16": Case(lambda block: np.maximum(block, 0), halves),
    "relu of float32 in float64": Case(lambda block: np.maximum(block @ MATRIX, 0), singles),
    "sort": Case(lambda block: np.sort(block, axis=1), floats),
    "clip at a rare value": Case(lambda block: np.clip(block, -2.2, 2.2), floats),
    "complex abs": Case(np.abs, complexes),
    "slightly quadratic": Case(lambda block: block + 1e-5 * block**2, floats),
    "sign": Case(np.sign, floats),
    "root of positive": Case(lambda block: np.sqrt(np.abs(block)), positive),
    "argmax": Case(lambda block: np.argmax(block, axis=0), floats),
    "floor division": Case(lambda block: block // 2, integers),
    "remainder": Case(lambda block: block % 7, integers),
    "right shift": Case(lambda block: block >> 3, integers),
    "integer abs": Case(np.abs, integers),
    "integers to uint8, saturating": Case(lambda block: np.clip(block, 0, 255).astype(np.uint8), integers),
    "image threshold": Case(lambda block: np.where(block > 200, block, 0), images),
    "truncation to integers": Case(lambda block: (10 * block).astype(int), floats),
    "sine of small": Case(lambda block: np.sin(0.01 * block), floats),
    "one bad leaf of three": Case(lambda block: (block, block.sum(), np.abs(block[0])), floats),
    "product of two parts": Case(lambda batch: batch["x"] * batch["pair"][1], batches),
    "times the mean of the integers": Case(lambda pair: pair[1] * pair[0].mean(), counts_and_weights),
}


def coded(case: Case, seed: int, count: int) -> tuple[polarmap.types.CodedResult, Any]:
    """Run the case with `count` random arrivals, and return the result and the data.

    At least min(2, N - count) data blocks are lost, so that the map has to decode.
    """
    stream = np.random.default_rng(seed)
    data = case.data(stream)
    exact = any(np.asarray(leaf).dtype.kind in "iu" for leaf in leaves(data[0]))
    code = PolarCode(N, K, kernel="arikan" if exact else "rotation")
    order = arrivals(code, count, stream, exact=exact)
    blocks = K if isinstance(data, np.ndarray) else None
    options = {"blocks": blocks, "tasks": N, "timeout": VIRTUAL_SECONDS}
    return polarmap.coded_map(case.f, data, executor=arriving(order, N), **options), data


@pytest.mark.parametrize(("surplus", "how"), [(3, "parity"), (0, "local")])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", LINEAR)
def test_linear_functions_are_exact_and_never_flagged(name: str, seed: int, surplus: int, how: str) -> None:
    case = LINEAR[name]
    result, data = coded(case, seed, count=K + surplus)
    assert_same(result, plain_map(case.f, data, K), case.rtol)
    assert result.report.verified == how
    assert len(result.report.recovered) >= 2
    assert surplus or result.report.needed == K


@pytest.mark.parametrize("surplus", [3, 0])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NON_LINEAR)
def test_nonlinear_functions_are_flagged(name: str, seed: int, surplus: int) -> None:
    with pytest.raises(NotLinearError, match="f is not linear"):
        coded(NON_LINEAR[name], seed, count=K + surplus)
