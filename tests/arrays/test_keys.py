"""Names that coded arrays may have."""

from __future__ import annotations

import numpy as np
import pytest

import polarmap
from polarmap.arrays.keys import array_prefix, check_name
from polarmap.errors import StorageError

pytestmark = pytest.mark.every_store


@pytest.mark.parametrize(
    "name", ["", "\0", "a\0", "..", "a/b", "../a", "a b", "-a", ".a", "a\n", "a" * 129, 7, None, "a..b"]
)
def test_bad_names_are_refused(store, name):
    for use in (lambda: polarmap.encode(np.arange(8.0), name=name, storage=store),
                lambda: polarmap.open_coded(name, store)):  # fmt: skip
        with pytest.raises(StorageError, match="cannot name a coded array"):
            use()
    assert store.keys("polarmap/") == []


def test_folder_of_an_array_is_below_its_name():
    assert array_prefix("a") == "polarmap/coded/a/"


def test_names_that_may_be():
    for name in ("a", "A.b-c_9", "9", "x" * 128):
        assert check_name(name) == name
