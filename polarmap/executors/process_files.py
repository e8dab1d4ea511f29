"""Blocks for the processes of pools on this machine: files in memory, written once, while there is room."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from polarmap.errors import ExecutorError
from polarmap.executors.base import Coded, layout_bytes
from polarmap.executors.block_store import SENT_BYTES, BlockStore, InFolders, StoredPieces
from polarmap.executors.owned_folder import memory_folder
from polarmap.worker.encryption import Encryption
from polarmap.worker.messages import StoredBlock

BUDGET_BYTES = 8 << 30  # of blocks of all maps together, and no more than half of what is free


class ProcessFiles:
    """The files of a process for all its process pools, in one folder, which is made when it is needed.

    Between maps they stay as long as their blocks do; those that were used least recently make way.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, as a process that was forked does."""
        self._lock = threading.Lock()
        self._is_open = False
        self._folder: Path | None = None
        self._files: BlockStore | None = None

    def open(self) -> MapFiles:
        """For one map."""
        with self._lock:
            if not self._is_open or (self._folder is not None and not self._folder.is_dir()):
                self._is_open, self._folder = True, memory_folder()
                if self._folder is not None:
                    nowhere = self._folder / "full"  # beyond the budget blocks travel with their tasks
                    self._files = BlockStore(InFolders(self._folder, nowhere, BUDGET_BYTES))
            return MapFiles(self._folder, self._files)


class MapFiles:
    """The files of the blocks of one map.

    folder : of all maps of this process, removed with it; empty if there is none.
    """

    def __init__(self, folder: Path | None, files: BlockStore | None) -> None:
        self.folder = "" if folder is None else str(folder)
        self._files = files
        self._stored: StoredPieces | None = None

    def block(self, coded: Coded, task: int, encryption: Encryption | None = None) -> StoredBlock | None:
        """The block of a task, stored now if it is not yet; None if it is to travel with its task."""
        if self._files is None or layout_bytes(coded.layout(task)) < SENT_BYTES:
            return None
        if self._stored is None:
            self._stored = self._files.of(coded, encryption)
        if f"/{os.path.dirname(self._stored.roots[0])}" != self.folder:
            return None
        try:
            return self._stored.block(coded, task)._replace(structure=coded.structure)
        except (OSError, ExecutorError):  # no room
            return None

    def close(self) -> None:
        """The map is over. Safe to call twice."""
        stored, self._stored = self._stored, None
        if self._files is not None and stored is not None:
            self._files.done(stored)


process_files = ProcessFiles()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=process_files.forget)
