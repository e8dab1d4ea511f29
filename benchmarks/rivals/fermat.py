"""Reed-Solomon codes modulo the Fermat prime 65537, by fast transforms (Soro and Lacan 2010).

Any k of n blocks decode, exactly, in O(n log n) once a pattern of arrivals is planned (its locator is
multiplied out here in O(k^2)). The price: everything, results too, must be
integers modulo 65537, so real data are quantized until no result of f overflows (`quantized`).
"""

from __future__ import annotations

import numpy as np

from benchmarks.rivals import Array, Rival, compiled
from polarmap.code.design import power_of_two_above
from polarmap.code.tiled import over_cores, tiles

P = 65537
GENERATOR = 3


class Fermat(Rival):
    """The values at n powers of a root of unity of a polynomial of degree below k.

    Blocks are int64 with entries 0..65536; the first k are the data.
    """

    name = "Fermat transform"

    def __init__(self, n: int, k: int) -> None:
        self.n, self.k, self.size = n, k, power_of_two_above(n)
        self.points = powers(pow(GENERATOR, (P - 1) // self.size, P), self.size)[:n]
        self.norms = np.ones(n)
        # Interpolation: transforms of 1, 2 and 2 times the size; evaluation: one. A butterfly has a
        # product, a sum and a difference for each pair.
        self.encode_operations = 3 * _pairs(self.size) * 2 + 3 * _pairs(2 * self.size) * 2

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

        over_cores(work, list(tiles(received.shape[1], 4 * code.size, 8)))
        return out

    def recover(self, blocks: Array) -> Array:
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
    """1 / values, as values^(P - 2)."""
    out, base, exponent = np.ones_like(values), values % P, P - 2
    while exponent:
        if exponent & 1:
            out = out * base % P
        base = base * base % P
        exponent >>= 1
    return out


def quantized(A: Array, x: Array) -> tuple[Array, Array, float]:
    """A and x as integers so small that no entry of A @ x passes 65537 / 2, and the unit of A @ x.

    Bits are shared evenly. The sums are known only once they are computed; a user must know a
    bound beforehand, here that of sums which are `headroom` times their standard deviation.
    """
    headroom, terms = 6.0, len(x)
    largest = P / 2 / headroom / np.sqrt(terms)  # of the product of two standard deviations
    scale = np.sqrt(largest) / np.sqrt(np.array([(A**2).mean(), (x**2).mean()]))
    return np.rint(A * scale[0]).astype(int), np.rint(x * scale[1]).astype(int), float(1 / scale.prod())


def quantization_error(terms: int, rows: int = 1000, seed: int = 0) -> float:
    """Relative 2-norm error of A @ x for normal A and x after quantization; nan if it overflowed."""
    rng = np.random.default_rng(seed)
    A, x = rng.standard_normal((rows, terms)), rng.standard_normal(terms)
    whole, vector, unit = quantized(A, x)
    found, exact = whole @ vector, A @ x
    if np.abs(found).max() > P // 2:
        return np.nan
    return float(np.linalg.norm(found * unit - exact) / np.linalg.norm(exact))


def _pairs(size: int) -> float:
    """Butterflies of one transform."""
    return size / 2 * (size.bit_length() - 1)


def _reversed_bits(size: int) -> Array:
    out = np.zeros(1, np.int64)
    while len(out) < size:
        out = np.concatenate([2 * out, 2 * out + 1])
    return out
