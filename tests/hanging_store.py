"""Programs that end although the transfers of their store hang.

`python hanging_store.py FOLDER WORK ENDING` starts the given work on an array in the folder, and ends in the
given way once a transfer hangs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

import numpy as np

import polarmap
from polarmap.storage.folder import FolderStore

with contextlib.suppress(ImportError):
    from polarmap.executors import transfers

    transfers.GRACE_SECONDS = 0.1
FOREVER = threading.Event()  # This event is never set.


class HangingStore:
    """A store with the required methods, whose transfers hang on all threads but the working one.

    `hangs` is set once a transfer hangs. If `fails` is set, all later transfers raise an error instead.
    """

    name = "hanging"

    def __init__(self, folder: str) -> None:
        store = FolderStore(folder)
        self.size, self.keys, self.delete = store.size, store.keys, store.delete
        self.get, self.put = self._hanging(store.get), self._hanging(store.put)
        self.hangs, self.fails = threading.Event(), False

    def _hanging(self, transfer):
        def call(*arguments):
            if threading.current_thread() in (threading.main_thread(), WORKING):
                return transfer(*arguments)
            if self.fails and self.hangs.is_set():
                raise polarmap.errors.StorageError("the disk is full")
            self.hangs.set()
            return FOREVER.wait()

        return call


WORKS = {
    "read": lambda store: polarmap.open_coded("a", store)[:],
    "check": lambda store: polarmap.open_coded("a", store).check(),
    "repair": lambda store: polarmap.open_coded("a", store).repair(),
    "encode": lambda store: polarmap.encode(np.eye(40), blocks=4, tasks=6, name="b", storage=store),
}
WORKING = threading.Thread()  # the thread that does the work, if it is not the main thread


def main(folder: str, work: str, ending: str) -> None:
    global WORKING
    polarmap.encode(np.eye(40), blocks=4, tasks=6, name="a", storage=folder)
    store = HangingStore(folder)
    store.fails = ending == "fail"

    def interrupt() -> None:
        store.hangs.wait()
        os.kill(os.getpid(), signal.SIGINT)

    if ending == "interrupt":
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=interrupt, daemon=True).start()
    if ending in ("interrupt", "fail"):
        WORKS[work](store)
        return
    WORKING = threading.Thread(target=WORKS[work], args=[store], daemon=True)
    WORKING.start()
    store.hangs.wait()
    if ending == "raise":
        raise ValueError("my own error")


if __name__ == "__main__":
    main(*sys.argv[1:])
