"""Tests of encoding that is interrupted, resumed or done twice at once: only complete arrays open."""

from __future__ import annotations

import json
import multiprocessing
import signal
import threading
import time

import numpy as np
import pytest
from array_data import DOCUMENTS, MIB, random_array
from counting_store import BrokenError, Counting, encode_until_killed, fail

import polarmap
from polarmap.arrays import stripes
from polarmap.arrays.manifest import Manifest
from polarmap.arrays.stores import SegmentStore
from polarmap.arrays.write_transaction import WriteTransaction
from polarmap.codes import PolarCode
from polarmap.errors import MissingObjectError, StorageError
from polarmap.storage.folder import FolderStore
from polarmap.worker.segments import Segment

OPTIONS = {"blocks": 4, "tasks": 6, "name": "a", "memory": MIB}
SHAPE = (20, 7_000)  # With 1 MiB this gives five stripes of one row of each block.


def run_killed_encode(store, source, at, when="put"):
    """Run an encode that kills itself before call number `at` of a method, and return whether it did."""
    context = multiprocessing.get_context("forkserver")
    verb = {"put": "put", "move": "_rename_into_place", "delete": "delete"}[when]
    process = context.Process(target=encode_until_killed, args=(store.root, source, at, verb))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return bool(process.exitcode)


@pytest.fixture
def source(tmp_path):
    np.save(tmp_path / "source.npy", random_array(SHAPE))
    return tmp_path / "source.npy"


def count_puts_of_a_complete_run(store, source):
    counting = Counting(FolderStore(store.root.parent / "other"))
    coded = polarmap.encode(source, storage=counting, **OPTIONS)
    assert len(coded.block_segments(0)) == 5
    return len(counting.puts)


@pytest.mark.parametrize("when", ["put", "move"])
def test_a_killed_encode_publishes_nothing_and_the_next_run_resumes(store, source, when):
    total = count_puts_of_a_complete_run(store, source)
    for at in (1, 2, 8, 15, total - 3, total):
        assert run_killed_encode(store, source, at, when)
        with pytest.raises(MissingObjectError):
            polarmap.open_coded("a", store)
        assert polarmap.arrays.list_coded(store) == []
        counting = Counting(store)
        coded = polarmap.encode(source, storage=counting, **OPTIONS)
        if at > 15:
            assert len(counting.puts) < total - 7  # At least the first stripe was kept.
        np.testing.assert_array_equal(coded[:], np.load(source))
        assert coded.check().ok
        assert len(store.keys("polarmap/")) == DOCUMENTS + 6 * 5
        assert [*(store.root / ".unfinished").iterdir()] == []
        coded.delete()


def test_an_encode_killed_after_its_manifest_can_be_opened_and_leftovers_are_removed(store, source):
    assert run_killed_encode(store, source, 1, "delete")
    coded = polarmap.open_coded("a", store)
    assert coded.check().ok
    polarmap.encode(source, storage=store, overwrite=True, **OPTIONS)
    assert len(store.keys("polarmap/")) == DOCUMENTS + 6 * 5


def test_an_encode_killed_while_overwriting_keeps_the_old_array(store, source):
    A = np.ones((8, 2))
    for is_deleted in (True, False):
        polarmap.encode(A, blocks=4, tasks=6, name="a", storage=store)
        assert run_killed_encode(store, source, 20)
        coded = polarmap.open_coded("a", store)
        assert coded.check().ok
        np.testing.assert_array_equal(coded[:], A)
        if is_deleted:
            coded.delete()
            assert store.keys("polarmap/") == []
    coded = polarmap.encode(source, storage=store, overwrite=True, **OPTIONS)
    np.testing.assert_array_equal(coded[:], np.load(source))
    assert len(store.keys("polarmap/")) == DOCUMENTS + 6 * 5


def run_failing_encode(A, store, at=25):
    """Run an encode that fails at put number `at`."""
    with pytest.raises(BrokenError):
        polarmap.encode(A, storage=Counting(store, at, fail), **OPTIONS)


def test_a_failed_encrypted_run_leaves_nothing_and_the_next_starts_from_scratch(store):
    # No other run has the same salt, so its data could not be reused.
    A, key = random_array(SHAPE), bytes(range(32))
    with pytest.raises(BrokenError):
        polarmap.encode(A, storage=Counting(store, 25, fail), key=key, **OPTIONS)
    assert store.keys("polarmap/") == []
    coded = polarmap.encode(A, storage=store, key=key, **OPTIONS)
    assert coded.check().ok
    assert len({part.key.split("/")[2] for block in range(6) for part in coded.block_segments(block)}) == 1


def test_runs_with_other_options_are_removed_and_not_resumed(store):
    A = random_array(SHAPE)
    run_failing_encode(A, store)
    for other, options in [
        (A.astype("f4"), OPTIONS),
        (A[:12], OPTIONS),
        (A, {**OPTIONS, "tasks": 7}),
        (A, {**OPTIONS, "code": "arikan"}),
    ]:
        coded = polarmap.encode(other, storage=store, overwrite=True, **options)
        np.testing.assert_array_equal(coded[:], other)
        assert coded.check().ok
        assert len(store.keys("polarmap/")) == DOCUMENTS + coded.n * len(coded.block_segments(0))


def test_consecutive_failures_keep_all_finished_stripes(store):
    A = random_array(SHAPE)
    for at in (12, 12, 12):  # Each run puts a note, six parts, a record, and part of the next stripe.
        run_failing_encode(A, store, at)
    counting = Counting(store)
    coded = polarmap.encode(A, storage=counting, **OPTIONS)
    assert len(counting.puts) < 1 + 6 * 3 + 5
    assert coded.check().ok
    np.testing.assert_array_equal(coded[:], A)


def count_work_of_a_resumed_run(root, count, monkeypatch):
    """Return how often a resumed run of `count` stripes iterates over all keys and measures stripes."""
    A, seen, measured = random_array((4 * count, 7_000)), [], []
    options = {**OPTIONS, "storage": FolderStore(root)}
    with pytest.raises(BrokenError):
        polarmap.encode(A, **options | {"storage": Counting(options["storage"], 7 * count - 1, fail)})

    class Keys(list):
        def __iter__(self):
            seen.append(len(self))
            return super().__iter__()

    real_keys, real_measure = FolderStore.keys, stripes.count_elements
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "keys", lambda store, prefix: Keys(real_keys(store, prefix)))
        patch.setattr(stripes, "count_elements", lambda slab: measured.append(slab) or real_measure(slab))
        coded = polarmap.encode(A, **options)
    assert len(coded.block_segments(0)) == count
    # The array contains stripes of both runs.
    assert len({part.key.split("/")[3] for part in coded.block_segments(5)}) == 2
    return len(seen), len(measured)


def test_the_work_of_a_resumed_run_is_linear_in_the_number_of_stripes(tmp_path, monkeypatch):
    few = count_work_of_a_resumed_run(tmp_path / "few", 10, monkeypatch)
    many = count_work_of_a_resumed_run(tmp_path / "many", 40, monkeypatch)
    assert many[0] == few[0]
    assert many[1] <= 5 * few[1]  # There are four times as many stripes.


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("running.json", "[]"),
        ("running.json", "3"),
        ("running.json", '{"owner": 3, "time": "noon"}'),
        ("000001.json", "[3]"),
        ("000001.json", '[["a", 1, 2, 3, 4]]'),
        ("000001.json", '[[["a"], 1]]'),
        ("000001.json", '{"a": 1}'),
    ],
)
def test_invalid_notes_are_ignored(store, name, text):
    A = random_array(SHAPE)
    run_failing_encode(A, store)
    (key,) = [key for key in store.keys("polarmap/") if key.endswith(name)]
    store.put(key, text.encode())
    coded = polarmap.encode(A, storage=store, **OPTIONS)
    np.testing.assert_array_equal(coded[:], A)
    assert coded.check().ok
    assert len(store.keys("polarmap/")) == DOCUMENTS + 6 * 5


def test_the_note_of_a_run_on_another_machine_is_valid_for_a_day(store):
    A = random_array(SHAPE)
    run_failing_encode(A, store)
    (key,) = [key for key in store.keys("polarmap/") if key.endswith("running.json")]
    note = json.loads(store.get(key))
    elsewhere = {**note, "owner": "another-machine+1+1"}
    store.put(key, json.dumps(elsewhere).encode())
    B = A[:8]
    polarmap.encode(B, storage=store, **OPTIONS)
    assert key in store.keys("polarmap/")
    store.put(key, json.dumps({**elsewhere, "time": time.time() - 2 * 86_400}).encode())
    polarmap.encode(B, storage=store, overwrite=True, **OPTIONS)
    assert key not in store.keys("polarmap/")


# --- publishing an array --------------------------------------------------


@pytest.mark.every_store
def test_an_array_that_could_not_be_opened_is_not_published(store):
    # A manifest that does not fit the parts would block the name.
    parts = tuple((Segment(f"mine/{block}", 48 - 8 * (block == 5), 0),) for block in range(6))
    manifest = Manifest("a", (8, 3), np.dtype("f8"), PolarCode(6, 4), parts)
    with (
        pytest.raises(
            StorageError,
            match=r"'a' is not published, .* block 5 is not cut into the same stripes",
        ),
        WriteTransaction(SegmentStore(store), "a", {}) as generation,
    ):
        generation.commit(manifest, None)
    assert polarmap.arrays.list_coded(store) == []
    polarmap.encode(np.ones((8, 3)), name="a", storage=store)


@pytest.mark.every_store
def test_the_first_run_to_finish_wins_and_the_second_raises(store):
    A, B = random_array(SHAPE), random_array(SHAPE, seed=1)
    won = []

    def overtake():
        won.append(polarmap.encode(B, storage=store, **OPTIONS))

    with pytest.raises(StorageError, match="another process has written or deleted the coded array 'a'"):
        polarmap.encode(A, storage=Counting(store, 25, overtake), **OPTIONS)
    np.testing.assert_array_equal(polarmap.open_coded("a", store)[:], B)
    assert won[0].check().ok
    assert len(store.keys("polarmap/")) == DOCUMENTS + 6 * 5


@pytest.mark.every_store
def test_an_array_deleted_during_an_encode_is_not_restored(store):
    A = random_array(SHAPE)
    before = polarmap.encode(A[:8], storage=store, **OPTIONS)
    with pytest.raises(StorageError, match=r"another process has written or deleted .* meanwhile"):
        polarmap.encode(A, storage=Counting(store, 25, before.delete), overwrite=True, **OPTIONS)
    assert store.keys("polarmap/") == []


@pytest.mark.every_store
def test_many_concurrent_runs_leave_one_complete_array(store):
    arrays = [random_array((16, 500), seed=seed) for seed in range(6)]
    start = threading.Barrier(len(arrays))
    outcomes = []

    def run(A):
        start.wait(30)
        try:
            outcomes.append(polarmap.encode(A, blocks=4, tasks=6, name="a", storage=store, overwrite=True))
        except StorageError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run, args=(A,)) for A in arrays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == len(arrays)
    assert any(isinstance(outcome, polarmap.arrays.CodedArray) for outcome in outcomes)
    coded = polarmap.open_coded("a", store)
    assert any(np.array_equal(coded[:], A) for A in arrays)
    assert coded.check().ok
    polarmap.encode(arrays[0], blocks=4, tasks=6, name="a", storage=store, overwrite=True)
    assert len(store.keys("polarmap/")) == DOCUMENTS + 6
