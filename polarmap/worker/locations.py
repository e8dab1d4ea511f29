"""Locations where data are stored: a class for each kind, with methods to read, write and delete objects.

Stored objects are read in segments (byte ranges). `location_from_fields` restores a location from the plain
data that is sent to workers. This module also runs on workers, so it imports only the standard library.
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
    """The interface that gives a `Location` access to buckets and to the driver.

    A location is a place where data are stored, such as a folder or a bucket.

    Attributes
    ----------
    storage : lithops.Storage or None
        The client for buckets; None if the task uses no buckets.
    """

    storage: Any

    def fetch_from_driver(self, segment: Segment, private_root: str | None = None) -> Any:
        """Request a segment (a byte range of a stored object) from the driver, and return its bytes.

        Parameters
        ----------
        segment : Segment
            The segment to request.
        private_root : str or None
            A folder on the driver's machine that contains the same object as a file. Workers on that machine
            read the file instead of sending a request. None if there is no such folder.
        """
        ...


class Location(ABC):
    """The base class for places where data are stored, such as folders and buckets.

    Data are stored as objects under string keys, and are read in segments (byte ranges).

    Attributes
    ----------
    root : str
        The path of the folder, or the name of the bucket or store.
    backend : str
        The name of the Lithops storage backend, or of the cluster ("dask" or "ray"). Empty for other
        locations.
    encryption : tuple or None
        The fields of an `Encryption`; None if the data are not encrypted.
    fields : tuple
        The location as a plain tuple, to be sent to workers. `location_from_fields` is the inverse.
    """

    # These are class attributes instead of properties. Locations are pickled with Lithops tasks, and
    # properties would make the pickles larger.
    tag = ""  # the name of the class in `fields`
    is_inline = False  # whether data are sent with tasks instead of being stored
    is_memory_mapped = False  # whether data are files that readers memory-map
    is_local = False  # whether workers on the driver's machine read data without the network
    is_sent_by_driver = False  # whether workers must request data from the driver
    is_owned_by_blocks = False  # whether data are blocks that never change and that the driver deletes
    is_writable = False  # whether workers can store results here, by `write` and `delete`
    uses_storage = False  # whether data are accessed through a `lithops.Storage`
    needs_checksums = False  # whether data may be overwritten, which only a checksum can detect

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
        """Return a copy of the location with other encryption parameters (None: no encryption)."""
        return type(self)(self.root, self.backend, encryption)

    @abstractmethod
    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return the bytes of a segment (a byte range of a stored object).

        Fewer bytes are returned if the object ends before the segment does. Raises DamagedError if the object
        does not exist.
        """

    def write(self, key: str, data: Any, access: StorageAccess) -> None:
        """Store `data` under `key` atomically, so that readers never see an incomplete object."""
        raise NotImplementedError

    def delete(self, keys: Iterable[str], access: StorageAccess) -> None:
        """Delete the objects with these keys. Keys that do not exist are ignored."""
        raise NotImplementedError

    def get_path(self, key: str) -> str | None:
        """Return the path of the file that contains an object, or None if objects are not files."""
        return None


class InlineLocation(Location):
    """The location of data blocks that are sent to workers with their tasks instead of being stored."""

    __slots__ = ()
    tag = "message"
    is_inline = is_local = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Raise LookupError. Inline blocks arrive with their tasks, so there is nothing to read."""
        raise LookupError(segment)


class FolderLocation(Location):
    """A folder, whose path is `root`. Each object is a file."""

    __slots__ = ()
    tag = "folder"
    is_memory_mapped = is_local = is_writable = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return a byte range of a file. Large ranges are memory-mapped instead of copied."""
        return read_file_segment(self.root, segment)

    def write(self, key: str, data: Any, access: StorageAccess) -> None:
        """Write `data` to a file atomically, so that readers never see an incomplete file."""
        write_file(self.root, key, data)

    def delete(self, keys: Iterable[str], access: StorageAccess) -> None:
        """Delete files. Keys that do not exist are ignored."""
        for key in keys:
            with contextlib.suppress(OSError):
                os.unlink(self.get_path(key))

    def get_path(self, key: str) -> str:
        """Return the path of the file that contains an object."""
        return os.path.join(self.root, key)


class PrivateFolderLocation(FolderLocation):
    """A folder in which a driver shares data with workers on the same machine.

    Only the current user can access the folder. The files are in its subfolders. Workers on other machines
    request the data from the driver instead.
    """

    __slots__ = ()
    tag = "private"
    is_owned_by_blocks = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return a byte range of a file. On other machines, request it from the driver."""
        return access.fetch_from_driver(segment, self.root)


class BucketLocation(Location):
    """A bucket in object storage, whose name is `root`. It is accessed through a `lithops.Storage`."""

    __slots__ = ()
    tag = "bucket"
    uses_storage = is_writable = needs_checksums = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return a byte range of an object in the bucket."""
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
        """Store an object in the bucket."""
        access.storage.put_object(self.root, key, bytes(data))

    def delete(self, keys: Iterable[str], access: StorageAccess) -> None:
        """Delete objects in the bucket."""
        for key in keys:
            access.storage.delete_object(self.root, key)


class DriverLocation(Location):
    """The memory of the driver (the process that runs the user's program), which sends data on request."""

    __slots__ = ()
    tag = "driver"
    is_owned_by_blocks = is_sent_by_driver = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Request a byte range from the driver, and return it."""
        return access.fetch_from_driver(segment)


class StoreLocation(DriverLocation):
    """A user-defined store, which only the driver can access. The driver sends the data to workers."""

    __slots__ = ()
    tag = "store"
    is_owned_by_blocks = False
    needs_checksums = True


class ClusterLocation(Location):
    """The memory of a Dask or Ray cluster, in which each stored object is an array.

    polarmap must be installed on the cluster.
    """

    __slots__ = ()
    tag = "cluster"
    is_owned_by_blocks = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return the bytes of an array in the cluster, without copying them if it is on this machine."""
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
    """Restore a location from the tuple in its attribute `fields`.

    >>> location_from_fields(FolderLocation("/data").fields)
    FolderLocation('/data', '')
    """
    tag, *arguments = fields
    return LOCATION_CLASSES[tag](*arguments)
