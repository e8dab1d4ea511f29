"""Tests of the choice of the number of blocks and their code, by default and on request."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from blocks.test_sparse import dense, random_sparse

from polarmap import encode
from polarmap.blocks.code_choice import CodeOptions, cut_blocks_and_choose_code, encode_blocks, encode_sparse
from polarmap.blocks.coded import SecretSharingBlocks
from polarmap.codes import PolarCode, SecretSharing
from polarmap.errors import CodeError

MATRIX = np.random.default_rng(0).standard_normal((26, 5))


def test_blocks_default_to_a_number_near_24_that_divides_the_rows() -> None:
    for data, options, k in [
        (MATRIX, CodeOptions(), 26),
        (MATRIX[:7], CodeOptions(), 7),
        (np.ones((2003, 1)), CodeOptions(), 24),
        (np.ones((2000, 1)), CodeOptions(tasks=32), 20),
        (np.ones((2000, 1)), CodeOptions(degree=2), 20),
        (np.ones((60, 2)), CodeOptions(tasks=16, degree=2), 6),
        (np.ones((30, 4)), CodeOptions(tasks=16, code=SecretSharing(2)), 10),
        (np.ones((2000, 1)), CodeOptions(code=PolarCode(9, 6)), 6),
    ]:
        blocks, code = cut_blocks_and_choose_code(data, options)
        assert blocks.k == code.k == k


@pytest.mark.parametrize(
    ("data", "options", "expected"),
    [
        (MATRIX, CodeOptions(6), "PolarCode(8, 6, kernel='rotation', decoder='optimal')"),
        (MATRIX.astype(int), CodeOptions(6), "PolarCode(8, 6, kernel='arikan', decoder='optimal')"),
        (MATRIX, CodeOptions(6, 9, "arikan"), "PolarCode(9, 6, kernel='arikan', decoder='optimal')"),
        (MATRIX, CodeOptions(5, degree=2), "LagrangeCode(12, 5, degree=2, points='circle')"),
        (np.ones((60, 2)), CodeOptions(degree=2), "LagrangeCode(54, 20, degree=2, points='circle')"),
        (MATRIX, CodeOptions(6, code=SecretSharing(2)), "SecretSharingCode(11, 6, 2, noise=100)"),
        (MATRIX, CodeOptions(9, code=SecretSharing(2)), "SecretSharingCode(15, 9, 2, noise=100)"),
        (MATRIX.astype(int), CodeOptions(6, code=SecretSharing()), "IntegerSecretSharingCode(10, 6, 1)"),
    ],
)
def test_the_code_follows_from_the_options(data: np.ndarray, options: CodeOptions, expected: str) -> None:
    assert repr(cut_blocks_and_choose_code(data, options)[1]) == expected


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_any_one_block_may_be_lost_by_default(dtype: type) -> None:
    for k in [*range(1, 65), 200, 768]:
        _, code = cut_blocks_and_choose_code(np.ones((k, 1), dtype), CodeOptions(blocks=k))
        checks = np.asarray(code.parity_check_matrix)[:, :k]
        # Only odd coefficients have an inverse.
        has_unit = checks % 2 != 0 if code.supports_integers else checks != 0
        assert has_unit.any(axis=0).all(), (k, code)


def test_secret_sharing_masks_the_data() -> None:
    assert isinstance(encode_blocks(MATRIX, CodeOptions(6, code=SecretSharing()), None), SecretSharingBlocks)


def test_sizes_of_stored_blocks_are_those_of_their_encoding(tmp_path) -> None:
    stored = encode(MATRIX, blocks=6, tasks=8, name="rows", storage=tmp_path, progress=False)
    for same in (CodeOptions(), CodeOptions(6), CodeOptions(6, 8, "rotation")):
        assert encode_blocks(stored, same, None).code.k == 6
    for wrong in (CodeOptions(5), CodeOptions(tasks=9), CodeOptions(code="arikan"), CodeOptions(degree=2)):
        with pytest.raises(CodeError, match="already encoded, as 6 blocks for 8 tasks"):
            encode_blocks(stored, wrong, None)


def test_a_sparse_matrix_without_nonzeros() -> None:
    coded = encode_sparse(scipy.sparse.csr_array((12, 5)), CodeOptions(blocks=4, tasks=6))
    assert coded.code_reason.startswith("coded: a parity block has up to 0 nonzeros, which")
    assert all(dense(coded, index).any() == 0 for index in range(6))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (CodeOptions(4, 6, code="rotation"), "coded, because code='rotation' needs parity blocks"),
        (CodeOptions(4, 6, code=PolarCode(6, 4)), "coded, because code=PolarCode"),
        (CodeOptions(4), "coded: a parity block"),
    ],
)
def test_an_explicit_code_is_used_for_sparse_data(options: CodeOptions, reason: str) -> None:
    coded = encode_sparse(random_sparse(12, 5, 0.4, "f8"), options)
    assert coded.n == 6 and coded.code_reason.startswith(reason)
