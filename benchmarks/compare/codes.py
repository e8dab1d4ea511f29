"""What each code needs and costs at one size: arrivals, operations, seconds, error amplification."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import NamedTuple

import numpy as np

from benchmarks import processor_seconds
from benchmarks.rivals import (
    Array,
    Rival,
    arrival_orders,
    embedding,
    fermat,
    fountain,
    local_product,
    mds,
    polar,
    raptor,
    staircase,
)
from polarmap.codes import PolarCode
from polarmap.codes.polar_construction import next_power_of_two
from polarmap.planning import ArrivalsNeeded

NOISE = 128  # columns of unit noise from which amplifications are estimated
BLOCK_BYTES = 1_000_000  # of the blocks that are coded, or less where all of them would be too much
LEAST_LEVELS = 8  # of codes that are measured with fewer, too
EMBEDDED_UP_TO = 64  # blocks: beyond, hardly a digit is left at the k-th arrival
LARGEST_ERROR = 1e-4  # of unit data: what is decoded worse is decoded wrongly
RAPTOR_UP_TO = 1024  # blocks: at 10,000 one seed of twenty is systematic, and decodes to one digit
WARM = (130, 98)  # blocks of the codes that compile what the others use


class Size(NamedTuple):
    """One size and how thoroughly it is measured.

    orders : random orders of arrival for what is quick to simulate.
    few : for decoders that solve a dense system for each.
    patterns : arrival patterns whose amplification is estimated.
    """

    n: int
    k: int
    orders: int
    few: int
    patterns: int


class Measured(NamedTuple):
    """One code at one size.

    beyond : mean arrivals needed beyond k, of the orders that decode at all.
    n : coded blocks; a local product code has its own number.
    encode, decode : operations for one number of every block; decoding at the last arrival needed.
    encode_seconds, decode_seconds : for a byte of the data.
    plan_seconds : for a pattern of arrivals, whatever the size of the blocks.
    amplification : median and worst, log10; None where integers are exact.

    Seconds are processor time of all threads: on one core, a map would wait for them.
    """

    name: str
    n: int
    needed: ArrivalsNeeded
    beyond: float
    encode: float
    encode_seconds: float
    decode: float
    plan_seconds: float
    decode_seconds: float
    amplification: tuple[float, float] | None


def contestants(size: Size, tuning: int) -> Iterator[tuple[Callable[[], Rival], int, bool]]:
    """(code, orders, whether blocks are integers), the papers' and ours last."""
    n, k, orders, few, _ = size
    yield partial(mds.Gaussian, n, k), orders, False
    if n <= EMBEDDED_UP_TO:
        yield partial(embedding.Embedding, n, k), orders, False
    yield partial(fermat.Fermat, n, k), orders, True
    yield partial(local_product.LocalProduct, *local_product.tuned(n, k, tuning)), orders, False
    yield partial(fountain.LT, *fountain.tuned(n, k, tuning)), orders, False
    yield partial(fountain.LT, *fountain.tuned(n, k, tuning, inactivates=True)), few, False
    if n <= RAPTOR_UP_TO:
        yield partial(raptor.Raptor, *raptor.tuned(n, k)), few, False
    yield partial(staircase.Staircase, *staircase.tuned(n, k, tuning)), orders, False
    yield partial(staircase.Staircase, *staircase.tuned(n, k, tuning, inactivates=True)), few, False
    yield lambda: polar.Polar(PolarCode(n, k, "arikan", "sequential")), orders, False
    yield lambda: polar.Polar(PolarCode(n, k, "arikan")), few, False
    yield lambda: polar.Polar(PolarCode(n, k, "arikan"), integers=True), few, True
    yield lambda: polar.Polar(PolarCode(n, k)), few, False


def measured(size: Size, tuning: int, megabytes: int) -> Iterator[Measured]:
    for make, orders, is_integer in contestants(size, tuning):
        yield measure(make, size, orders, is_integer, megabytes)


def compile_loops() -> None:
    """Use every code once, so that none of those measured has to compile its loops."""
    for make, _, is_integer in contestants(Size(*WARM, 1, 1, 1), 2):
        code = make()
        [order] = arrival_orders(code.n, 1)
        code.plan(order[: code.needed(order[None])[0]]).decode(code.encode(some_data(code, 2, is_integer)))


def measure(
    make: Callable[[], Rival], size: Size, count: int, is_integer: bool, megabytes: float
) -> Measured:
    code = make()
    orders = arrival_orders(code.n, count)
    arrivals = code.needed(orders)
    decodes = arrivals <= code.n
    first = int(np.flatnonzero(decodes)[0])
    arrived = orders[first][: arrivals[first]]
    width = int(min(BLOCK_BYTES, megabytes * 1_000_000 / code.k)) // 16 * 2
    data = some_data(code, width, is_integer)
    encode_seconds, coded = processor_seconds(lambda: code.encode(data), min)
    plan_seconds, plan = processor_seconds(lambda: code.plan(arrived), median)
    decode_seconds, found = processor_seconds(lambda: plan.decode(coded), min)
    patterns = [
        orders[i][: arrivals[i]] for i in np.flatnonzero(decodes)[: size.patterns if count > 1 else 1]
    ]
    rng = np.random.default_rng(0)
    factors = [] if is_integer else [amplification(code, pattern, rng) for pattern in patterns]
    error = float(np.abs(found - data).max())
    assert error <= (0 if is_integer else LARGEST_ERROR), f"{code.name} decodes wrongly: error {error:.1e}"
    return Measured(
        code.name,
        code.n,
        counted(arrivals, code.n),
        float((arrivals[decodes] - code.k).mean()),
        code.encode_operations,
        encode_seconds / data.nbytes,
        plan.operation_table,
        plan_seconds,
        decode_seconds / data.nbytes,
        spread(factors) if factors else None,
    )


def some_data(code: Rival, width: int, is_integer: bool) -> Array:
    rng, shape = np.random.default_rng(0), (code.k, max(2, width))
    return rng.integers(0, fermat.P, shape) if is_integer else rng.standard_normal(shape)


def counted(arrivals: Array, n: int) -> ArrivalsNeeded:
    """The distribution of what was simulated; orders that never decode are left out of its weights."""
    ranks, counts = np.unique(arrivals, return_counts=True)
    kept = ranks <= n
    return ArrivalsNeeded(ranks[kept].astype(float), counts[kept] / len(arrivals), len(arrivals))


def amplification(code: Rival, arrived: Array, rng: np.random.Generator) -> float:
    """log10 of the largest error of a data block, one per unit of relative error of what arrived."""
    noise = rng.standard_normal((code.n, NOISE)) * code.norms[:, None]
    errors = code.plan(arrived).decode(noise)
    return float(np.log10(np.sqrt((errors**2).mean(axis=1)).max()))


def spread(values: list[float]) -> tuple[float, float]:
    return float(np.median(values)), float(max(values))


def partly_polarized(size: Size) -> Iterator[Measured]:
    """Polar codes of fewer levels than all: two less, and half of them; measured but for their seconds.

    None of small codes, whose butterflies would hardly be more than a parity check.
    """
    most = next_power_of_two(size.n).bit_length() - 1
    for levels in (most - 2, most // 2) if most >= LEAST_LEVELS else ():
        for decoder, orders in (("sequential", size.orders), ("optimal", size.few)):
            code = PolarCode(size.n, size.k, "arikan", decoder, levels=levels)
            yield measure(partial(polar.Polar, code), size, orders, False, 0.1)


def polynomial_codes(size: Size, patterns: int) -> Iterator[tuple[str, tuple[float, float]]]:
    """The amplification of MDS codes of polynomials at k arrivals: median and worst, log10."""
    orders = arrival_orders(size.n, patterns)[:, : size.k]
    for name, points in mds.POINTS.items():
        yield name, spread([mds.log10_amplification(points(size.n), order) for order in orders])
    if size.n > EMBEDDED_UP_TO:
        circle, rng = embedding.Embedding(size.n, size.k), np.random.default_rng(0)
        yield circle.name, spread([amplification(circle, order, rng) for order in orders])
