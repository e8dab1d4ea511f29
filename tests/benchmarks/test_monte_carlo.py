"""The means of the first size on docs/comparison-jobs.md, simulated once more.

Nothing but the parameters of the schemes comes from the benchmarks: equations, generators, multiples.
Run times are drawn here, ranks and peeling are dense algebra on all trials at once.
"""

from __future__ import annotations

import re
from functools import cache
from math import ceil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rivals import fermat, fountain, local_product, mds, raptor, staircase
from benchmarks.rivals.sparse import SparseCode
from polarmap import PolarCode
from polarmap.planning import training_trace

PAGE = Path(__file__).parents[2] / "docs" / "comparison-jobs.md"
N, K = 32, 24
ORDERS, JOBS = 2_000, 20_000
NO_MODULUS = 0


def tables() -> dict[str, dict[str, float]]:
    """Distribution -> scheme -> mean seconds of arrivals, of the first size."""
    text = PAGE.read_text(encoding="utf-8").split("\n## ")[1]
    assert text.startswith(f"{K} blocks, {N} coded")
    found = {}
    for part in text.split("<summary>Arrivals alone: ")[1:]:
        rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
        found[part.split("<")[0]] = {row[0].strip("*"): float(row[1]) for row in rows[1:]}
    return found


def draw(name: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Run times of one of the distributions."""
    if name.startswith("2 %"):
        return (1 + 0.1 * rng.exponential(size=shape)) * np.where(rng.random(shape) < 0.02, 5, 1)
    if name.startswith("shifted"):
        return 1 + rng.exponential(size=shape)
    if name.startswith("heavy"):
        return rng.random(shape) ** (-1 / 2.5)
    return rng.choice(training_trace().quantile((np.arange(1000) + 0.5) / 1000), shape)


# --- how many arrivals a code needs --------------------------------------------------------------


def orders(n: int) -> np.ndarray:
    return np.random.default_rng(7).permuted(np.tile(np.arange(n), (ORDERS, 1)), axis=1)


def until_full_rank(generator: np.ndarray, modulus: int = NO_MODULUS) -> np.ndarray:
    """The arrivals after which the rows that have come have rank k: elimination row by row."""
    rows, trial = generator[orders(len(generator))], np.arange(ORDERS)
    rank, needed = np.zeros(ORDERS, int), np.full(ORDERS, len(generator) + 1)
    for arrived in range(len(generator)):
        row = rows[:, arrived]
        column = np.abs(row).argmax(axis=1)
        pivot = row[trial, column]
        is_new = np.abs(pivot) > 1e-9
        rank += is_new
        needed[is_new & (rank == generator.shape[1])] = arrived + 1
        inverse = inverses(pivot, modulus) if modulus else 1 / np.where(is_new, pivot, 1)
        unit = (np.where(is_new, inverse, 0)[:, None] * row)[:, None]
        if modulus:
            unit %= modulus
        later = rows[:, arrived + 1 :]
        later -= later[trial, :, column][:, :, None] * unit
        if modulus:
            later %= modulus
    return needed


def inverses(values: np.ndarray, modulus: int) -> np.ndarray:
    return np.array([pow(int(value), -1, modulus) if value else 0 for value in values])


def until_peeled(code: SparseCode) -> np.ndarray:
    """The arrivals after which equations with one unknown give all blocks wanted, one after the other."""
    starts, members, _, blocks = code.decoder.graph
    equations = np.zeros((len(starts) - 1, blocks), np.float32)
    equations[np.repeat(np.arange(len(equations)), np.diff(starts)), members] = 1
    order, wanted = code.coded[orders(code.n)], code.decoder.wanted
    known = np.zeros((ORDERS, blocks), bool)
    needed = np.full(ORDERS, code.n + 1)
    for arrived in range(code.n):
        known[np.arange(ORDERS), order[:, arrived]] = True
        while True:
            single = (~known).astype(np.float32) @ equations.T == 1
            more = ~known & (single.astype(np.float32) @ equations > 0)
            if not more.any():
                break
            known |= more
        complete = known[:, :wanted].all(axis=1)
        needed[complete] = np.minimum(needed[complete], arrived + 1)
    return needed


def until_cancelled(code: PolarCode) -> np.ndarray:
    """The arrivals after which successive cancellation is through, or no data block is missing."""
    ranks = orders(N).argsort(axis=1).T + 1
    leaves = np.zeros((code.frozen_mask.size, ORDERS), int)
    leaves[code.order] = ranks
    inputs = virtual(leaves)[~code.frozen_mask.ravel()]
    return np.minimum(inputs.max(axis=0), ranks[:K].max(axis=0))


def virtual(leaves: np.ndarray) -> np.ndarray:
    """When each input of the polar transform is known: a minus needs both of a pair, a plus either."""
    if len(leaves) == 1:
        return leaves
    upper, lower = np.split(leaves, 2)
    return np.concatenate([virtual(np.maximum(upper, lower)), virtual(np.minimum(upper, lower))])


@cache
def needed_by(scheme: str) -> tuple[int, np.ndarray]:
    """The tasks of a code, and the arrivals that random orders of them need."""
    numbers = [float(number) for number in re.findall(r"\d+\.?\d*", scheme)]
    if scheme == "rotation matrix embedding":
        return N, until_full_rank(np.exp(2j * np.pi / 33 * np.outer(np.arange(N), np.arange(K))))
    if scheme == "Fermat transform":
        whole = fermat.Fermat(N, K).encode(np.eye(K, dtype=int))
        return N, until_full_rank(whole, fermat.P)
    if scheme == "polar, sequential":
        return N, until_cancelled(PolarCode(N, K, "arikan", "sequential"))
    if scheme.startswith("polar"):
        generator = PolarCode(N, K, "arikan").encode(np.eye(K, dtype=int))
        is_integer = "integers" in scheme
        return N, until_full_rank(generator % 2 if is_integer else generator * 1.0, 2 * is_integer)
    if scheme == "rotation":
        return N, until_full_rank(PolarCode(N, K).encode(np.eye(K)))
    if scheme == "dense Gaussian":
        return N, until_full_rank(mds.Gaussian(N, K).encode(np.eye(K)))
    if scheme == "Raptor":
        return N, until_full_rank(raptor.Raptor(*raptor.tuned(N, K)).encode(np.eye(K)))
    code: SparseCode
    if scheme.startswith("LT"):
        code = fountain.LT(N, K, *numbers[:2])
    elif scheme.startswith("LDPC"):
        code = staircase.Staircase(N, K, numbers[0] / 100, int(numbers[1]))
    else:
        code = local_product.LocalProduct(K, int(numbers[0]), int(numbers[1]))
    solves = scheme.endswith("inactivation")
    return code.n, until_full_rank(code.encode(np.eye(K))) if solves else until_peeled(code)


# --- when jobs are complete -----------------------------------------------------------------------


def after_arrivals(scheme: str, name: str, rng: np.random.Generator) -> np.ndarray:
    n, needed = needed_by(scheme)
    sorted_times = np.sort(draw(name, rng, (JOBS, n)), axis=1)
    return sorted_times.mean(axis=0)[needed[needed <= n] - 1]


def replicated(copies: int, name: str, rng: np.random.Generator) -> np.ndarray:
    return draw(name, rng, (JOBS, K, copies)).min(axis=2).max(axis=1)


def backed_up(scheme: str, name: str, rng: np.random.Generator) -> np.ndarray:
    first, again = draw(name, rng, (JOBS, K)), draw(name, rng, (JOBS, K))
    ordered = np.sort(first, axis=1)
    if "Spark" in scheme:  # once 90 % are back: 3 x the median of those
        start = np.full(JOBS, np.inf)
        for back in reversed(range(int(0.9 * K), K)):
            moment = np.maximum(ordered[:, back - 1], 3 * np.median(ordered[:, :back], axis=1))
            start = np.where(moment < ordered[:, back], moment, start)
    else:
        slow = re.search(r"([\d.]+) x", scheme)
        start = (float(slow[1]) if slow else 3.0) * ordered[:, ceil(K / 2) - 1]
    return np.minimum(first, start[:, None] + again).max(axis=1)


def on_demand(upfront: int, name: str, rng: np.random.Generator) -> np.ndarray:
    """At every multiple of the age at which a task is late, as many parity tasks as results are missing."""
    some = draw(name, rng, (1_000_000,))
    late = max(np.quantile(some, 11 / 12), 1.1 * np.median(some))
    ends = np.sort(draw(name, rng, (JOBS, K + upfront)), axis=1)
    ends = np.concatenate([ends, np.full((JOBS, N - K - upfront), np.inf)], axis=1)
    started = np.full(JOBS, K + upfront)
    for turn in range(1, N - K + 1):
        missing = K - (ends <= turn * late).sum(axis=1)
        new = (np.arange(N) >= started[:, None]) & (np.arange(N) < (started + missing)[:, None])
        ends[new] = turn * late + draw(name, rng, (int(new.sum()),))
        started += new.sum(axis=1)
    return np.sort(ends, axis=1)[:, K - 1]


def in_small_blocks(pieces: int, name: str, rng: np.random.Generator) -> np.ndarray:
    """Whoever is done first takes the next task, one event after another."""
    each, jobs = draw(name, rng, (JOBS // 4, N)) / pieces + 0.001, np.arange(JOBS // 4)
    ends, queued = each.copy(), N * (pieces - 1)
    for done in range(pieces * K):
        first = ends.argmin(axis=1)
        time = ends[jobs, first]
        ends[jobs, first] = time + each[jobs, first] if done < queued else np.inf
    return time


def simulated(scheme: str, name: str) -> np.ndarray:
    rng, [first, *_] = np.random.default_rng(3), [*map(int, re.findall(r"^\d+", scheme)), 0]
    if scheme == "uncoded":
        return draw(name, rng, (JOBS, K)).max(axis=1)
    if "replication" in scheme:
        return replicated(first, name, rng)
    if "backup" in scheme:
        return backed_up(scheme, name, rng)
    if "on demand" in scheme:
        return on_demand(first, name, rng)
    if "as many blocks" in scheme:
        return in_small_blocks(first, name, rng)
    return after_arrivals(scheme, name, rng)


@pytest.mark.parametrize("name", tables())
def test_the_page_says_what_an_independent_simulation_finds(name: str) -> None:
    found = {scheme: float(simulated(scheme, name).mean()) for scheme in tables()[name]}
    assert len(found) >= 20
    assert found == pytest.approx(tables()[name], rel=0.03)
