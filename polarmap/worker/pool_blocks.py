"""Blocks in files, as the tasks of a process get them that others use, too: kept for some time between maps.

Runs on workers: imports numpy at most.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from typing import Any

from polarmap.worker.block_cache import BlockCache
from polarmap.worker.liveness import has_lost_parent
from polarmap.worker.messages import StoredBlock

IDLE_SECONDS = 60.0  # after which blocks that no task asked for are let go
LOOK_SECONDS = 1.0  # between looks whether files have been removed, and whether the driver has died


class PoolBlocks:
    """The blocks that a process keeps, and the thread that lets go of them.

    Attributes
    ----------
    kept : BlockCache
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, as a process that was forked does: it has no thread that would let go of them."""
        self.kept = BlockCache()
        self._lock = threading.Lock()
        self._used = time.monotonic()
        self._driver, self._scratch = os.getppid(), ""
        self._is_watched = False

    def load(self, block: StoredBlock, is_private: bool = False, scratch: str = "") -> Any:
        """A block, read-only unless it is small or `is_private`; DamagedError if it is not as it was stored.

        scratch : a folder of the process that has started this one; removed when that dies.
        """
        loaded = self.kept.load(block, is_private)
        with self._lock:
            self._used = time.monotonic()
            self._scratch = scratch or self._scratch
            if not self._is_watched and (len(self.kept) or self._scratch):
                self._is_watched = True
                threading.Thread(target=self._watch, name="polarmap-blocks", daemon=True).start()
        return loaded

    def _watch(self) -> None:
        while self._is_watched:
            time.sleep(LOOK_SECONDS)
            with self._lock:
                self._look()

    def _look(self) -> None:
        is_orphan = bool(self._scratch) and has_lost_parent(self._driver)
        if is_orphan:
            shutil.rmtree(self._scratch, ignore_errors=True)
        if not os.path.isdir(self._scratch):
            self._scratch = ""
        if is_orphan or time.monotonic() - self._used > IDLE_SECONDS:
            self.kept.clear()
        else:
            self.kept.forget_removed()
        self._is_watched = bool(len(self.kept) or self._scratch)


blocks = PoolBlocks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=blocks.forget)
