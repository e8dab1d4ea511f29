"""Tests of linear algebra modulo 2^64 and over GF(2). The oracles are Python integers and definitions."""

from __future__ import annotations

import code_oracles as oracles
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap.codes import modular_linalg

seeds = st.integers(0, 10_000)


def unimodular(stream: np.random.Generator, size: int) -> np.ndarray:
    """Return a random integer matrix that is invertible modulo 2."""
    lower = np.tril(stream.integers(-9, 10, (size, size)), -1) + np.eye(size, dtype=int)
    upper = np.triu(stream.integers(-9, 10, (size, size)), 1) + np.eye(size, dtype=int)
    return (lower @ upper)[stream.permutation(size)]


@settings(max_examples=50)
@given(seeds, st.integers(1, 30), st.integers(1, 30), st.integers(0, 5))
def test_matmul_matches_python_integers(seed: int, rows: int, columns: int, width: int) -> None:
    stream = np.random.default_rng(seed)
    bits = int(stream.integers(1, 63))
    left = stream.integers(-(2**bits), 2**bits, (rows, columns))
    right = stream.integers(-(2**63), 2**63 - 1, (columns, width), endpoint=True)
    exact = left.astype(object) @ right.astype(object)
    product = modular_linalg.matmul_mod64(left, right)
    assert product.dtype == np.uint64
    assert product.tolist() == [[value % 2**64 for value in row] for row in exact]


def test_matmul_of_extreme_values() -> None:
    corners = np.array([-(2**63), 2**63 - 1, -1, 0, 1, 2**15, -(2**15), 2**47 + 2**31 + 2**15])
    product = modular_linalg.matmul_mod64(corners[:, None], corners[None, :])
    assert product.tolist() == [[int(a) * int(b) % 2**64 for b in corners] for a in corners]


@settings(max_examples=50)
@given(seeds, st.integers(1, 25))
def test_inverse_undoes_its_matrix_modulo_every_power_of_two(seed: int, size: int) -> None:
    matrix = unimodular(np.random.default_rng(seed), size)
    identity = np.eye(size, dtype=np.uint64)
    assert (modular_linalg.matmul_mod64(modular_linalg.invert_mod64(matrix), matrix) == identity).all()


@settings(max_examples=100)
@given(seeds, st.integers(1, 12), st.integers(1, 12))
def test_independent_rows_are_a_basis_modulo_two(seed: int, rows: int, columns: int) -> None:
    matrix = np.random.default_rng(seed).integers(-3, 4, (rows, columns))
    chosen = modular_linalg.find_independent_rows_gf2(matrix)
    assert chosen == sorted(chosen)
    everyone = np.zeros(len(chosen), bool)
    assert not chosen or oracles.gf2_decodable(matrix[chosen].T, everyone)
    for row in set(range(rows)) - set(chosen):
        before = [index for index in chosen if index < row]
        dependent = matrix[[*before, row]].T
        assert not oracles.gf2_decodable(dependent, np.zeros(len(before) + 1, bool))


def test_independent_rows_of_an_empty_matrix() -> None:
    assert modular_linalg.find_independent_rows_gf2(np.zeros((0, 3), int)) == []
    assert modular_linalg.find_independent_rows_gf2(np.zeros((3, 0), int)) == []


@pytest.mark.parametrize("size", [1, 7, 8, 9, 64, 65])
def test_inverse_at_byte_boundaries(size: int) -> None:
    matrix = unimodular(np.random.default_rng(size), size)
    product = modular_linalg.matmul_mod64(matrix, modular_linalg.invert_mod64(matrix))
    assert (product == np.eye(size, dtype=np.uint64)).all()
