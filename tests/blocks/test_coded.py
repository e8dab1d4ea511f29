"""Tests of properties that most coded blocks share, and of the strength of the noise in masked blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polarmap.blocks.coded import SecretSharingBlocks
from polarmap.blocks.equal import cut_array_into_blocks
from polarmap.codes import IntegerSecretSharingCode, SecretSharingCode
from polarmap.executors.interface import TaskBlocks


def test_by_default_a_block_has_one_component_in_memory() -> None:
    class Numbers(TaskBlocks):
        def block_leaves(self, task: int) -> list[Any]:
            return [task + 1]

    blocks = Numbers()
    assert blocks.location is None
    assert [blocks.component_leaves(piece) for piece in blocks.block_components(3)] == [[4]]
    blocks.release_memory()
    with pytest.raises(LookupError):
        blocks.block_segments(3)


def encode_for_workers(data: np.ndarray, code: SecretSharingCode | IntegerSecretSharingCode) -> np.ndarray:
    coded = SecretSharingBlocks(cut_array_into_blocks(data, code.k), code)
    return np.stack([coded.block_leaves(index)[0].ravel() for index in range(code.n)])


def test_the_correlation_of_masked_blocks_with_data_is_within_the_bound() -> None:
    code = SecretSharingCode(8, 4, 1, noise=3)
    data = np.random.default_rng(5).standard_normal((4, 200_000))
    seen = encode_for_workers(data, code)
    for worker in range(code.n):
        fitted = np.linalg.lstsq(data.T, seen[worker], rcond=None)[0]
        explained = 1 - np.var(seen[worker] - fitted @ data) / np.var(seen[worker])
        signal = (code.encoding_matrix[worker, :4] ** 2).sum()
        # The tolerance is six standard errors.
        assert explained == pytest.approx(signal / (signal + 3**2), rel=0.2)
        assert -0.5 * np.log2(1 - explained) <= 1.2 * code.leakage()


def test_noise_is_new_for_every_map_and_scales_with_the_data() -> None:
    code = SecretSharingCode(6, 3, 1, noise=50)
    for scale in (1e-6, 1.0, 1e6):
        data = scale * np.random.default_rng(5).standard_normal((3, 5000))
        first, second = encode_for_workers(data, code), encode_for_workers(data, code)
        assert np.std(first) == pytest.approx(50 * scale, rel=0.1)
        assert abs(np.corrcoef(first[0], second[0])[0, 1]) < 0.1
    assert np.std(encode_for_workers(np.zeros((3, 5000)), code)) == pytest.approx(50, rel=0.1)


@pytest.mark.parametrize("dtype", ["u1", "i4", "i8", "u8"])
def test_integers_become_uniform_words_that_are_new_for_every_map(dtype: str) -> None:
    code = IntegerSecretSharingCode(8, 3, 3)
    data = np.ones((3, 40_000), dtype)
    first, second = (encode_for_workers(data, code).view(np.uint8).reshape(8, -1) for _ in range(2))
    for seen in (*first, *second, *(first ^ second), first[0] ^ first[1]):
        counts = np.bincount(seen, minlength=256)
        # The bounds are more than five standard deviations.
        assert 0.8 < counts.min() / counts.mean() <= counts.max() / counts.mean() < 1.2
