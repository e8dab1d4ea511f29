"""`ObjectStore`, a store in a bucket of any object storage supported by Lithops.

Requests are retried during short outages, and storage errors are converted to StorageError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from polarmap.errors import MissingObjectError, StorageError
from polarmap.storage import Data, check_object_key
from polarmap.worker.locations import BucketLocation
from polarmap.worker.retries import OUTAGE_SECONDS, get_s3_error_code, is_transient_error, retry_request

# If the storage has never responded, it may not exist. Requests are then retried for only this many seconds.
FIRST_REQUEST_OUTAGE_SECONDS = 5.0

Result = TypeVar("Result")

_DENIED_CODES = (
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "Forbidden",
    "InvalidToken",
    "403",
)


class ObjectStore:
    """A store in a bucket of any object storage supported by Lithops, such as S3.

    Requests are retried if the storage refuses the connection, times out or is too busy. Retries continue for
    OUTAGE_SECONDS, so that the storage can restart in the meantime, or for only FIRST_REQUEST_OUTAGE_SECONDS
    if it has never responded before. Other errors are raised immediately.

    Parameters
    ----------
    storage : lithops.Storage
        The storage client, whose `bucket` is used.

    Attributes
    ----------
    executor : optional
        The default executor for maps of data in this store; None if unknown.
    """

    executor: Any = None

    def __init__(self, storage: Any) -> None:
        self.storage, self.bucket, self.backend = storage, str(storage.bucket), str(storage.backend)
        self.location = BucketLocation(self.bucket, self.backend)  # tells workers where to read the objects
        self._has_answered = False

    @property
    def name(self) -> str:
        """The storage backend and the bucket, for error messages."""
        return f"{self.backend} bucket {self.bucket!r}"

    def __repr__(self) -> str:
        return f"<ObjectStore: {self.name}>"

    def put(self, key: str, data: Data) -> None:
        """Store an object with one PUT request."""
        data_bytes = data if isinstance(data, bytes) else bytes(data)
        self._call_with_retries(
            lambda: self.storage.put_object(self.bucket, check_object_key(key), data_bytes), key
        )

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return an object's bytes from `start` to `stop` (exclusive), or to the end if `stop` is None.

        Sends one GET request. If `stop` is given, only this byte range is transferred. Raises
        MissingObjectError if the object does not exist.
        """
        if stop is not None and stop <= start:
            return b""
        options: dict[str, Any] = {}
        if stop is not None:
            options = {"extra_get_args": {"Range": f"bytes={start}-{stop - 1}"}}
        try:
            data = self._call_with_retries(
                lambda: self.storage.get_object(self.bucket, check_object_key(key), **options), key
            )
        except _RangeError:
            return b""
        content = bytes(data)
        return content[start:] if stop is None else content

    def concatenate(self, source_keys: Sequence[str], target_key: str) -> bool:
        """Copy an object within the storage by an S3 COPY request. Return False if that is impossible.

        There must be exactly one source key, and the storage must support the S3 API.
        """
        client: Any = self.storage.get_client() if hasattr(self.storage, "get_client") else None
        if len(source_keys) != 1 or not hasattr(client, "copy_object"):
            return False
        target = {"Bucket": self.bucket, "Key": check_object_key(target_key)}
        source = {"Bucket": self.bucket, "Key": check_object_key(source_keys[0])}
        self._call_with_retries(lambda: client.copy_object(**target, CopySource=source), source_keys[0])
        return True

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes, or None if it does not exist. Sends one HEAD request."""
        try:
            head = self._call_with_retries(
                lambda: self.storage.head_object(self.bucket, check_object_key(key)), key
            )
        except MissingObjectError:
            return None
        lengths = [value for field, value in head.items() if field.lower() == "content-length"]
        return int(lengths[0])

    def keys(self, prefix: str) -> list[str]:
        """Return the sorted keys of all objects whose key begins with `prefix`."""
        return sorted(self._call_with_retries(lambda: self.storage.list_keys(self.bucket, prefix), prefix))

    def list_sizes(self, prefix: str) -> dict[str, int]:
        """Return a dict from key to size in bytes for all objects whose key begins with `prefix`."""
        listed = self._call_with_retries(lambda: self.storage.list_objects(self.bucket, prefix), prefix)
        return {str(entry["Key"]): int(entry["Size"]) for entry in listed}

    def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects with the given keys, with one request per 1,000 objects."""
        for start in range(0, len(keys), 1000):
            batch = [check_object_key(key) for key in keys[start : start + 1000]]
            self._call_with_retries(partial(self.storage.delete_objects, self.bucket, batch), batch[0])

    def _call_with_retries(self, request: Callable[[], Result], key: str) -> Result:
        """Call `request` and return its result, retrying it during short outages of the storage.

        If the request still fails, or fails for another reason, raise a StorageError that names `key`.
        """
        try:
            answer = retry_request(
                request, OUTAGE_SECONDS if self._has_answered else FIRST_REQUEST_OUTAGE_SECONDS
            )
        except Exception as error:
            raise self._to_storage_error(error, key) from error
        self._has_answered = True
        return answer

    def _to_storage_error(self, error: Exception, key: str) -> StorageError:
        code, error_type = get_s3_error_code(error), type(error).__name__
        if isinstance(error, StorageError):
            return error
        if code == "NoSuchBucket":
            return StorageError(
                f"the {self.name} does not exist: create it, or set storage_bucket to another one"
            )
        if error_type == "StorageNoSuchKeyError" or code in ("NoSuchKey", "404"):
            return MissingObjectError(f"the object {key!r} does not exist in {self.name}")
        if code in ("InvalidRange", "416"):
            return _RangeError(f"the object {key!r} in {self.name} ends before the requested range")
        if (
            code in _DENIED_CODES
            or "Auth" in error_type
            or str(error).startswith(("NOAUTH", "WRONGPASS", "NOPERM"))
        ):
            return StorageError(f"{self.name} rejects the configured credentials ({code or error_type})")
        if is_transient_error(error):
            return StorageError(f"{self.name} does not respond: {error_type}: {error}")
        return StorageError(f"{self.name} cannot be used: {error_type}: {error}")


class _RangeError(StorageError):
    """Raised if a requested byte range begins after the end of the object."""
