"""Open the storage that a user has passed as `storage=`, and read and write pieces of coded arrays in it.

A `SegmentStore` verifies checksums when it reads, and encrypts what it writes if the array has a key.
"""

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
    """Return the store that the argument `storage=` of `encode` and `open_coded` specifies.

    Raises StorageError if the argument is invalid.
    """
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
        f"storage must be None, the path of a folder or of a Lithops YAML file, a lithops.FunctionExecutor, "
        f"or a store, not {storage_spec!r}"
    )


def get_store_location(store: Store) -> Location:
    """Return the `Location` through which workers access the same store.

    Workers can open only polarmap's own store classes. The driver reads objects of any other class on behalf
    of the workers. This includes user-defined wrappers of a polarmap store, because their methods may do
    additional work.
    """
    return store.location if isinstance(store, (FolderStore, ObjectStore)) else OpenStoreLocation(store)


class SegmentStore:
    """Reads and writes the segments of a coded array in a store, encrypted if the array has a key.

    A segment holds the bytes of one stripe of one block.

    Attributes
    ----------
    store : Store
        The store that holds the segments.
    location : Location
        What workers need to access the segments: the location of the store, and the encryption.
    """

    def __init__(self, store: Store, encryption: Encryption | None = None) -> None:
        self.store, self.location = store, get_store_location(store).with_encryption(encryption)

    @property
    def encryption_key(self) -> str | bytes | None:
        """The encryption key, as the user passed it, or None if the array is not encrypted."""
        return None if self.location.encryption is None else self.location.encryption.key

    @property
    def has_plaintext_checksums(self) -> bool:
        """Whether the checksums of the segments are those of the unencrypted bytes.

        This is the case if the array is not encrypted. Otherwise, they are those of the encrypted bytes.
        """
        return self.location.encryption is None

    @classmethod
    def create(cls, store: Store, key: str | bytes | None, max_segment_bytes: int) -> SegmentStore:
        """Create a SegmentStore for a new array. If `key` is not None, the array will be encrypted.

        Raises CodeError if segments of `max_segment_bytes` bytes are too long to be encrypted.
        """
        if key is None:
            return cls(store)
        return cls(
            store,
            make_encryption(key, max_segment_bytes, "a part with this memory=", "pass a smaller memory="),
        )

    def get(self, segment: Segment) -> bytes:
        """Read a segment (a byte range of an object). Raises DamagedError if it is missing or damaged."""
        with self._convert_key_errors_to_storage_errors():
            data: bytes = read_segment(self.location, segment, self._read_raw_segment)
        return data

    def put(self, object_key: str, array: Array) -> Segment:
        """Store an array as a new object, and return the segment that says where its bytes are.

        The array must not be empty.
        """
        data = np.ascontiguousarray(array).data.cast("B")
        with self._convert_key_errors_to_storage_errors():
            [segment] = write_segments(self.location, object_key, data, len(data), self.store.put)
        return segment

    @contextmanager
    def _convert_key_errors_to_storage_errors(self) -> Iterator[None]:
        """Convert errors about the encryption key that occur in a `with` block to StorageError."""
        try:
            yield
        except KeyUnavailableError as error:
            raise StorageError(
                f"the encrypted array in {self.store.name} cannot be accessed: {error}"
            ) from error

    def _read_raw_segment(self, segment: Segment) -> bytes:
        try:
            return self.store.get(segment.key, segment.offset, segment.offset + segment.size)
        except MissingObjectError:
            raise make_missing_segment_error(segment) from None
