"""Tests of comparing decoded results with f evaluated on the driver, where parity checks show nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from coded_maps import FLOATS, losing

from polarmap import coded_map
from polarmap.codes import SecretSharing
from polarmap.errors import NotLinearError


@pytest.mark.parametrize("verify", ["auto", True])
def test_noise_that_saturates_f_does_not_make_it_linear(verify: Any) -> None:
    # With the noise of secret sharing, f is almost constant and hence affine. Only f of the data shows its
    # kind.
    clip = lambda block: np.clip(block, -1, 1)  # noqa: E731
    options = {"blocks": 8, "tasks": 12, "code": SecretSharing(), "timeout": 100, "verify": verify}
    with pytest.raises(NotLinearError):
        coded_map(clip, FLOATS, executor=losing(), **options)
    result = coded_map(np.negative, FLOATS, executor=losing(2), **options)
    np.testing.assert_allclose(result.concatenate(), -FLOATS, atol=1e-9)


@pytest.mark.parametrize("other", [0, 1])
def test_equal_results_do_not_verify_lost_blocks(other: int) -> None:
    # Equal results satisfy the parity checks whatever f returns for a lost block. The driver evaluates each
    # one.
    data = np.arange(24.0).reshape(12, 2)

    def f(block: np.ndarray) -> np.ndarray:
        return np.where(block[0, 0] == 6 * other, 5.0, 1.0)

    with pytest.raises(NotLinearError, match=f"f of block {other} differs"):
        coded_map(f, data, blocks=4, tasks=7, executor=losing(0, 1))


@pytest.mark.parametrize("lost", [(), (5,)])
def test_a_unique_structure_of_one_block_does_not_count_as_garbage(lost: tuple[int, ...]) -> None:
    data = np.arange(24.0).reshape(12, 2)

    def f(block: np.ndarray) -> Any:
        return (block,) if block[0, 0] == 6 else block

    with pytest.raises(NotLinearError, match="f of block 1 differs"):
        coded_map(f, data, blocks=4, tasks=6, executor=losing(*lost))
