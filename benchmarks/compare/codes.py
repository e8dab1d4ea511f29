"""What each code needs and costs at one size: arrivals, operations, seconds, error amplification."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from benchmarks.rivals import Array, Rival, fermat, fountain, mds, polar, staircase
from polarmap import PolarCode
from polarmap.code.design import power_of_two_above
from polarmap.planning import ArrivalsNeeded
from polarmap.planning.decodability import _real_rank

NOISE = 128  # columns of unit noise from which amplifications are estimated
MIB = 1 << 20
LEAST_LEVELS = 8  # of codes that are measured with fewer, too
REPEATS = 3  # of which the fastest counts: other work on the machine only slows down


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
    encode, decode : operations for one number of every block; decoding at the last arrival needed.
    encode_seconds, plan_seconds, decode_seconds : for all the data.
    amplification : median and worst, log10; None where integers are exact.
    """

    name: str
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
    yield partial(mds.gaussian, n, k), orders, False
    yield partial(fermat.Fermat, n, k), orders, True
    yield partial(fountain.tuned, n, k, tuning), orders, False
    yield partial(staircase.tuned, n, k, tuning), orders, False
    yield lambda: polar.Polar(PolarCode(n, k, "arikan", "sequential")), orders, False
    yield lambda: polar.Polar(PolarCode(n, k, "arikan")), few, False
    yield lambda: polar.Polar(PolarCode(n, k, "arikan"), integers=True), few, True
    yield lambda: polar.Polar(PolarCode(n, k)), few, False


def measured(size: Size, tuning: int, megabytes: int) -> Iterator[Measured]:
    for make, orders, is_integer in contestants(size, tuning):
        yield measure(make(), size, orders, is_integer, megabytes)


def measure(code: Rival, size: Size, count: int, is_integer: bool, megabytes: int) -> Measured:
    orders = arrival_orders(code.n, count)
    arrivals = code.needed(orders)
    decodes = arrivals <= code.n
    first = int(np.flatnonzero(decodes)[0])
    arrived = orders[first][: arrivals[first]]
    rng = np.random.default_rng(0)
    width = max(1, megabytes * MIB // (8 * code.k))
    data = rng.integers(0, fermat.P, (code.k, width)) if is_integer else rng.standard_normal((code.k, width))
    code.plan(arrived).recover(code.encode(data[:, :2].copy()))  # compiled, planned: not timed
    encode_seconds, coded = timed(lambda: code.encode(data), REPEATS)
    plan_seconds, plan = timed(lambda: code.plan(arrived))
    decode_seconds, found = timed(lambda: plan.recover(coded), REPEATS)
    limit = 0 if is_integer else 1e-4
    assert np.abs(found - data).max() <= limit, f"{code.name} decodes wrongly"
    patterns = [
        orders[i][: arrivals[i]] for i in np.flatnonzero(decodes)[: size.patterns if count > 1 else 1]
    ]
    return Measured(
        code.name,
        counted(arrivals, code.n),
        float((arrivals[decodes] - code.k).mean()),
        code.encode_operations,
        encode_seconds,
        plan.operations,
        plan_seconds,
        decode_seconds,
        None if is_integer else spread([amplification(code, pattern, rng) for pattern in patterns]),
    )


def timed(action: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """The least seconds of a few runs, and the result."""
    least = np.inf
    for _ in range(repeats):
        start = perf_counter()
        result = action()
        least = min(least, perf_counter() - start)
    return least, result


def counted(arrivals: Array, n: int) -> ArrivalsNeeded:
    """The distribution of what was simulated; orders that never decode are left out of its weights."""
    ranks, counts = np.unique(arrivals, return_counts=True)
    kept = ranks <= n
    return ArrivalsNeeded(ranks[kept].astype(float), counts[kept] / len(arrivals), len(arrivals))


def arrival_orders(n: int, count: int, seed: int = 0) -> Array:
    """Random orders (count, n)."""
    return np.random.default_rng(seed).permuted(np.tile(np.arange(n), (count, 1)), axis=1)


def amplification(code: Rival, arrived: Array, rng: np.random.Generator) -> float:
    """log10 of the largest error of a data block, one per unit of relative error of what arrived."""
    noise = rng.standard_normal((code.n, NOISE)) * code.norms[:, None]
    errors = code.plan(arrived).recover(noise)
    return float(np.log10(np.sqrt((errors**2).mean(axis=1)).max()))


def spread(values: list[float]) -> tuple[float, float]:
    return float(np.median(values)), float(max(values))


def partly_polarized(size: Size) -> Iterator[Measured]:
    """Polar codes of fewer levels than all: two less, and half of them; measured but for their seconds.

    None of small codes, whose butterflies would hardly be more than a parity check.
    """
    most = power_of_two_above(size.n).bit_length() - 1
    for levels in (most - 2, most // 2) if most >= LEAST_LEVELS else ():
        for decoder, orders in (("sequential", size.orders), ("optimal", size.few)):
            code = PolarCode(size.n, size.k, "arikan", decoder, levels=levels)
            yield measure(polar.Polar(code), size, orders, False, 1)


def polynomial_codes(size: Size, patterns: int) -> Iterator[tuple[str, float, float]]:
    """(name, median, worst) of log10 of the amplification of polynomial MDS codes at k arrivals."""
    for make in (mds.vandermonde, mds.chebyshev):
        code = make(size.n, size.k)
        orders = arrival_orders(size.n, patterns)
        yield code.name, *spread([code.log10_amplification(order[: size.k]) for order in orders])


def with_elimination(size: Size, tuning: int, count: int) -> Iterator[tuple[str, float]]:
    """(code, mean arrivals beyond k) of sparse codes decoded by elimination, not only by peeling."""
    orders = arrival_orders(size.n, count)
    ldpc = staircase.tuned(size.n, size.k, tuning)
    lt = fountain.tuned(size.n, size.k, tuning)
    unused = np.linalg.qr(lt.matrix, mode="complete")[0][:, size.k :].T  # orthogonal to every codeword
    for code, check in ((lt, unused), (ldpc, ldpc.parity_check)):
        yield code.name, float(np.mean([_real_rank(check, order) for order in orders])) - size.k
