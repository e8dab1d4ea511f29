"""The lock files by which workers on this machine show which attempts they have begun, and when."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

Key = tuple[int, int]  # task and attempt


class Begun(NamedTuple):
    """Who runs an attempt, and since when on the monotonic clock."""

    process: int
    when: float


class AttemptLocks:
    """A folder in which the worker of an attempt creates a file that holds its process id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True)
        self._begun: dict[Key, Begun] = {}

    def __len__(self) -> int:
        """How many attempts have begun."""
        return len(os.listdir(self.folder))

    def begun(self, keys: Iterable[Key]) -> dict[Key, Begun]:
        """Those of these attempts that have begun; each file is read once."""
        found = {}
        for key in keys:
            one = self._begun.get(key) or self._read(key)
            if one is not None:
                found[key] = one
        return found

    def remove(self) -> None:
        """Remove the folder; what has begun stays known."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, key: Key) -> Begun | None:
        task, attempt = key
        path = self.folder / f"{task}-{attempt}"
        try:
            process, made = int(path.read_text() or 0), path.stat().st_mtime
        except FileNotFoundError:
            return None
        begun = Begun(process, made - time.time() + time.monotonic())
        if process:  # else it is being written
            self._begun[key] = begun
        return begun
