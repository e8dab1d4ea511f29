"""The names that coded arrays may have, and the keys of their objects in a store."""

from __future__ import annotations

import re

from polarmap.errors import StorageError

PARTS = "polarmap/coded/"  # prefix of all parts of coded arrays
MANIFESTS = "polarmap/manifests/"  # apart from the parts, so that listing arrays lists few objects

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


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


def manifest_key(name: str) -> str:
    """Where the manifest of a coded array lies."""
    return f"{MANIFESTS}{check_name(name)}.json"


def array_prefix(name: str) -> str:
    """The prefix of everything else that a coded array owns."""
    return f"{PARTS}{check_name(name)}/"
