"""A bucket of an object storage that Lithops speaks to, as a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from polarmap.errors import MissingObjectError, StorageError
from polarmap.storage import Data, check_object_key
from polarmap.worker.locations import BucketLocation
from polarmap.worker.retries import OUTAGE_SECONDS, get_s3_error_code, is_transient_error, retry_request

FIRST_REQUEST_OUTAGE_SECONDS = 5.0  # for which a storage that has never answered is asked again

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
    """Objects in the bucket of a `lithops.Storage`.

    A storage that refuses the connection, times out or says that it is too busy is asked again
    for OUTAGE_SECONDS if it has answered before, so that a restart goes unnoticed, else for
    FIRST_REQUEST_OUTAGE_SECONDS. All else that goes wrong is an error at once.

    Parameters
    ----------
    storage : lithops.Storage
    """

    executor: Any = None  # whose workers have this storage, as for `coded_map`, where that is known

    def __init__(self, storage: Any) -> None:
        self.storage, self.bucket, self.backend = storage, str(storage.bucket), str(storage.backend)
        self.location = BucketLocation(self.bucket, self.backend)  # for workers
        self._has_answered = False

    @property
    def name(self) -> str:
        """Kind and bucket."""
        return f"{self.backend} bucket {self.bucket!r}"

    def __repr__(self) -> str:
        return f"<ObjectStore: {self.name}>"

    def put(self, key: str, data: Data) -> None:
        """One PUT."""
        data_bytes = data if isinstance(data, bytes) else bytes(data)
        self._call_with_retries(
            lambda: self.storage.put_object(self.bucket, check_object_key(key), data_bytes), key
        )

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """One GET, of a range if one is given."""
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
        """One COPY of a single object, where the storage speaks S3."""
        client: Any = self.storage.get_client() if hasattr(self.storage, "get_client") else None
        if len(source_keys) != 1 or not hasattr(client, "copy_object"):
            return False
        target = {"Bucket": self.bucket, "Key": check_object_key(target_key)}
        source = {"Bucket": self.bucket, "Key": check_object_key(source_keys[0])}
        self._call_with_retries(lambda: client.copy_object(**target, CopySource=source), source_keys[0])
        return True

    def size(self, key: str) -> int | None:
        """One HEAD."""
        try:
            head = self._call_with_retries(
                lambda: self.storage.head_object(self.bucket, check_object_key(key)), key
            )
        except MissingObjectError:
            return None
        lengths = [value for field, value in head.items() if field.lower() == "content-length"]
        return int(lengths[0])

    def keys(self, prefix: str) -> list[str]:
        """The keys that begin with `prefix`, sorted."""
        return sorted(self._call_with_retries(lambda: self.storage.list_keys(self.bucket, prefix), prefix))

    def list_sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of the objects whose keys begin with `prefix`, by a listing."""
        listed = self._call_with_retries(lambda: self.storage.list_objects(self.bucket, prefix), prefix)
        return {str(entry["Key"]): int(entry["Size"]) for entry in listed}

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects, a thousand per request."""
        for start in range(0, len(keys), 1000):
            batch = [check_object_key(key) for key in keys[start : start + 1000]]
            self._call_with_retries(partial(self.storage.delete_objects, self.bucket, batch), batch[0])

    def _call_with_retries(self, request: Callable[[], Result], key: str) -> Result:
        """The answer to a request, asked again while the storage may only be away for a moment."""
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
            return StorageError(f"there is no {self.name}: create it, or name another as storage_bucket")
        if error_type == "StorageNoSuchKeyError" or code in ("NoSuchKey", "404"):
            return MissingObjectError(f"there is no object {key!r} in {self.name}")
        if code in ("InvalidRange", "416"):
            return _RangeError(f"{key!r} in {self.name} is shorter than that")
        if (
            code in _DENIED_CODES
            or "Auth" in error_type
            or str(error).startswith(("NOAUTH", "WRONGPASS", "NOPERM"))
        ):
            return StorageError(
                f"{self.name} refuses the credentials of the configuration ({code or error_type})"
            )
        if is_transient_error(error):
            return StorageError(f"{self.name} does not answer: {error_type}: {error}")
        return StorageError(f"{self.name} cannot be used: {error_type}: {error}")


class _RangeError(StorageError):
    """An object ends before the range begins."""
