"""Tests of check(), which finds damaged objects of an array by their metadata and by reading them."""

from __future__ import annotations

import numpy as np
import pytest
from array_data import put_rows, random_array
from counting_store import Least

import polarmap
from polarmap.testing import ReplayExecutor


@pytest.mark.parametrize("is_listed", [True, False])
def test_sizes_of_objects_outside_the_array_are_requested(store, is_listed):
    A = random_array((24, 10))
    coded = polarmap.encode(put_rows(store, A), blocks=4, tasks=6, name="a", storage=store)
    store.delete(["mine/5", coded.block_segments(5)[0].key])
    store.put("mine/13", A[12].tobytes())
    reopened = coded if is_listed else polarmap.open_coded("a", Least(store))
    audit = reopened.check(executor=ReplayExecutor())
    assert {(reopened.key, reopened.kind) for reopened in audit.damaged} >= {
        ("mine/5", "missing"),
        ("mine/13", "corrupt"),
    }
    assert audit == coded.check()
    np.testing.assert_allclose(coded[:], A, rtol=1e-10, atol=1e-10)
    coded.repair(executor=ReplayExecutor())
    assert coded.check().ok
    np.testing.assert_allclose(coded[:], A, rtol=1e-10, atol=1e-10)
