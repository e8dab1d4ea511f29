"""Bytes by key, in a folder and in a bucket: what a store must do, and which keys objects may have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from polarmap.errors import StorageError

Data = bytes | bytearray | memoryview


class Store(Protocol):
    """A place for objects. Every method raises StorageError, within seconds, when it cannot be used.

    An object appears whole or not at all, and several threads may use a store at once. A store may have
    three further methods. `remove_stale_files()` removes the unfinished files of processes that have
    died. `concatenate(source_keys, target_key)` stores several objects as one without reading them into
    this process, and returns False where that is impossible. `list_sizes(prefix)` returns the sizes in
    bytes of all objects whose keys begin with the prefix, by key, with one request for many of them.
    """

    @property
    def name(self) -> str:
        """For messages; never a secret."""

    def put(self, key: str, data: Data) -> None:
        """Store an object in place of any that has this key."""

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes start..stop of an object, as a slice gives them; MissingObjectError if there is none."""

    def size(self, key: str) -> int | None:
        """Bytes of an object; None if there is none."""

    def keys(self, prefix: str) -> list[str]:
        """The keys that begin with `prefix`, sorted."""

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are no error."""


def check_object_key(object_key: object) -> str:
    """`object_key` if it stays inside a store: parts between slashes, none of them empty, '.' or '..'."""
    is_plain = (
        isinstance(object_key, str)
        and len(object_key) <= 1000
        and object_key.isprintable()
        and "\\" not in object_key
    )
    if is_plain and not {"", ".", ".."} & set(str(object_key).split("/")):
        return str(object_key)
    raise StorageError(f"{object_key!r} is no key of an object")
