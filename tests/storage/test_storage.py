"""Check the behaviour that all stores share, and that keys cannot leave the store."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarmap.errors import MissingObjectError, StorageError
from polarmap.storage import check_object_key, check_object_keys


@pytest.mark.every_store
def test_behaviour_of_every_store(store):
    store.put("polarmap/x/1", b"abcdef")
    store.put("polarmap/x/2", memoryview(np.arange(4, dtype="u1")))
    assert store.get("polarmap/x/1") == b"abcdef"
    assert store.get("polarmap/x/1", 2, 4) == b"cd"
    assert store.get("polarmap/x/1", 4, 99) == b"ef"
    assert store.get("polarmap/x/1", 9, 99) == b""
    assert store.get("polarmap/x/1", 3) == b"def"
    assert (store.size("polarmap/x/2"), store.size("polarmap/x/3")) == (4, None)
    assert store.keys("polarmap/x/") == ["polarmap/x/1", "polarmap/x/2"]
    assert store.keys("polarmap/y/") == []
    for start, stop in [(0, None), (1, 3)]:
        with pytest.raises(MissingObjectError, match="the object 'polarmap/x/3' does not exist"):
            store.get("polarmap/x/3", start, stop)
    store.delete(["polarmap/x/1", "polarmap/x/3"])
    store.delete([])
    assert store.keys("polarmap/x/") == ["polarmap/x/2"]
    for use in (lambda: store.put("../a", b""), lambda: store.get("../a"), lambda: store.delete(["../a"])):
        with pytest.raises(StorageError, match="not a valid object key"):
            use()


@pytest.mark.parametrize("key", ["a", "a/b.json", "0/é", "a" * 1000])
def test_valid_keys(key: str) -> None:
    assert check_object_key(key) == key


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", ".", "../a", "./a", "a/../b", "a\\b", "a\0", "a\n", "a" * 1001, 3, None]
)
def test_invalid_keys(key: object) -> None:
    with pytest.raises(StorageError, match="is not a valid object key"):
        check_object_key(key)
    with pytest.raises(StorageError, match=re.escape(f"{key!r} is not a valid object key")):
        check_object_keys(["a", "0/é", key, "a/b.json"])


@given(st.lists(st.text("a./\\\n", max_size=5)))
def test_keys_are_valid_if_all_their_parts_are(keys: list[str]) -> None:
    parts = [part for key in keys for part in key.split("/")]
    if any(part in ("", ".", "..") or "\\" in part or "\n" in part for part in parts):
        with pytest.raises(StorageError, match="is not a valid object key"):
            check_object_keys(keys)
    else:
        check_object_keys(keys)
