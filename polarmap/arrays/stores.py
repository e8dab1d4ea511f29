"""Resolve `storage=`, and read and write segments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from polarmap.dtypes import Array
from polarmap.errors import MissingObjectError, StorageError
from polarmap.executors.encryption_keys import make_encryption
from polarmap.executors.store_reader import OpenStoreLocation
from polarmap.storage import Store
from polarmap.storage.bucket import ObjectStore
from polarmap.storage.folder import FolderStore
from polarmap.worker.encryption import Encryption, KeyUnavailableError, read_segment, write_segments
from polarmap.worker.locations import Location
from polarmap.worker.segments import Segment, make_missing_segment_error


def open_store(storage_spec: Any) -> Store:
    """Return the store for what a user passed as `storage=`; StorageError if it is none."""
    if storage_spec is None:
        return FolderStore.default()
    attributes = ("name", "put", "get", "size", "keys", "delete")
    if not isinstance(storage_spec, type) and all(hasattr(storage_spec, name) for name in attributes):
        store: Store = storage_spec
        return store
    is_path = isinstance(storage_spec, (str, os.PathLike))
    if is_path and not os.fsdecode(storage_spec).endswith((".yaml", ".yml")):
        return FolderStore(storage_spec)
    if is_path or (hasattr(storage_spec, "compute_handler") and hasattr(storage_spec, "storage")):
        from polarmap.executors.lithops_invocations import open_lithops_storage

        object_store = ObjectStore(open_lithops_storage(storage_spec))
        object_store.executor = storage_spec
        return object_store
    raise StorageError(
        f"storage={storage_spec!r} is no storage: pass None, the path of a folder or of a Lithops YAML file, "
        "a lithops.FunctionExecutor, or a store"
    )


def get_store_location(store: Store) -> Location:
    """Return where workers find what is in a store."""
    return store.location if isinstance(store, (FolderStore, ObjectStore)) else OpenStoreLocation(store)


class SegmentStore:
    """The segments of an array in a store, encrypted if `encryption` is given.

    Attributes
    ----------
    store : Store
    location : Location
        Where workers find the segments, and how these are encrypted.
    """

    def __init__(self, store: Store, encryption: Encryption | None = None) -> None:
        self.store, self.location = store, get_store_location(store).with_encryption(encryption)

    @property
    def encryption_key(self) -> str | bytes | None:
        """The user's key for the segments; None if they are not encrypted."""
        return None if self.location.encryption is None else self.location.encryption.key

    @property
    def has_plaintext_checksums(self) -> bool:
        """Whether checksums are of the numbers of a segment, and not of its encrypted bytes."""
        return self.location.encryption is None

    @classmethod
    def create(cls, store: Store, key: str | bytes | None, max_segment_bytes: int) -> SegmentStore:
        """Return a store for a new array, encrypted if there is a key.

        Raises CodeError if a segment of `max_segment_bytes` bytes is too long to encrypt.
        """
        if key is None:
            return cls(store)
        return cls(store, make_encryption(key, max_segment_bytes, "with this memory= a part", "use less"))

    def get(self, segment: Segment) -> bytes:
        """Return the bytes of a segment; DamagedError if they are not what was stored."""
        with self._convert_key_errors_to_storage_errors():
            data: bytes = read_segment(self.location, segment, self._read_raw_segment)
        return data

    def put(self, object_key: str, array: Array) -> Segment:
        """Store a nonempty array as an object of one segment."""
        data = np.ascontiguousarray(array).data.cast("B")
        with self._convert_key_errors_to_storage_errors():
            [segment] = write_segments(self.location, object_key, data, len(data), self.store.put)
        return segment

    @contextmanager
    def _convert_key_errors_to_storage_errors(self) -> Iterator[None]:
        """Raise StorageError if the key cannot be read any more, or has changed."""
        try:
            yield
        except KeyUnavailableError as error:
            raise StorageError(f"what is encrypted in {self.store.name} is out of reach: {error}") from error

    def _read_raw_segment(self, segment: Segment) -> bytes:
        try:
            return self.store.get(segment.key, segment.offset, segment.offset + segment.size)
        except MissingObjectError:
            raise make_missing_segment_error(segment) from None
