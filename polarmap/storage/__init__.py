"""Object stores: the protocol `Store`, and the validation of object keys.

`folder` and `bucket` implement the protocol. Coded arrays and blocks for workers are kept in a store, and
users can pass a store of their own as `storage=`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from polarmap.errors import StorageError

Data = bytes | bytearray | memoryview
# Matches keys whose parts begin with a letter, a digit or an underscore.
_ORDINARY_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.=-]*)*")


class Store(Protocol):
    """A store of objects by key. Every method raises StorageError, within seconds, if the store is unusable.

    A reader sees an object completely or not at all. Methods may be called from several threads. A store may
    have three further methods. `remove_stale_files()` removes the unfinished files of processes that have
    died. `concatenate(source_keys, target_key)` stores several objects as one without reading them into
    this process, and returns False if that is impossible. `list_sizes(prefix)` returns the sizes in
    bytes of all objects whose keys begin with the prefix, by key, with one request for many of them.
    """

    @property
    def name(self) -> str:
        """The name of the store in messages; it must not contain a secret."""

    def put(self, key: str, data: Data) -> None:
        """Store an object, replacing any object with this key."""

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return `object[start:stop]`; raise MissingObjectError if the object does not exist."""

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes, or None if it does not exist."""

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with `prefix`, sorted."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; ignore keys that do not exist."""


def check_object_key(object_key: object) -> str:
    """Return `object_key` if it is valid; raise StorageError otherwise.

    A valid key has at most 1,000 printable characters and no backslash. It consists of nonempty parts between
    slashes, and no part is '.' or '..'.
    """
    if isinstance(object_key, str) and len(object_key) <= 1000 and _ORDINARY_KEY.fullmatch(object_key):
        return object_key  # This test is fast, and a manifest may have a hundred thousand keys.
    is_plain = (
        isinstance(object_key, str)
        and len(object_key) <= 1000
        and object_key.isprintable()
        and "\\" not in object_key
    )
    if is_plain and not {"", ".", ".."} & set(str(object_key).split("/")):
        return str(object_key)
    raise StorageError(f"{object_key!r} is not a valid object key")
