"""Object stores: the protocol `Store`, and the validation of object keys.

`folder` and `bucket` implement the protocol. Coded arrays and blocks for workers are kept in stores, and
users can pass their own store as `storage=`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from polarmap.errors import StorageError

Data = bytes | bytearray | memoryview


class Store(Protocol):
    """The interface of an object store, which stores byte strings ("objects") under string keys.

    Implement it to use a storage that polarmap does not support. All methods must be thread-safe, and writes
    must be atomic: a reader sees either a complete object or none. If the store is unavailable, each method
    must raise StorageError within seconds.

    Workers do not access a user-defined store. The driver (the process that calls polarmap) reads the data
    and sends them to workers. `polarmap/worker/locations.py` has the kinds of storage that workers read
    themselves.

    A store may have three optional methods. `remove_stale_files()` removes unfinished files of processes that
    have died. `concatenate(source_keys, target_key)` concatenates objects into a new one without reading them
    into this process, and returns False if that is impossible. `list_sizes(prefix)` returns a dict from key
    to size in bytes for all objects whose key begins with the prefix, using few requests.
    """

    @property
    def name(self) -> str:
        """The name of the store in error messages and reports. It must not contain secrets."""

    def put(self, key: str, data: Data) -> None:
        """Store `data` under `key`, replacing any existing object."""

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return an object's bytes from `start` to `stop` (exclusive), or to the end if `stop` is None.

        Raises MissingObjectError if the object does not exist.
        """

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes, or None if it does not exist."""

    def keys(self, prefix: str) -> list[str]:
        """Return the sorted keys of all objects whose key begins with `prefix`."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects with the given keys, ignoring keys that do not exist."""


def check_object_key(object_key: object) -> str:
    """Return `object_key` if it is valid; raise StorageError otherwise.

    A valid key has at most 1,000 printable characters and no backslashes. It consists of nonempty parts
    separated by slashes, none of which is '.' or '..'.
    """
    if not _has_only_valid_keys([object_key]):
        raise StorageError(f"{object_key!r} is not a valid object key")
    return str(object_key)


def check_object_keys(object_keys: Sequence[object]) -> None:
    """Raise StorageError if one of the object keys is invalid. See `check_object_key` for the rules."""
    if not _has_only_valid_keys(object_keys):
        for object_key in object_keys:
            check_object_key(object_key)


def _has_only_valid_keys(object_keys: Sequence[object]) -> bool:
    """Return whether all keys are valid object keys (see `check_object_key`)."""
    keys = [key for key in object_keys if isinstance(key, str) and len(key) <= 1000]
    # The parts of all keys are checked at once, because a manifest may have a hundred thousand keys.
    path = f"/{'/'.join(keys)}/"
    has_invalid_part = any(part in path for part in ("//", "/./", "/../", "\\"))
    return len(keys) == len(object_keys) and path.isprintable() and not has_invalid_part
