"""A Lithops storage kept in a dict, with the methods that workers use."""

from __future__ import annotations

from typing import Any


class StorageNoSuchKeyError(Exception):
    """The exception of Lithops for a missing key."""


class DictStorage:
    """An in-memory storage with the methods of `lithops.Storage` that polarmap uses."""

    bucket, backend = "b", "memory"

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], bytes] = {}

    def put_object(self, bucket: str, key: str, data: bytes) -> None:
        self.objects[bucket, key] = data

    def get_object(self, bucket: str, key: str, extra_get_args: Any = None) -> bytes:
        if (bucket, key) not in self.objects:
            raise StorageNoSuchKeyError(key)
        if extra_get_args is None:
            return self.objects[bucket, key]
        first, last = map(int, extra_get_args["Range"].removeprefix("bytes=").split("-"))
        if first >= len(self.objects[bucket, key]):
            raise ValueError("InvalidRange")
        return self.objects[bucket, key][first : last + 1]

    def head_object(self, bucket: str, key: str) -> None:
        if (bucket, key) not in self.objects:
            raise StorageNoSuchKeyError(key)

    def delete_object(self, bucket: str, key: str) -> None:
        del self.objects[bucket, key]

    def list_keys(self, bucket: str, prefix: str) -> list[str]:
        return [key for where, key in self.objects if where == bucket and key.startswith(prefix)]

    def delete_objects(self, bucket: str, keys: list[str]) -> None:
        for key in keys:
            self.delete_object(bucket, key)
