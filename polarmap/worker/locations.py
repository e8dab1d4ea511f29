"""Locations of segments: one class for each kind of place, with methods that read, write and delete there.

`location_from_fields` restores a location from the plain data that is sent to workers. Runs on workers too:
imports the standard library only.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, Self

from polarmap.worker.segments import (
    Segment,
    is_missing_object_error,
    make_missing_segment_error,
    make_truncated_segment_error,
    read_file_segment,
    write_file,
)


class StorageAccess(Protocol):
    """Access of a task to stored data.

    Attributes
    ----------
    storage : lithops.Storage or None
        The storage of buckets; None if no storage is used.
    """

    storage: Any

    def fetch_from_driver(self, segment: Segment, private_root: str | None = None) -> Any:
        """Request a segment from the driver and return its stored bytes.

        Parameters
        ----------
        segment : Segment
            The segment.
        private_root : str or None
            A folder on the driver's machine below which the segment is also stored as a file; None if it is
            not.
        """
        ...


class Location(ABC):
    """A place where segments are stored.

    Attributes
    ----------
    root : str
        The path or name of the place.
    backend : str
        The Lithops name of the storage, or the name of the cluster engine; empty for other locations.
    encryption : tuple or None
        The fields of an `Encryption`; None if segments are stored without encryption.
    fields : tuple
        Plain data that represents the location in messages, see `location_from_fields`.
    """

    # Class attributes instead of properties keep the pickled tasks of Lithops small.
    tag = ""  # represents the class in `fields`
    is_inline = False  # blocks are sent with their tasks, and there are no segments
    is_memory_mapped = False  # segments are files, which readers map into memory
    is_local = False  # workers on the driver's machine read without using the network
    is_sent_by_driver = False  # workers request segments from the driver
    is_owned_by_blocks = False  # segments belong to one set of blocks, and never change
    is_writable = False  # workers can store results: `write` and `delete` are implemented
    uses_storage = False  # segments are read and written through a `lithops.Storage`
    needs_checksums = False  # objects may be replaced, and only a checksum reveals that

    __slots__ = ("backend", "encryption", "fields", "root")

    def __init__(self, root: str = "", backend: str = "", encryption: Any = None) -> None:
        self.root, self.backend, self.encryption = root, backend, encryption
        self.fields = self.tag, root, backend, encryption and tuple(encryption)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and self.fields == other.fields

    def __hash__(self) -> int:
        return hash(self.fields)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.root!r}, {self.backend!r})"

    def with_encryption(self, encryption: Any) -> Self:
        """Return the same location with other encryption parameters; None for no encryption."""
        return type(self)(self.root, self.backend, encryption)

    @abstractmethod
    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return the stored bytes of a segment, fewer if its object is shorter.

        Raises DamagedError if the object is missing.
        """

    def write(self, key: str, data: Any, access: StorageAccess) -> None:
        """Store an object atomically."""
        raise NotImplementedError

    def delete(self, keys: Iterable[str], access: StorageAccess) -> None:
        """Delete objects. Missing objects are ignored."""
        raise NotImplementedError

    def get_path(self, key: str) -> str | None:
        """Return the path of the file that stores an object, or None if objects are not files."""
        return None


class InlineLocation(Location):
    """The messages that send tasks to workers. Each contains the bytes of its block."""

    __slots__ = ()
    tag = "message"
    is_inline = is_local = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Raise LookupError, because inline blocks have no segments."""
        raise LookupError(segment)


class FolderLocation(Location):
    """Files below the folder `root`."""

    __slots__ = ()
    tag = "folder"
    is_memory_mapped = is_local = is_writable = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return a range of a file, memory-mapped if it is large."""
        return read_file_segment(self.root, segment)

    def write(self, key: str, data: Any, access: StorageAccess) -> None:
        """Store a file."""
        write_file(self.root, key, data)

    def delete(self, keys: Iterable[str], access: StorageAccess) -> None:
        """Delete files."""
        for key in keys:
            with contextlib.suppress(OSError):
                os.unlink(self.get_path(key))

    def get_path(self, key: str) -> str:
        """Return the path of a file."""
        return os.path.join(self.root, key)


class PrivateFolderLocation(FolderLocation):
    """Files that a driver shares with its workers, in a folder that only this user can open.

    Files are two levels below that folder. Workers on other machines request them from the driver.
    """

    __slots__ = ()
    tag = "private"
    is_owned_by_blocks = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return the bytes of the file, or of the driver if the file does not exist on this machine."""
        return access.fetch_from_driver(segment, self.root)


class BucketLocation(Location):
    """Objects in the bucket `root` of a `lithops.Storage`."""

    __slots__ = ()
    tag = "bucket"
    uses_storage = is_writable = needs_checksums = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return a range of an object."""
        range_args = {"Range": f"bytes={segment.offset}-{segment.offset + segment.size - 1}"}
        try:
            return access.storage.get_object(self.root, segment.key, extra_get_args=range_args)
        except Exception as error:
            if is_missing_object_error(error):
                raise make_missing_segment_error(segment) from None
            if "InvalidRange" in str(error):
                raise make_truncated_segment_error(segment, 0) from None
            raise

    def write(self, key: str, data: Any, access: StorageAccess) -> None:
        """Store an object."""
        access.storage.put_object(self.root, key, bytes(data))

    def delete(self, keys: Iterable[str], access: StorageAccess) -> None:
        """Delete objects."""
        for key in keys:
            access.storage.delete_object(self.root, key)


class DriverLocation(Location):
    """The memory of the driver, which sends segments to workers on request."""

    __slots__ = ()
    tag = "driver"
    is_owned_by_blocks = is_sent_by_driver = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return the bytes that the driver sends."""
        return access.fetch_from_driver(segment)


class StoreLocation(DriverLocation):
    """A store that the user has implemented, named `root`, which only the driver can access."""

    __slots__ = ()
    tag = "store"
    is_owned_by_blocks = False
    needs_checksums = True


class ClusterLocation(Location):
    """The memory of a cluster of the engine `backend`, "dask" or "ray", on which polarmap is installed."""

    __slots__ = ()
    tag = "cluster"
    is_owned_by_blocks = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return the bytes of an array in the cluster, without a copy if it is stored on this machine."""
        from polarmap.worker.cluster_segments import read_from_cluster

        return read_from_cluster(self.backend, segment)


INLINE = InlineLocation()
LOCATION_CLASSES: dict[str, type[Location]] = {
    location_class.tag: location_class
    for location_class in (
        *(InlineLocation, FolderLocation, PrivateFolderLocation),
        *(BucketLocation, DriverLocation, StoreLocation, ClusterLocation),
    )
}


def location_from_fields(fields: Sequence[Any]) -> Location:
    """Return the location that is represented by these `fields`.

    >>> location_from_fields(FolderLocation("/data").fields)
    FolderLocation('/data', '')
    """
    tag, *arguments = fields
    return LOCATION_CLASSES[tag](*arguments)
