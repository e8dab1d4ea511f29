"""What a store must do, and which names and keys may go into one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from polarmap.errors import StorageError

PREFIX = "polarmap/coded/"  # of the parts of coded arrays
MANIFESTS = "polarmap/manifests/"  # apart from the parts, so that listing arrays lists few objects

Data = bytes | bytearray | memoryview

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Store(Protocol):
    """A place for objects. Every method raises StorageError, within seconds, when it cannot be used.

    An object appears whole or not at all, and several threads may use a store at once.
    """

    @property
    def name(self) -> str:
        """For messages; never a secret."""

    def put(self, key: str, data: Data) -> None:
        """Store an object in place of any that has this key."""

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes start..stop of an object, as a slice gives them.

        Raises
        ------
        MissingObjectError
            If there is no such object.
        """

    def size(self, key: str) -> int | None:
        """Bytes of an object; None if there is none."""

    def keys(self, prefix: str) -> list[str]:
        """The keys that begin with `prefix`, sorted."""

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are no error."""


def check_name(name: object) -> str:
    """`name` if a coded array may be called that.

    >>> check_name("../secrets")
    Traceback (most recent call last):
    polarmap.errors.StorageError: '../secrets' cannot name a coded array: use 1 to 128 letters, \
digits, '.', '_' or '-', a letter or digit first
    """
    if isinstance(name, str) and _NAME.fullmatch(name) and ".." not in name:
        return name
    raise StorageError(
        f"{name!r} cannot name a coded array: use 1 to 128 letters, digits, '.', '_' or '-', "
        "a letter or digit first"
    )


def check_key(key: object) -> str:
    """`key` if it stays inside a store: parts between slashes, none of them empty, '.' or '..'."""
    is_plain = isinstance(key, str) and len(key) <= 1000 and key.isprintable() and "\\" not in key
    if is_plain and not {"", ".", ".."} & set(str(key).split("/")):
        return str(key)
    raise StorageError(f"{key!r} is no key of an object")


def manifest_key(name: str) -> str:
    """Where the manifest of a coded array lies."""
    return f"{MANIFESTS}{check_name(name)}.json"


def folder_of(name: str) -> str:
    """The prefix of everything else that a coded array owns."""
    return f"{PREFIX}{check_name(name)}/"
