"""Locations of segments: one class for each kind of place, which knows how to read, write and delete there.

Runs on workers too: imports the standard library only.
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
    """The means by which a task reaches what is stored.

    storage : a `lithops.Storage`, for buckets; None if there is none.
    """

    storage: Any

    def fetch_from_driver(self, segment: Segment, private_root: str | None = None) -> Any:
        """Return the stored bytes of a segment that the driver has.

        private_root : the folder of the driver's machine below which there is a file of them; None: none.
        """
        ...


class Location(ABC):
    """A place where segments are stored.

    root : path or name of the place.
    backend : what provides the place: Lithops' name of a storage, or a cluster engine; empty for others.
    encryption : fields of an `Encryption`; None if segments are stored as plain bytes.
    fields : plain data that stands for the location on the wire, see `location_from_fields`.
    """

    # Each class states these facts. Comments do not travel with the tasks of Lithops, and neither do
    # docstrings, but each method does.
    tag = ""  # names the class on the wire
    is_inline = False  # blocks travel with their tasks, and there are no segments
    is_memory_mapped = False  # segments are files, which readers map
    is_local = False  # a worker on the driver's machine needs no transfer over a network
    is_sent_by_driver = False  # workers ask the driver for segments
    is_owned_by_blocks = False  # segments belong to one set of blocks, and never change
    is_writable = False  # workers can store results: there are methods `write` and `delete`
    uses_storage = False  # segments are read and written by a `lithops.Storage`
    needs_checksums = False  # another object may take the place of one, and nothing but a checksum tells

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
        """Return the same place for segments that are encrypted so; None: not encrypted."""
        return type(self)(self.root, self.backend, encryption)

    @abstractmethod
    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return the stored bytes of a segment, fewer if its object is shorter.

        Raises DamagedError if the object is missing.
        """

    def write(self, key: str, data: Any, access: StorageAccess) -> None:
        """Store an object, which appears whole or not at all."""
        raise NotImplementedError

    def delete(self, keys: Iterable[str], access: StorageAccess) -> None:
        """Delete objects; missing ones are ignored."""
        raise NotImplementedError

    def get_path(self, key: str) -> str | None:
        """Return the path of the file that holds an object, or None if objects are not files."""
        return None


class InlineLocation(Location):
    """The messages in which tasks travel: each has the bytes of its block."""

    __slots__ = ()
    tag = "message"
    is_inline = is_local = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Raise LookupError: there are no segments."""
        raise LookupError(segment)


class FolderLocation(Location):
    """Files below the folder `root`."""

    __slots__ = ()
    tag = "folder"
    is_memory_mapped = is_local = is_writable = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return the bytes of a range of a file, mapped if they are many."""
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
    """Files of a driver and its workers, two levels below a folder of this user alone.

    Workers on other machines, which do not find that folder, ask the driver.
    """

    __slots__ = ()
    tag = "private"
    is_owned_by_blocks = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return the bytes of a file of the driver."""
        return access.fetch_from_driver(segment, self.root)


class BucketLocation(Location):
    """Objects in the bucket `root` of a `lithops.Storage`."""

    __slots__ = ()
    tag = "bucket"
    uses_storage = is_writable = needs_checksums = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return the bytes of a range of an object."""
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
    """Memory of the driver, which sends a segment when a worker asks for it."""

    __slots__ = ()
    tag = "driver"
    is_owned_by_blocks = is_sent_by_driver = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return the bytes that the driver sends."""
        return access.fetch_from_driver(segment)


class StoreLocation(DriverLocation):
    """A store of the user's own, named `root`, which only the driver can use."""

    __slots__ = ()
    tag = "store"
    is_owned_by_blocks = False
    needs_checksums = True


class ClusterLocation(Location):
    """Memory of the cluster of the engine `backend`, "dask" or "ray", whose workers have this package."""

    __slots__ = ()
    tag = "cluster"
    is_owned_by_blocks = True

    def read(self, segment: Segment, access: StorageAccess) -> Any:
        """Return the bytes of an array of the cluster, without a copy if it is on this machine."""
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
    """Return the location whose `fields` these are.

    >>> location_from_fields(FolderLocation("/data").fields)
    FolderLocation('/data', '')
    """
    tag, *arguments = fields
    return LOCATION_CLASSES[tag](*arguments)
