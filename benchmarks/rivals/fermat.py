"""Reed-Solomon codes modulo the Fermat prime 65537, by fast transforms (Soro and Lacan 2010).

Any k of n blocks decode exactly, in O(n log n) once an arrival pattern is planned (its locator polynomial is
multiplied out here in O(k^2)). Everything, results included, must be integers modulo 65537, so real data are
quantized until no result of f overflows.
"""

from __future__ import annotations

import numpy as np

from benchmarks.rivals import Array, RivalCode, compile_if_possible
from polarmap.codes.compute.tiling import iter_column_tiles, parallel_for
from polarmap.codes.polar_construction import round_up_to_power_of_two

PRIME = 65537
PRIMITIVE_ROOT = 3


class FermatCode(RivalCode):
    """The values of a polynomial of degree below k at n powers of a root of unity.

    Blocks are int64 with entries 0..65536; the first k are the data.
    """

    name = "Fermat transform"

    def __init__(self, n: int, k: int) -> None:
        self.n, self.k, self.transform_size = n, k, round_up_to_power_of_two(n)
        self.points = modular_powers(
            pow(PRIMITIVE_ROOT, (PRIME - 1) // self.transform_size, PRIME), self.transform_size
        )[:n]
        self.norms = np.ones(n)
        # Interpolation takes transforms of 1, 2 and 2 times the size; evaluation takes one. A transform has
        # log2(size) levels of size / 2 pairs, with a product, a sum and a difference for each pair.
        n_levels = self.transform_size.bit_length() - 1
        self.encode_operations = 3.0 * self.transform_size * n_levels + 6.0 * self.transform_size * (
            n_levels + 1
        )

    def encode(self, data: Array) -> Array:
        return self.make_plan(np.arange(self.k)).evaluate(data)

    def make_plan(self, arrived_indices: Array) -> InterpolationPlan:
        return InterpolationPlan(self, arrived_indices[: self.k])


class InterpolationPlan:
    """A plan for interpolating the polynomial through the blocks that arrived.

    p(x) / A(x) = sum of y_i / (A'(x_i) (x - x_i)) with A the product of (x - x_i). As a power series, the sum
    has coefficients -sum y_i / A'(x_i) x_i^(-j-1), which is one transform. p is the series times A, cut off
    after k terms.
    """

    def __init__(self, code: FermatCode, arrived_indices: Array) -> None:
        self.code, self.arrived_indices = code, arrived_indices
        self.operations = code.encode_operations
        self.locator_parts = self._compute_locator()

    def _compute_locator(self) -> tuple[Array, Array]:
        """Return the transform of A, and 1 / (A'(x_i) x_i)."""
        code, points = self.code, self.code.points[self.arrived_indices]
        A = polynomial_from_roots(points)
        derivative = np.zeros((code.transform_size, 1), np.int64)
        derivative[: code.k, 0] = A[1:] * np.arange(1, len(A)) % PRIME
        derivative_values = number_theoretic_transform(derivative, code.transform_size)[
            self.arrived_indices, 0
        ]
        padded = np.zeros((2 * code.transform_size, 1), np.int64)
        padded[: code.k, 0] = A[: code.k]
        return number_theoretic_transform(padded, 2 * code.transform_size), modular_inverses(
            derivative_values * points % PRIME
        )

    def evaluate(self, received: Array) -> Array:
        """Return all n coded blocks from the k received ones, given in the order of `arrived_indices`."""
        code = self.code
        out = np.empty((code.n, received.shape[1]), np.int64)

        def evaluate_columns(columns: slice) -> None:
            out[:, columns] = self._evaluate_columns(received[:, columns])

        parallel_for(evaluate_columns, list(iter_column_tiles(received.shape[1], 4 * code.transform_size, 8)))
        return out

    def decode(self, blocks: Array) -> Array:
        return self.evaluate(blocks[self.arrived_indices])[: self.code.k]

    def _evaluate_columns(self, received: Array) -> Array:
        code, (A, scale) = self.code, self.locator_parts
        scaled_values = np.zeros((code.transform_size, received.shape[1]), np.int64)
        scaled_values[self.arrived_indices] = received * scale[:, None] % PRIME
        series = np.zeros((2 * code.transform_size, received.shape[1]), np.int64)
        # The transform with the inverse root yields the sums over i of s_i x_i^(-j).
        series[: code.k] = number_theoretic_transform(scaled_values, code.transform_size, inverse=True)[
            : code.k
        ]
        product_series = number_theoretic_transform(
            number_theoretic_transform(series, 2 * code.transform_size) * A % PRIME,
            2 * code.transform_size,
            inverse=True,
        )
        polynomial = np.zeros((code.transform_size, received.shape[1]), np.int64)
        polynomial[: code.k] = -product_series[: code.k] * pow(2 * code.transform_size, -1, PRIME) % PRIME
        return number_theoretic_transform(polynomial, code.transform_size)[: code.n]


def number_theoretic_transform(values: Array, size: int, inverse: bool = False) -> Array:
    """Return sum over j of values_j w^(i j) for i = 0..size-1 along the first axis, modulo 65537."""
    root = pow(PRIMITIVE_ROOT, (PRIME - 1) // size, PRIME)
    twiddles = modular_powers(pow(root, -1, PRIME) if inverse else root, max(1, size // 2))
    out = np.ascontiguousarray(values[_bit_reversed_indices(size)])
    _transform_in_place(out, twiddles)
    return out


@compile_if_possible
def _transform_in_place(values, twiddles):  # type: ignore[no-untyped-def]
    """Apply the Cooley-Tukey transform in place to rows in bit-reversed order.

    Since 2^16 = -1, the reduction modulo 65537 needs no division.
    """
    size, width = values.shape
    half_size = 1
    while half_size < size:
        twiddle_step = size // (2 * half_size)
        for start in range(0, size, 2 * half_size):
            for offset in range(half_size):
                twiddle = twiddles[offset * twiddle_step]
                upper, lower = values[start + offset], values[start + offset + half_size]
                for column in range(width):
                    wide_product = lower[column] * twiddle
                    reduced = (wide_product & 0xFFFF) - (wide_product >> 16)
                    reduced += PRIME if reduced < 0 else 0
                    butterfly_sum, butterfly_difference = upper[column] + reduced, upper[column] - reduced
                    upper[column] = butterfly_sum - PRIME if butterfly_sum >= PRIME else butterfly_sum
                    lower[column] = (
                        butterfly_difference + PRIME if butterfly_difference < 0 else butterfly_difference
                    )
        half_size *= 2


def modular_powers(base: int, n_powers: int) -> Array:
    """Return base^0 .. base^(n_powers - 1) modulo 65537."""
    out = np.ones(n_powers, np.int64)
    n_known = 1
    while n_known < n_powers:  # Each pass doubles the number of known powers.
        n_new = min(n_known, n_powers - n_known)
        out[n_known : n_known + n_new] = out[:n_new] * pow(base, n_known, PRIME) % PRIME
        n_known += n_new
    return out


def polynomial_from_roots(points: Array) -> Array:
    """Return the coefficients, lowest first, of the product of (x - point)."""
    coefficients = np.zeros(len(points) + 1, np.int64)
    coefficients[0] = 1
    for degree, point in enumerate(points.tolist(), 1):
        coefficients[1 : degree + 1], coefficients[0] = (
            (coefficients[:degree] - point * coefficients[1 : degree + 1]) % PRIME,
            -point * coefficients[0] % PRIME,
        )
    return coefficients


def modular_inverses(values: Array) -> Array:
    """Return 1 / values, as values^(P - 2): the exponent P - 2 has all 16 bits set."""
    out, base = np.ones_like(values), values % PRIME
    for _ in range(16):
        out, base = out * base % PRIME, base * base % PRIME
    return out


def measure_quantization_error(n_terms: int, n_rows: int = 1000) -> float:
    """Return the relative 2-norm error of A @ x for normal A and x that are quantized to integers.

    The integers are so small that sums stay below 65537 / 2. Bits are shared evenly between A and x. In
    practice the sums are not known in advance and a bound is needed; here it is six times their standard
    deviation.
    """
    rng = np.random.default_rng(0)
    A, x = rng.standard_normal((n_rows, n_terms)), rng.standard_normal(n_terms)
    scale = np.sqrt(PRIME / 2 / 6 / np.sqrt(n_terms))
    quantized_product, exact_product = np.rint(A * scale) @ np.rint(x * scale), A @ x
    assert np.abs(quantized_product).max() <= PRIME // 2
    return float(np.linalg.norm(quantized_product / scale**2 - exact_product) / np.linalg.norm(exact_product))


def _bit_reversed_indices(size: int) -> Array:
    out = np.zeros(1, np.int64)
    while len(out) < size:
        out = np.concatenate([2 * out, 2 * out + 1])
    return out
