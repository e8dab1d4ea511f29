"""Check a folder as a store, and its unfinished files."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time

import pytest

from polarmap.errors import MissingObjectError, StorageError
from polarmap.worker.processes import ProcessIdentity


def test_a_folder_of_objects_is_not_an_object(store):
    store.put("a/1", b"abcdef")
    store.put("ab", b"")
    assert [store.size(key) for key in ("a", "ab")] == [None, 0]
    assert store.keys("a") == ["a/1", "ab"]
    with pytest.raises(MissingObjectError, match="does not exist"):
        store.get("a")
    with pytest.raises(StorageError, match="cannot be used: Is a directory") as caught:
        store.put("a", b"")
    assert not isinstance(caught.value, MissingObjectError)
    store.delete(["a/1"])
    assert store.keys("") == ["ab"]
    assert not (store.root / "a").exists()


def test_a_folder_store_can_be_pickled(store):
    store.put("a", b"1")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"1"


def test_concurrent_writes_and_deletions_do_not_interfere(store):
    # Deleting the last object of a folder removes the folder, while other threads write there.
    failures = []

    def churn(number):
        try:
            for turn in range(200):
                store.put(f"a/b/{number}", bytes([turn]))
                assert store.get(f"a/b/{number}") == bytes([turn])
                store.delete([f"a/b/{number}"])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.keys("") == []


def test_objects_are_replaced_atomically(store):
    big = [bytes([number]) * 300_000 for number in range(2)]
    store.put("a", big[0])
    over = threading.Event()

    def write():
        while not over.is_set():
            for data in big:
                store.put("a", data)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert all(store.get("a") in big for _ in range(200))
    finally:
        over.set()
        thread.join()


def test_unfinished_files_of_dead_processes_are_removed(store):
    store.put("a", b"1")
    folder = store.root / ".unfinished"
    module = ProcessIdentity.__module__
    dead = subprocess.run(
        [sys.executable, "-c", f"import {module} as m; print(m.ProcessIdentity.current())"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    names = {
        f"{dead}+1": False,
        f"{ProcessIdentity.current()}+1": True,
        "elsewhere+1+1+1": True,
        "elsewhere+1+1+2": False,
    }
    for name in names:
        (folder / name).write_bytes(b"")
    old = time.time() - 2 * 86_400
    os.utime(folder / "elsewhere+1+1+2", (old, old))
    os.utime(folder / f"{ProcessIdentity.current()}+1", (old, old))
    store.remove_stale_files()
    assert {path.name for path in folder.iterdir()} == {name for name, stays in names.items() if stays}
    assert store.keys("") == ["a"]


@pytest.mark.parametrize("has_links", [True, False])
def test_files_are_concatenated_atomically(store, monkeypatch, has_links):
    if not has_links:

        def refuse(*paths):
            raise OSError

        monkeypatch.setattr(os, "link", refuse)
    store.put("a", b"abc")
    store.put("b/c", b"de")
    assert store.concatenate(["a"], "copy")
    assert store.concatenate(["a"], "copy")  # Renaming a link to another link of the same file does nothing.
    assert store.concatenate(["a", "b/c"], "d/joined")
    store.put("a", b"new")
    assert (store.get("copy"), store.get("d/joined")) == (b"abc", b"abcde")
    for keys in (["missing"], ["a", "missing"]):
        with pytest.raises(MissingObjectError):
            store.concatenate(keys, "e")
    assert store.keys("") == ["a", "b/c", "copy", "d/joined"]
    assert list((store.root / ".unfinished").iterdir()) == []
