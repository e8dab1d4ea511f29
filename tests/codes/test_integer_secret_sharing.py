"""Tests that the blocks of any t workers of IntegerSecretSharingCode are uniform, and decoding is exact."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap.codes import IntegerSecretSharingCode, error_detection
from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.base import MAX_MODULAR_CHECKS
from polarmap.codes.integer_secret_sharing import (
    compute_max_data_blocks,
    compute_min_tasks,
    count_noise_blocks,
)
from polarmap.codes.modular_linalg import invert_mod64
from polarmap.errors import CodeError


def noise_rows(n: int, t: int) -> np.ndarray:
    """Return the rows of N modulo 2, each packed into an integer of `count_noise_blocks` bits."""
    rows = IntegerSecretSharingCode(n, 1, t).encoding_matrix[:, 1:] % 2
    return rows @ (1 << np.arange(rows.shape[1]))


def compute_sums(rows: np.ndarray, count: int) -> np.ndarray:
    """Return the sum modulo 2 of every set of `count` rows."""
    return np.bitwise_xor.reduce(rows[np.array(list(combinations(range(len(rows)), count)))], axis=1)


def list_sizes(t: int) -> list[int]:
    """Return all n up to 64 that have room for a data block."""
    return [n for n in range(2, 65) if n > 1 + count_noise_blocks(n, t)]


@pytest.mark.parametrize("t", [1, 2, 3])
def test_any_few_rows_of_the_noise_are_independent(t: int) -> None:
    # A coalition has full rank modulo 2 if no set of at most t rows adds up to zero.
    for n in list_sizes(t):
        rows = noise_rows(n, t)
        for count in range(1, t + 1):
            assert compute_sums(rows, count).all()


def test_any_seven_rows_of_the_noise_are_independent() -> None:
    # If at most seven of 64 rows added up to zero, a sum of at most three would equal a sum of at most four.
    rows = noise_rows(64, 7)
    few = np.concatenate([[0], *(compute_sums(rows, count) for count in (1, 2, 3))])
    assert len(np.unique(few)) == len(few) == sum(math.comb(64, count) for count in range(4))
    assert not np.isin(compute_sums(rows, 4), few).any()


def test_the_noise_of_fewer_workers_is_part_of_that_of_more_workers() -> None:
    # Hence a property of any t of 64 rows also holds for any t of fewer rows.
    for n in list_sizes(7):
        if n > 32:
            few, all_of_them = (
                IntegerSecretSharingCode(size, 1, 7).encoding_matrix[:, 1:] for size in (n, 64)
            )
            seen = all_of_them[64 - n :]
            assert (seen[:, seen.any(axis=0)] == few).all()


@pytest.mark.parametrize(("n", "k", "t"), [(8, 3, 3), (6, 2, 1), (8, 6, 1), (7, 2, 3)])
def test_blocks_of_coalitions_are_uniform_for_all_data(n: int, k: int, t: int) -> None:
    # The oracle enumerates all bits of noise and data modulo 2, without using ranks.
    code = IntegerSecretSharingCode(n, k, t)
    noises = np.array(list(product((0, 1), repeat=code.n_noise_blocks))).T
    for data in product((0, 1), repeat=k):
        blocks = np.concatenate([np.repeat(np.array(data)[:, None], noises.shape[1], axis=1), noises])
        mixed = code.encoding_matrix @ blocks % 2
        for coalition in combinations(range(n), t):
            seen = np.unique(mixed[list(coalition)].T, axis=0, return_counts=True)[1]
            assert len(seen) == 2**t and (seen == seen[0]).all()


def test_blocks_of_coalitions_are_uniform_modulo_every_power_of_two() -> None:
    # For any other data, a system modulo 2^64 has a solution for noise that gives the same blocks.
    # Hence all data are equally likely.
    code = IntegerSecretSharingCode(16, 5, 3)
    stream = np.random.default_rng(0)
    for coalition in list(combinations(range(16), 3))[::17]:
        rows = code.encoding_matrix[list(coalition)].astype(np.uint64)
        data, other = stream.integers(0, 2**63, (2, 5), dtype=np.uint64)
        noise = stream.integers(0, 2**63, code.n_noise_blocks, dtype=np.uint64)
        seen = rows @ np.concatenate([data, noise])
        columns = next(
            choice
            for choice in combinations(range(5, rows.shape[1]), 3)
            if round(np.linalg.det(rows[:, list(choice)].astype(float))) % 2
        )
        missing = seen - rows @ np.concatenate([other, noise])
        change = np.zeros(rows.shape[1], np.uint64)
        change[list(columns)] = invert_mod64(rows[:, list(columns)].astype(np.int64)) @ missing
        assert (rows @ (np.concatenate([other, noise]) + change) == seen).all()


@given(
    k=st.integers(1, 30),
    t=st.sampled_from([1, 2, 3, 5]),
    more=st.integers(0, 6),
    width=st.integers(0, 5),
    dtype=st.sampled_from(["i8", "u8"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_results_are_exact_modulo_two_to_the_64(
    k: int, t: int, more: int, width: int, dtype: str, seed: int
) -> None:
    code = IntegerSecretSharingCode(compute_min_tasks(k, t) + more, k, t)
    stream = np.random.default_rng(seed)
    blocks = stream.integers(0, 2**64, (code.recovery_threshold, width), np.uint64).view(dtype)
    mixed = code.encode_parity(blocks)
    assert (mixed == code.encoding_matrix.astype(dtype) @ blocks).all()
    decoder = ArrivalTracker(code, modular=True)
    order = stream.permutation(code.n).tolist()
    arrived = [index for index in order if not decoder.is_ready and (decoder.add(index) or True)]
    assert decoder.is_ready
    rows = {index: mixed[index] for index in arrived}
    recovery = decoder.decoder
    assert (recovery.decode(rows, np.dtype(dtype)) == blocks[:k]).all()
    weights = recovery.weights
    received = np.stack([rows[int(index)] for index in recovery.arrived_indices])
    assert (weights.astype(dtype) @ received == blocks[:k]).all()


@pytest.mark.parametrize("lost", [0, 3])
def test_redundant_checks_hold_and_locate_an_erroneous_worker(lost: int) -> None:
    code = IntegerSecretSharingCode(24, 10, 3)
    blocks = np.random.default_rng(lost).integers(-(2**63), 2**63, (code.recovery_threshold, 4))
    mixed = code.encode_parity(blocks)
    recovery = code.make_decoder(np.arange(24) >= lost, modular=True)
    checks = recovery.check_matrix
    assert len(checks) == min(MAX_MODULAR_CHECKS, recovery.n_redundant_checks)
    assert not (checks.view(np.int64) @ mixed[lost:]).any()
    mixed[7, 2] ^= -(2**63)
    assert (checks.view(np.int64) @ mixed[lost:]).any(axis=0).tolist() == [False, False, True, False]
    rows = {index: mixed[index] for index in range(lost, 24)}
    assert 7 in error_detection.locate_erroneous_blocks(recovery, rows, np.array([2]), np.dtype(int))


def test_few_results_beyond_the_unknowns_determine_all() -> None:
    # An optimal decoder of random bits needs about 1.6 further results. This code needs one or two more.
    stream = np.random.default_rng(0)
    for n, t in [(32, 1), (44, 3), (64, 7)]:
        code = IntegerSecretSharingCode(n, compute_max_data_blocks(n, t), t)
        beyond = []
        for _ in range(40):
            decoder = ArrivalTracker(code, modular=True)
            counts = [decoder.add(int(index)) for index in stream.permutation(n)]
            beyond.append(counts.index(True) + 1 - code.recovery_threshold)
        assert np.mean(beyond) < 5


def test_sizes_leave_a_quarter_spare() -> None:
    for t in (1, 3, 7):
        for k in (1, 5, 24, 100):
            n = compute_min_tasks(k, t)
            assert 4 * (k + count_noise_blocks(n, t)) <= 3 * n
            assert compute_max_data_blocks(n, t) >= k


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (
            (8, 4, 3),
            "n must be more than 8 with 4 data blocks and 4 noise blocks .against 3 colluders., not 8: "
            "use n = ",
        ),
        ((0, 1, 1), "n must be a positive integer"),
        ((8, 1.0, 1), "k must be a positive integer"),
        ((8, 1, True), "n_colluders must be a positive integer"),
        ((5000, 1, 1), "n must be at most 4096 for secret sharing of integers, not 5000"),
    ],
)
def test_invalid_sizes_are_refused(sizes: tuple[int, int, int], words: str) -> None:
    with pytest.raises(CodeError, match=words):
        IntegerSecretSharingCode(*sizes)


def test_floats_are_refused() -> None:
    code = IntegerSecretSharingCode(8, 3, 1)
    with pytest.raises(CodeError, match="cannot be combined with noise modulo"):
        code.parity_dtype(float)
    with pytest.raises(CodeError, match="Let f return integers"):
        code.make_decoder(np.ones(8, bool), modular=False)
    recovery = code.make_decoder(np.ones(8, bool), modular=True)
    with pytest.raises(CodeError, match="Let f return integers"):
        recovery.decode({index: np.ones(1) for index in range(8)}, np.dtype(float))
