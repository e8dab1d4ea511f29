"""A coded array as its callers hold it: its rows read by slicing."""

from __future__ import annotations

import numpy as np
import pytest
from array_data import random_array
from hypothesis import given, settings
from hypothesis import strategies as st

import polarmap
from polarmap.storage.folder import FolderStore

pytestmark = pytest.mark.every_store


@given(
    rows=st.integers(1, 40),
    inner=st.lists(st.integers(0, 5), max_size=2),
    data=st.data(),
)
@settings(max_examples=40)
def test_slices_are_those_of_numpy(tmp_path_factory, rows, inner, data):
    A = random_array((rows, *inner))
    k = data.draw(st.integers(1, rows))
    store = FolderStore(tmp_path_factory.mktemp("store"))
    coded = polarmap.encode(A, blocks=k, workers=k + 2, name="a", storage=store)
    bound = st.none() | st.integers(-rows - 2, rows + 2)
    start, stop = data.draw(bound), data.draw(bound)
    step = data.draw(st.none() | st.integers(1, 4))
    np.testing.assert_array_equal(coded[start:stop:step], A[start:stop:step])
    number = data.draw(st.integers(-rows, rows - 1))
    np.testing.assert_array_equal(coded[number], A[number])
    if inner:
        np.testing.assert_array_equal(coded[start:stop, ..., :2], A[start:stop, ..., :2])
