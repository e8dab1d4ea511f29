"""Tests of stripes: rows that do not fit into memory are also cut."""

from __future__ import annotations

import numpy as np
import pytest
from array_data import MIB, random_array

import polarmap

pytestmark = pytest.mark.every_store


def test_rows_longer_than_memory_are_also_cut(store):
    A = random_array((6, 40_000), "f4")  # 1 MiB holds a third of a stripe of eight such rows.
    coded = polarmap.encode(A, blocks=6, tasks=8, name="a", storage=store, memory=MIB)
    assert len(coded.block_segments(0)) > 1
    np.testing.assert_array_equal(coded[:], A)
    np.testing.assert_array_equal(coded[2:4, 7:30_000:3], A[2:4, 7:30_000:3])
