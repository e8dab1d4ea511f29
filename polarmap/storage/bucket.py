"""A bucket of an object storage that Lithops speaks to, as a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from polarmap.errors import MissingObjectError, StorageError
from polarmap.storage import Data, check_key
from polarmap.worker.retries import OUTAGE_SECONDS, get_s3_error_code, is_transient_error, retry_request

FIRST_RETRY_SECONDS = 5.0  # for which a storage that has never answered is asked again

Result = TypeVar("Result")

_DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden", "InvalidToken", "403")


class ObjectStore:
    """Objects in the bucket of a `lithops.Storage`.

    A storage that refuses the connection, times out or says that it is too busy is asked again
    for AWAY_SECONDS seconds if it has answered before, so that a restart goes unnoticed, else for
    FIRST_RETRY_SECONDS. All else that goes wrong is an error at once.

    Parameters
    ----------
    storage : lithops.Storage
    """

    executor: Any = None  # whose workers have this storage, as for `coded_map`, where that is known

    def __init__(self, storage: Any) -> None:
        self.storage, self.bucket, self.backend = storage, str(storage.bucket), str(storage.backend)
        self._has_answered = False

    @property
    def name(self) -> str:
        """Kind and bucket."""
        return f"{self.backend} bucket {self.bucket!r}"

    def __repr__(self) -> str:
        return f"<ObjectStore: {self.name}>"

    def put(self, key: str, data: Data) -> None:
        """One PUT."""
        body = data if isinstance(data, bytes) else bytes(data)
        self._retried(lambda: self.storage.put_object(self.bucket, check_key(key), body), key)

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """One GET, of a range if one is given."""
        if stop is not None and stop <= start:
            return b""
        options: dict[str, Any] = {}
        if stop is not None:
            options = {"extra_get_args": {"Range": f"bytes={start}-{stop - 1}"}}
        try:
            data = self._retried(lambda: self.storage.get_object(self.bucket, check_key(key), **options), key)
        except _RangeError:
            return b""
        whole = bytes(data)
        return whole[start:] if stop is None else whole

    def join(self, keys: Sequence[str], key: str) -> bool:
        """One COPY of a single object, where the storage speaks S3."""
        client: Any = self.storage.get_client() if hasattr(self.storage, "get_client") else None
        if len(keys) != 1 or not hasattr(client, "copy_object"):
            return False
        names = {"Bucket": self.bucket, "Key": check_key(key)}
        source = {"Bucket": self.bucket, "Key": check_key(keys[0])}
        self._retried(lambda: client.copy_object(**names, CopySource=source), keys[0])
        return True

    def size(self, key: str) -> int | None:
        """One HEAD."""
        try:
            head = self._retried(lambda: self.storage.head_object(self.bucket, check_key(key)), key)
        except MissingObjectError:
            return None
        lengths = [value for field, value in head.items() if field.lower() == "content-length"]
        return int(lengths[0])

    def keys(self, prefix: str) -> list[str]:
        """The keys that begin with `prefix`, sorted."""
        return sorted(self._retried(lambda: self.storage.list_keys(self.bucket, prefix), prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of the objects whose keys begin with `prefix`, by a listing."""
        listed = self._retried(lambda: self.storage.list_objects(self.bucket, prefix), prefix)
        return {str(one["Key"]): int(one["Size"]) for one in listed}

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects, a thousand per request."""
        for start in range(0, len(keys), 1000):
            lot = [check_key(key) for key in keys[start : start + 1000]]
            self._retried(partial(self.storage.delete_objects, self.bucket, lot), lot[0])

    def _retried(self, request: Callable[[], Result], key: str) -> Result:
        """The answer to a request, asked again while the storage may only be away for a moment."""
        try:
            answer = retry_request(request, OUTAGE_SECONDS if self._has_answered else FIRST_RETRY_SECONDS)
        except Exception as error:
            raise self._clear(error, key) from error
        self._has_answered = True
        return answer

    def _clear(self, error: Exception, key: str) -> StorageError:
        code, kind = get_s3_error_code(error), type(error).__name__
        if isinstance(error, StorageError):
            return error
        if code == "NoSuchBucket":
            return StorageError(f"there is no {self.name}: create it, or name another as storage_bucket")
        if kind == "StorageNoSuchKeyError" or code in ("NoSuchKey", "404"):
            return MissingObjectError(f"there is no object {key!r} in {self.name}")
        if code in ("InvalidRange", "416"):
            return _RangeError(f"{key!r} in {self.name} is shorter than that")
        if code in _DENIED or "Auth" in kind or str(error).startswith(("NOAUTH", "WRONGPASS", "NOPERM")):
            return StorageError(f"{self.name} refuses the credentials of the configuration ({code or kind})")
        if is_transient_error(error):
            return StorageError(f"{self.name} does not answer: {kind}: {error}")
        return StorageError(f"{self.name} cannot be used: {kind}: {error}")


class _RangeError(StorageError):
    """An object ends before the range begins."""
