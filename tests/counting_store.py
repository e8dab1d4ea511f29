"""Stores that count operations or interrupt them, and a store with only the required methods."""

from __future__ import annotations

import os
import signal
import threading

from polarmap import encode
from polarmap.storage.folder import FolderStore


class Counting:
    """A store that records each put, and calls `happen` before the put number `at`."""

    def __init__(self, store, at=-1, happen=None):
        self._store, self._at, self._happen = store, at, happen
        self.puts = []
        self._lock = threading.Lock()

    def __getattr__(self, name):
        return getattr(self._store, name)

    def put(self, key, data):
        with self._lock:
            self.puts.append(key)
            strike = len(self.puts) == self._at
        if strike:
            self._happen()
        self._store.put(key, data)


class CountingReads(FolderStore):
    """A folder store that counts the bytes read and records the objects written by this process."""

    read = 0
    puts: tuple[str, ...] = ()

    def get(self, key, start=0, stop=None):
        data = super().get(key, start, stop)
        self.read += len(data)
        return data

    def put(self, key, data):
        self.puts += (key,)
        super().put(key, data)


class BrokenError(Exception):
    pass


def fail():
    raise BrokenError


class Least:
    """A user's store that has only the required methods."""

    def __init__(self, store):
        for verb in ("name", "put", "get", "size", "keys", "delete"):
            setattr(self, verb, getattr(store, verb))


def encode_until_killed(root, source, at, verb):
    """Encode a file, in a process that kills itself before call number `at` of this method of a folder."""
    real, count = getattr(FolderStore, verb), 0

    def fatal(self, *arguments):
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *arguments)

    setattr(FolderStore, verb, fatal)
    encode(source, blocks=4, tasks=6, name="a", memory=1 << 20, storage=root, overwrite=True)
