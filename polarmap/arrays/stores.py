"""Stores as callers name them and as workers reach them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from polarmap.dtypes import Array
from polarmap.errors import MissingObjectError, StorageError
from polarmap.executors.keys import new_encryption
from polarmap.storage import Store
from polarmap.storage.bucket import ObjectStore
from polarmap.storage.folder import FolderStore
from polarmap.worker.encryption import Encryption, KeyUnavailableError, get_part, put_parts
from polarmap.worker.parts import Part, Place, missing


def open_store(choice: Any) -> Store:
    """The store that `storage=choice` means."""
    if choice is None:
        return FolderStore.default()
    attributes = ("name", "put", "get", "size", "keys", "delete")
    if not isinstance(choice, type) and all(hasattr(choice, name) for name in attributes):
        store: Store = choice
        return store
    is_path = isinstance(choice, (str, os.PathLike))
    if is_path and not os.fsdecode(choice).endswith((".yaml", ".yml")):
        return FolderStore(choice)
    if is_path or (hasattr(choice, "compute_handler") and hasattr(choice, "storage")):
        from polarmap.executors.lithops_jobs import open_storage

        objects = ObjectStore(open_storage(choice))
        objects.executor = choice
        return objects
    raise StorageError(
        f"storage={choice!r} is no storage: pass None, the path of a folder or of a Lithops YAML file, "
        "a lithops.FunctionExecutor, or a store"
    )


def place_of(store: Store) -> Place:
    """What workers need to read an array in a store themselves; of kind "driver" if only this process can."""
    if isinstance(store, FolderStore):
        return Place("folder", str(store.root))
    if isinstance(store, ObjectStore):
        return Place("bucket", store.bucket, store.backend)
    return Place("driver", store.name)


class PartStore:
    """The parts of an array in a store, where they are encrypted if `encryption` says how.

    Attributes
    ----------
    store : Store
    place : Place
        Where workers find them, and how they are encrypted.
    """

    def __init__(self, store: Store, encryption: Encryption | None = None) -> None:
        self.store, self.place = store, place_of(store)._replace(encryption=encryption)

    @property
    def key(self) -> str | bytes | None:
        """What the parts are encrypted with, as it was passed; None if they lie there as they are."""
        return None if self.place.encryption is None else self.place.encryption.key

    @property
    def has_checksums_of_data(self) -> bool:
        """Whether the checksum of a part is that of its numbers: else it is that of what lies encrypted."""
        return self.place.encryption is None

    @classmethod
    def new(cls, store: Store, key: str | bytes | None, largest: int) -> PartStore:
        """Of a new array, encrypted if there is a key; CodeError if a part of `largest` bytes cannot be."""
        if key is None:
            return cls(store)
        return cls(store, new_encryption(key, largest, "with this memory= a part", "use less"))

    def get(self, part: Part) -> bytes:
        """The bytes of a part; DamagedError if they are not what was stored."""
        with self._with_key():
            data: bytes = get_part(self.place, part, self._read)
        return data

    def put(self, key: str, array: Array) -> Part:
        """Store an array, which is not empty, as an object of one part."""
        data = np.ascontiguousarray(array).data.cast("B")
        with self._with_key():
            [part] = put_parts(self.place, key, data, len(data), self.store.put)
        return part

    @contextmanager
    def _with_key(self) -> Iterator[None]:
        """A key that is gone since it was told, or another one by now, as an error of ours."""
        try:
            yield
        except KeyUnavailableError as error:
            raise StorageError(f"what is encrypted in {self.store.name} is out of reach: {error}") from error

    def _read(self, part: Part) -> bytes:
        try:
            return self.store.get(part.key, part.offset, part.offset + part.size)
        except MissingObjectError:
            raise missing(part) from None
