"""The verbs that open a coded array by name and list those there are."""

from __future__ import annotations

from typing import Any

from polarmap.arrays import manifest
from polarmap.arrays.array import CodedArray
from polarmap.arrays.keys import check_name
from polarmap.arrays.stores import open_store


def open_coded(name: str, storage: Any = None) -> CodedArray:
    """The coded array of that name.

    Parameters
    ----------
    name : str
    storage : optional
        Where it lies, as for `encode`.

    Raises
    ------
    MissingObjectError
        If there is none; says which there are.
    StorageError
        If its manifest is damaged or of another version, or the storage cannot be used.
    """
    store = open_store(storage)
    return CodedArray(store, manifest.load(store, check_name(name)))


def list_coded(storage: Any = None) -> list[str]:
    """The names of the coded arrays in a storage, sorted.

    Parameters
    ----------
    storage : optional
        As for `encode`.
    """
    return manifest.names(open_store(storage))
