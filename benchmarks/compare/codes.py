"""Measure what each code needs and costs at one size: arrivals, operations, seconds, error amplification."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import NamedTuple

import numpy as np

from benchmarks import measure_cpu_seconds
from benchmarks.rivals import (
    Array,
    RivalCode,
    embedding,
    fermat,
    fountain,
    local_product,
    mds,
    polar,
    raptor,
    sample_arrival_orders,
    staircase,
)
from polarmap.codes import PolarCode
from polarmap.codes.polar_construction import round_up_to_power_of_two
from polarmap.planning import ArrivalsNeeded

N_NOISE_COLUMNS = 128  # Columns of unit noise for estimating amplifications.
# Bytes of a block at most; blocks are smaller if all together would be too large.
MAX_BLOCK_BYTES = 1_000_000
MIN_LEVELS = 8  # Smaller codes are measured with all levels only.
MAX_EMBEDDED_N = 64  # Blocks: larger codes keep hardly a digit at the k-th arrival.
MAX_ERROR = 1e-4  # The largest error of decoded data of unit size that counts as correct.
MAX_RAPTOR_N = 1024  # Blocks: at 10,000, one seed in twenty is systematic, and decodes to one digit.
WARM_UP_SIZE = (130, 98)  # Code whose use compiles the loops of the other sizes.


class Size(NamedTuple):
    """A code size and how thoroughly it is measured.

    Attributes
    ----------
    n_orders : int
        Random arrival orders for decoders that are quick to simulate.
    n_slow_orders : int
        Random arrival orders for decoders that solve a dense system for each.
    n_patterns : int
        Arrival patterns whose error amplification is estimated.
    """

    n: int
    k: int
    n_orders: int
    n_slow_orders: int
    n_patterns: int


class CodeMeasurement(NamedTuple):
    """The measurements of one code at one size.

    Seconds are processor time of all threads, which is what a map would wait for on one core.

    Attributes
    ----------
    n : int
        Coded blocks; a local product code chooses its own number.
    mean_extra_arrivals : float
        Mean number of arrivals beyond k, over the orders that decode.
    encode_operations, decode_operations : float
        Operations per number of a block; decoding at the last arrival needed.
    encode_seconds, decode_seconds : float
        Seconds per byte of the data.
    plan_seconds : float
        Seconds per arrival pattern, independent of the block size.
    amplification : tuple[float, float] | None
        log10 of the median and the largest error amplification; None for exact integers.
    """

    name: str
    n: int
    arrivals_needed: ArrivalsNeeded
    mean_extra_arrivals: float
    encode_operations: float
    encode_seconds: float
    decode_operations: float
    plan_seconds: float
    decode_seconds: float
    amplification: tuple[float, float] | None


def list_contestants(size: Size, n_tuning_trials: int) -> Iterator[tuple[Callable[[], RivalCode], int, bool]]:
    """Yield (make_code, number of orders, whether blocks are integers), polarmap's codes last."""
    n, k, n_orders, n_slow_orders, _ = size
    yield partial(mds.GaussianMDSCode, n, k), n_orders, False
    if n <= MAX_EMBEDDED_N:
        yield partial(embedding.EmbeddingCode, n, k), n_orders, False
    yield partial(fermat.FermatCode, n, k), n_orders, True
    yield (
        partial(local_product.LocalProductCode, *local_product.tune_local_product(n, k, n_tuning_trials)),
        n_orders,
        False,
    )
    yield partial(fountain.LTCode, *fountain.tune_lt(n, k, n_tuning_trials)), n_orders, False
    yield (
        partial(fountain.LTCode, *fountain.tune_lt(n, k, n_tuning_trials, uses_inactivation=True)),
        n_slow_orders,
        False,
    )
    if n <= MAX_RAPTOR_N:
        yield partial(raptor.RaptorCode, *raptor.tune_raptor(n, k)), n_slow_orders, False
    yield partial(staircase.StaircaseCode, *staircase.tune_staircase(n, k, n_tuning_trials)), n_orders, False
    yield (
        partial(
            staircase.StaircaseCode, *staircase.tune_staircase(n, k, n_tuning_trials, uses_inactivation=True)
        ),
        n_slow_orders,
        False,
    )
    yield lambda: polar.PolarRival(PolarCode(n, k, "arikan", "sequential")), n_orders, False
    yield lambda: polar.PolarRival(PolarCode(n, k, "arikan")), n_slow_orders, False
    yield lambda: polar.PolarRival(PolarCode(n, k, "arikan"), is_integer=True), n_slow_orders, True
    yield lambda: polar.PolarRival(PolarCode(n, k)), n_slow_orders, False


def measure_codes(size: Size, n_tuning_trials: int, megabytes: int) -> Iterator[CodeMeasurement]:
    for make_code, n_orders, is_integer in list_contestants(size, n_tuning_trials):
        yield measure_code(make_code, size, n_orders, is_integer, megabytes)


def compile_loops() -> None:
    """Use every code once, so that none has to compile its loops while it is measured."""
    for make_code, _, is_integer in list_contestants(Size(*WARM_UP_SIZE, 1, 1, 1), 2):
        code = make_code()
        [arrival_order] = sample_arrival_orders(code.n, 1)
        code.make_plan(arrival_order[: code.count_arrivals(arrival_order[None])[0]]).decode(
            code.encode(make_data(code, 2, is_integer))
        )


def measure_code(
    make_code: Callable[[], RivalCode], size: Size, n_orders: int, is_integer: bool, megabytes: float
) -> CodeMeasurement:
    code = make_code()
    orders = sample_arrival_orders(code.n, n_orders)
    n_arrivals = code.count_arrivals(orders)
    decodable_mask = n_arrivals <= code.n
    first_decodable = int(np.flatnonzero(decodable_mask)[0])
    arrived_indices = orders[first_decodable][: n_arrivals[first_decodable]]
    width = int(min(MAX_BLOCK_BYTES, megabytes * 1_000_000 / code.k)) // 16 * 2
    data = make_data(code, width, is_integer)
    encode_seconds, coded_blocks = measure_cpu_seconds(lambda: code.encode(data), min)
    plan_seconds, plan = measure_cpu_seconds(lambda: code.make_plan(arrived_indices), median)
    decode_seconds, decoded = measure_cpu_seconds(lambda: plan.decode(coded_blocks), min)
    patterns = [
        orders[i][: n_arrivals[i]]
        for i in np.flatnonzero(decodable_mask)[: size.n_patterns if n_orders > 1 else 1]
    ]
    rng = np.random.default_rng(0)
    amplifications = (
        [] if is_integer else [estimate_amplification(code, pattern, rng) for pattern in patterns]
    )
    error = float(np.abs(decoded - data).max())
    assert error <= (0 if is_integer else MAX_ERROR), f"{code.name} decodes wrongly: error {error:.1e}"
    return CodeMeasurement(
        code.name,
        code.n,
        summarize_arrivals(n_arrivals, code.n),
        float((n_arrivals[decodable_mask] - code.k).mean()),
        code.encode_operations,
        encode_seconds / data.nbytes,
        plan.operations,
        plan_seconds,
        decode_seconds / data.nbytes,
        median_and_max(amplifications) if amplifications else None,
    )


def make_data(code: RivalCode, width: int, is_integer: bool) -> Array:
    rng, shape = np.random.default_rng(0), (code.k, max(2, width))
    return rng.integers(0, fermat.PRIME, shape) if is_integer else rng.standard_normal(shape)


def summarize_arrivals(arrivals: Array, n: int) -> ArrivalsNeeded:
    """Return the distribution of simulated arrivals; orders that never decode have no weight."""
    arrival_counts, occurrences = np.unique(arrivals, return_counts=True)
    decodable_mask = arrival_counts <= n
    return ArrivalsNeeded(
        arrival_counts[decodable_mask].astype(float),
        occurrences[decodable_mask] / len(arrivals),
        len(arrivals),
    )


def estimate_amplification(code: RivalCode, arrived_indices: Array, rng: np.random.Generator) -> float:
    """Return log10 of the largest error of a data block per unit of relative error of the received blocks."""
    noise = rng.standard_normal((code.n, N_NOISE_COLUMNS)) * code.norms[:, None]
    errors = code.make_plan(arrived_indices).decode(noise)
    return float(np.log10(np.sqrt((errors**2).mean(axis=1)).max()))


def median_and_max(values: list[float]) -> tuple[float, float]:
    return float(np.median(values)), float(max(values))


def measure_partly_polarized(size: Size) -> Iterator[CodeMeasurement]:
    """Yield polar codes with two levels fewer than all, and with half of the levels.

    Their seconds are not meaningful. Small codes are left out, since their few butterflies hardly differ from
    a parity check.
    """
    max_levels = round_up_to_power_of_two(size.n).bit_length() - 1
    for levels in (max_levels - 2, max_levels // 2) if max_levels >= MIN_LEVELS else ():
        for decoder, n_orders in (("sequential", size.n_orders), ("optimal", size.n_slow_orders)):
            code = PolarCode(size.n, size.k, "arikan", decoder, levels=levels)
            yield measure_code(partial(polar.PolarRival, code), size, n_orders, False, 0.1)


def measure_polynomial_codes(size: Size, n_patterns: int) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the error amplification of polynomial MDS codes at k arrivals: log10 of median and maximum."""
    orders = sample_arrival_orders(size.n, n_patterns)[:, : size.k]
    for name, points in mds.EVALUATION_POINTS.items():
        yield (
            name,
            median_and_max([mds.compute_log10_amplification(points(size.n), order) for order in orders]),
        )
    if size.n > MAX_EMBEDDED_N:
        embedding_code, rng = embedding.EmbeddingCode(size.n, size.k), np.random.default_rng(0)
        yield (
            embedding_code.name,
            median_and_max([estimate_amplification(embedding_code, order, rng) for order in orders]),
        )
