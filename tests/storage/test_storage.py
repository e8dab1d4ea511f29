"""Keys that stay inside a store."""

from __future__ import annotations

import pytest

from polarmap.errors import StorageError
from polarmap.storage import check_key


@pytest.mark.parametrize("key", ["a", "a/b.json", "0/é", "a" * 1000])
def test_keys_that_may_be(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", ".", "../a", "./a", "a/../b", "a\\b", "a\0", "a\n", "a" * 1001, 3, None]
)
def test_keys_that_may_not(key: object) -> None:
    with pytest.raises(StorageError, match="is no key of an object"):
        check_key(key)
