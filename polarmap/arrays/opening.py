"""The verbs that open a coded array by name and list those there are."""

from __future__ import annotations

from typing import Any

from polarmap.arrays import manifest
from polarmap.arrays.array import CodedArray
from polarmap.arrays.keys import check_name
from polarmap.arrays.stores import open_store
from polarmap.errors import without_our_frames
from polarmap.executors.encryption_keys import readable_key


def open_coded(name: str, storage: Any = None, *, key: str | bytes | None = None) -> CodedArray:
    """The coded array of that name.

    Parameters
    ----------
    name : str
    storage : optional
        Where it lies, as for `encode`.
    key : optional
        Of an encrypted array, as for `encode`: the key, or where it is found. All that is done with the array
        needs it, and maps of it too, so it is told here only.

    Raises
    ------
    MissingObjectError
        If there is none; says which there are.
    StorageError
        If its manifest is damaged or of another version, or the storage cannot be used. Or: it is
        encrypted and there is no key, or another one; it is not encrypted although a key is given.
    CodeError
        For a key that is none, or is not where it says.
    """
    with without_our_frames:
        store = open_store(storage)
        found, _ = manifest.load_to_read(store, check_name(name), None if key is None else readable_key(key))
        return CodedArray(store, found)


def without_key(name: str, storage: Any = None) -> CodedArray:
    """The coded array of that name, also if it is encrypted, to tell of it without reading its data."""
    store = open_store(storage)
    return CodedArray(store, manifest.load(store, check_name(name))[0])


def list_coded(storage: Any = None) -> list[str]:
    """The names of the coded arrays in a storage, sorted.

    Parameters
    ----------
    storage : optional
        As for `encode`.
    """
    with without_our_frames:
        return manifest.names(open_store(storage))
