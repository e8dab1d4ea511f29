"""Reed-Solomon codes modulo the Fermat prime 65537, by fast transforms (Soro and Lacan 2010).

Any k of n blocks decode, exactly, in O(n log n) once a pattern of arrivals is planned (its locator is
multiplied out here in O(k^2)). The price: everything, results too, must be
integers modulo 65537, so real data are quantized until no result of f overflows.
"""

from __future__ import annotations

import numpy as np

from benchmarks.rivals import Array, Rival, compiled
from polarmap.codes.polar_construction import next_power_of_two
from polarmap.codes.tiling import iter_column_tiles, parallel_for

P = 65537
GENERATOR = 3


class Fermat(Rival):
    """The values at n powers of a root of unity of a polynomial of degree below k.

    Blocks are int64 with entries 0..65536; the first k are the data.
    """

    name = "Fermat transform"

    def __init__(self, n: int, k: int) -> None:
        self.n, self.k, self.size = n, k, next_power_of_two(n)
        self.points = powers(pow(GENERATOR, (P - 1) // self.size, P), self.size)[:n]
        self.norms = np.ones(n)
        # Interpolation: transforms of 1, 2 and 2 times the size; evaluation: one. Each has log2 of its size
        # levels of half as many pairs, with a product, a sum and a difference for a pair.
        levels = self.size.bit_length() - 1
        self.encode_operations = 3.0 * self.size * levels + 6.0 * self.size * (levels + 1)

    def encode(self, data: Array) -> Array:
        return self.plan(np.arange(self.k)).extend(data)

    def plan(self, arrived: Array) -> Interpolation:
        return Interpolation(self, arrived[: self.k])


class Interpolation:
    """The polynomial through the blocks that arrived.

    p(x) / A(x) = sum of y_i / (A'(x_i) (x - x_i)) with A the product of (x - x_i): as a power series
    the sum has coefficients -sum y_i / A'(x_i) x_i^(-j-1), one transform, and p is the series times
    A, cut off after k terms.
    """

    def __init__(self, code: Fermat, arrived: Array) -> None:
        self.code, self.arrived = code, arrived
        self.operations = code.encode_operations
        self.locator = self._locator()

    def _locator(self) -> tuple[Array, Array]:
        """A transformed, and 1 / (A'(x_i) x_i)."""
        code, points = self.code, self.code.points[self.arrived]
        A = product_of_roots(points)
        derived = np.zeros((code.size, 1), np.int64)
        derived[: code.k, 0] = A[1:] * np.arange(1, len(A)) % P
        slopes = transform(derived, code.size)[self.arrived, 0]
        padded = np.zeros((2 * code.size, 1), np.int64)
        padded[: code.k, 0] = A[: code.k]
        return transform(padded, 2 * code.size), inverses(slopes * points % P)

    def extend(self, received: Array) -> Array:
        """All n coded blocks from the k received ones, in the order of `arrived`."""
        code = self.code
        out = np.empty((code.n, received.shape[1]), np.int64)

        def work(columns: slice) -> None:
            out[:, columns] = self._extend(received[:, columns])

        parallel_for(work, list(iter_column_tiles(received.shape[1], 4 * code.size, 8)))
        return out

    def decode(self, blocks: Array) -> Array:
        return self.extend(blocks[self.arrived])[: self.code.k]

    def _extend(self, received: Array) -> Array:
        code, (A, scale) = self.code, self.locator
        scaled = np.zeros((code.size, received.shape[1]), np.int64)
        scaled[self.arrived] = received * scale[:, None] % P
        series = np.zeros((2 * code.size, received.shape[1]), np.int64)
        # sum over i of s_i x_i^(-j): the transform with the inverse root.
        series[: code.k] = transform(scaled, code.size, backwards=True)[: code.k]
        cut = transform(transform(series, 2 * code.size) * A % P, 2 * code.size, backwards=True)
        polynomial = np.zeros((code.size, received.shape[1]), np.int64)
        polynomial[: code.k] = -cut[: code.k] * pow(2 * code.size, -1, P) % P
        return transform(polynomial, code.size)[: code.n]


def transform(values: Array, size: int, backwards: bool = False) -> Array:
    """sum over j of values_j w^(i j) for i = 0..size-1 along the first axis, modulo 65537."""
    root = pow(GENERATOR, (P - 1) // size, P)
    twiddles = powers(pow(root, -1, P) if backwards else root, max(1, size // 2))
    out = np.ascontiguousarray(values[_reversed_bits(size)])
    _transform(out, twiddles)
    return out


@compiled
def _transform(values, twiddles):  # type: ignore[no-untyped-def]
    """Cooley and Tukey, in place on rows in bit-reversed order. 2^16 = -1 replaces the division."""
    size, width = values.shape
    half = 1
    while half < size:
        step = size // (2 * half)
        for start in range(0, size, 2 * half):
            for place in range(half):
                twiddle = twiddles[place * step]
                upper, lower = values[start + place], values[start + place + half]
                for column in range(width):
                    wide = lower[column] * twiddle
                    turned = (wide & 0xFFFF) - (wide >> 16)
                    turned += P if turned < 0 else 0
                    total, rest = upper[column] + turned, upper[column] - turned
                    upper[column] = total - P if total >= P else total
                    lower[column] = rest + P if rest < 0 else rest
        half *= 2


def powers(base: int, count: int) -> Array:
    """base^0 .. base^(count - 1)."""
    out = np.ones(count, np.int64)
    known = 1
    while known < count:  # by doubling
        more = min(known, count - known)
        out[known : known + more] = out[:more] * pow(base, known, P) % P
        known += more
    return out


def product_of_roots(points: Array) -> Array:
    """The coefficients, lowest first, of the product of (x - point)."""
    out = np.zeros(len(points) + 1, np.int64)
    out[0] = 1
    for degree, point in enumerate(points.tolist(), 1):
        out[1 : degree + 1], out[0] = (out[:degree] - point * out[1 : degree + 1]) % P, -point * out[0] % P
    return out


def inverses(values: Array) -> Array:
    """1 / values, as values^(P - 2): all 16 bits of that are set."""
    out, base = np.ones_like(values), values % P
    for _ in range(16):
        out, base = out * base % P, base * base % P
    return out


def quantization_error(terms: int, rows: int = 1000) -> float:
    """Relative 2-norm error of A @ x for normal A and x as integers so small that no entry passes 65537 / 2.

    Bits are shared evenly. The sums are known only once they are computed; a user must know a
    bound beforehand, here that of sums which are six times their standard deviation.
    """
    rng = np.random.default_rng(0)
    A, x = rng.standard_normal((rows, terms)), rng.standard_normal(terms)
    scale = np.sqrt(P / 2 / 6 / np.sqrt(terms))
    found, exact = np.rint(A * scale) @ np.rint(x * scale), A @ x
    assert np.abs(found).max() <= P // 2
    return float(np.linalg.norm(found / scale**2 - exact) / np.linalg.norm(exact))


def _reversed_bits(size: int) -> Array:
    out = np.zeros(1, np.int64)
    while len(out) < size:
        out = np.concatenate([2 * out, 2 * out + 1])
    return out
