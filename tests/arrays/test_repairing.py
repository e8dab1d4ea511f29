"""Tests of finding, decoding and repairing every kind of damage, in this process and on workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from array_data import DOCUMENTS, MIB, damage, losses, objects, random_array
from counting_store import BrokenError, Counting, CountingReads, fail
from hypothesis import given, settings
from hypothesis import strategies as st

import polarmap
from polarmap.arrays.manifest import get_manifest_key
from polarmap.blocks.equal import compute_max_nonempty_blocks
from polarmap.codes import PolarCode
from polarmap.errors import ExecutorError, MissingObjectError, NotDecodableError, StorageError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

OPTIONS = {"blocks": 4, "tasks": 6, "name": "a", "memory": MIB}
SHAPE = (20, 7_000)  # With 1 MiB this gives five stripes of one row of each block.


@pytest.mark.every_store
def test_damaged_parts_are_named_decoded_and_repaired(store):
    check_repair(store, "f8", None)


@pytest.mark.parametrize("executor", [None, ReplayExecutor()], ids=["here", "workers"])
@pytest.mark.parametrize("dtype", ["f4", "c16", "u1", "i8"])
def test_damaged_parts_of_other_dtypes_are_repaired(store, dtype, executor):
    check_repair(store, dtype, executor)


DOCUMENT_DAMAGE = {"f4": "missing", "f8": "corrupt", "c16": "corrupt", "u1": "appended", "i8": "truncated"}


def check_repair(store, dtype, executor):
    A = random_array((72, 600), dtype)
    coded = polarmap.encode(A, blocks=6, tasks=9, name="a", storage=store, memory=MIB)
    stripes, view, encoded = (
        len(coded.block_segments(0)),
        coded.coded_blocks().manifest.zarr_view,
        objects(store),
    )
    tolerance = 0 if np.dtype(dtype).kind in "iu" else 1e-4 if dtype == "f4" else 1e-10
    lost = losses(coded.code, 3)
    hurt = {(block, 0): kind for block, kind in zip(lost, ("missing", "corrupt", "truncated"))}
    whole = next(block for block in range(9) if block not in lost)
    hurt[whole, 0] = "appended"
    if stripes > 1:
        hurt |= {(1, 1): "corrupt", (8, 1): "missing"}
    keys = {(block, stripe): coded.block_segments(block)[stripe].key for block, stripe in hurt}
    for (block, stripe), kind in hurt.items():
        damage(store, coded.block_segments(block)[stripe], kind)
    others = {(f"{view.path}/data/c/mine", "foreign")}
    store.put(f"{view.path}/data/c/mine", b"by somebody")
    for part in view.metadata:
        damage(store, part, DOCUMENT_DAMAGE[dtype])
        others.add((part.key, DOCUMENT_DAMAGE[dtype]))
    before = objects(store)

    audit = coded.check(executor=executor)
    assert {(part.block, part.stripe): part.kind for part in audit.damaged} == hurt
    assert set(audit.zarr_damages) == others
    assert audit == coded.check()
    assert not audit.ok
    assert audit.undecodable_stripes == ()
    assert "1 truncated" in repr(audit)
    assert "3 other objects of the Zarr array are wrong" in repr(audit)
    assert all(f"block {block}, part {part}: {kind}" in repr(audit) for (block, part), kind in hurt.items())
    np.testing.assert_allclose(coded[:], A, rtol=tolerance, atol=tolerance)
    assert objects(store) == before

    repaired = coded.repair(executor=executor)
    assert repaired == audit
    assert coded.check().ok
    text = repr(repaired)
    assert "; rebuilt " in text
    assert "all parts are good now" in text
    assert "3 other objects of the Zarr array were wrong and are replaced" in text
    assert all(f"block {block}, part {part}: was {kind}" in text for (block, part), kind in hurt.items())
    assert "repair() can rebuild" not in text
    again = polarmap.open_coded("a", store)
    assert again.check(executor=executor).ok
    np.testing.assert_allclose(again[:], A, rtol=tolerance, atol=tolerance)
    after, wrong = objects(store), {*keys.values(), *(key for key, _ in others)}
    good = before.keys() - wrong - {get_manifest_key("a")}
    assert all(after[key] == before[key] for key in good)
    assert len(good) == 9 * stripes - len(hurt)
    assert all(after[part.key] == encoded[part.key] for part in view.metadata)
    for key in (key for (block, _), key in keys.items() if block < 6):  # the keys that Zarr reads
        repaired_part, encoded_part = (np.frombuffer(data[key], dtype) for data in (after, encoded))
        np.testing.assert_allclose(repaired_part, encoded_part, rtol=tolerance, atol=tolerance)
    assert whole >= 6 or after[keys[whole, 0]] == encoded[keys[whole, 0]]
    # Rebuilt parts of data blocks are also stored in the Zarr array.
    copies = sum(block < 6 for block, _ in hurt)
    assert len(after) == 9 * stripes + DOCUMENTS + copies
    again.delete()
    assert store.keys("polarmap/") == []


@pytest.mark.every_store
def test_a_deleted_array_cannot_be_repaired(store):
    coded = polarmap.encode(np.arange(24.0), blocks=4, name="a", storage=store)
    coded.delete()
    coded.delete()
    with pytest.raises(MissingObjectError, match="the coded array 'a' does not exist"):
        coded.repair()
    assert len(coded.check().damaged) == coded.n
    with pytest.raises(NotDecodableError):
        coded[:]


@pytest.mark.every_store
def test_repairing_an_intact_array_changes_nothing(store):
    coded = polarmap.encode(np.arange(24.0), blocks=4, name="a", storage=store)
    before = objects(store)
    assert coded.repair().ok
    assert objects(store) == before


def test_each_stripe_tolerates_its_own_losses(store):
    A = random_array((8, 50_000))
    coded = polarmap.encode(A, blocks=4, tasks=6, name="a", storage=store, memory=MIB)
    assert len(coded.block_segments(0)) > 3
    for stripe, lost in enumerate([(0, 1), (2, 3), (4, 5), (1, 4)]):
        for block in lost:
            damage(store, coded.block_segments(block)[stripe], "missing")
    np.testing.assert_allclose(coded[:], A, rtol=1e-10, atol=1e-10)
    assert len(coded.repair().damaged) == 8
    assert coded.check().ok


def test_too_much_damage_raises_a_clear_error_and_changes_nothing(store):
    coded = polarmap.encode(random_array((12, 7)), blocks=4, tasks=6, name="a", storage=store)
    for index in (0, 1, 5):
        damage(store, coded.block_segments(index)[0], "corrupt")
    before = objects(store)
    assert coded.check().undecodable_stripes == (0,)
    assert "stripes [0] are lost" in repr(coded.check())
    with pytest.raises(
        NotDecodableError, match=r"(?s)3 corrupt, in blocks \[0, 1, 5\]; stripes \[0\] are lost"
    ):
        coded.repair()
    with pytest.raises(NotDecodableError, match="stripe 0 of the coded array 'a' cannot be decoded"):
        coded[:]
    np.testing.assert_array_equal(coded[6:9].shape, (3, 7))  # Block 2 is intact.
    assert objects(store) == before


@pytest.mark.every_store
def test_a_repair_does_not_restore_a_replaced_array(store):
    A = random_array(SHAPE)
    coded = polarmap.encode(A, storage=store, **OPTIONS)
    store.delete([coded.block_segments(1)[2].key])
    other = polarmap.encode(A[:8], storage=store, overwrite=True, **OPTIONS)
    assert coded.repair().ok  # The repair is judged by the objects that exist now.
    np.testing.assert_array_equal(coded[:], A[:8])
    store.delete([other.block_segments(1)[0].key])

    def replace_array():
        polarmap.encode(A[:4], storage=store, overwrite=True, **OPTIONS)

    late = polarmap.open_coded("a", Counting(store, 2, replace_array))
    with pytest.raises(StorageError, match=r"another process has written or deleted .* meanwhile"):
        late.repair()
    np.testing.assert_array_equal(polarmap.open_coded("a", store)[:], A[:4])
    assert polarmap.open_coded("a", store).check().ok


@pytest.mark.every_store
def test_an_interrupted_repair_changes_nothing(store):
    A = random_array(SHAPE)
    coded = polarmap.encode(A, storage=store, **OPTIONS)
    for stripe in range(3):
        store.delete([coded.block_segments(1)[stripe].key])
    before = objects(store)
    late = polarmap.open_coded("a", Counting(store, 3, fail))
    with pytest.raises(BrokenError):
        late.repair()
    now = objects(store)
    assert {key: now[key] for key in before} == before
    assert get_manifest_key("a") in now
    coded.repair()
    assert coded.check().ok
    # Rebuilt data is also stored in the Zarr array.
    assert len(store.keys("polarmap/")) == DOCUMENTS + 6 * 5 + 3


# --- on workers, which read and decode in place -------------------------


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 20), columns=st.integers(0, 3), k=st.integers(1, 6), extra=st.integers(1, 4),
    dtype=st.sampled_from(["f2", "f4", "f8", "c8", "c16", "i1", "u1", "i4", "u4", "u8", "i8", ">f8", ">i4"]),
    key=st.sampled_from([None, bytes(range(32))]), data=st.data(),
)  # fmt: skip
def test_any_losses_of_any_shape(tmp_path_factory, rows, columns, k, extra, dtype, key, data):
    folder = tmp_path_factory.mktemp("store")
    A, k = random_array((rows, 40 * columns), dtype), compute_max_nonempty_blocks(rows, min(k, rows))
    polarmap.encode(A, blocks=k, tasks=k + extra, name="a", storage=folder, key=key)
    coded = polarmap.open_coded("a", folder, key=key)
    np.testing.assert_array_equal(coded[:], A)
    before = [coded.coded_blocks().component_leaves(block)[0] for block in range(coded.n)]
    lost = data.draw(st.lists(st.integers(0, coded.n - 1), max_size=extra * bool(columns), unique=True))
    for block in lost:
        kind = data.draw(st.sampled_from(["missing", "corrupt", "truncated"]))
        damage(coded.store, coded.block_segments(block)[0], kind)
    if coded.check().undecodable_stripes:  # Integers may need more than k blocks.
        with pytest.raises(NotDecodableError, match="cannot rebuild all stripes"):
            coded.repair(executor=ReplayExecutor())
        return
    assert coded.repair(executor=ReplayExecutor()).damaged_blocks == sorted(lost)
    assert coded.check().ok
    allowed = compute_rounding_bound(coded.code, sorted(lost), before)
    for block in range(coded.n):
        now = coded.coded_blocks().component_leaves(block)[0]
        np.testing.assert_allclose(now, before[block], rtol=0, atol=allowed if block in lost else 0)


def compute_rounding_bound(code, lost, blocks):
    """Return a bound on the rounding error of decoded blocks: of the blocks read and of the decoded sums."""
    if not lost or blocks[0].dtype.kind in "iu":
        return 0
    check = np.asarray(code.parity_check_matrix, float)
    weights = np.linalg.pinv(check[:, lost]) @ np.delete(check, lost, axis=1)
    largest = max(abs(block).max() for block in blocks)
    return 2 * np.finfo(blocks[0].dtype).eps * float(largest) * (1 + abs(weights).sum(axis=1).max())


@pytest.mark.parametrize("executor", ["threads", "processes"], indirect=True)
def test_late_and_failing_workers_are_replaced(store, executor):
    A = random_array(SHAPE)
    coded = polarmap.encode(A, storage=store, **OPTIONS)
    for stripe in range(5):
        store.delete([coded.block_segments(1)[stripe].key, coded.block_segments(4)[stripe].key])
    faulty = FaultyExecutor(executor, {0: Fault("sleep", 60), 1: Fault("raise")})
    assert coded.repair(executor=faulty).damaged_blocks == [1, 4]
    assert coded.check().ok
    np.testing.assert_allclose(coded[:], A, rtol=1e-10, atol=1e-10)
    coded.delete()
    assert objects(store) == {}


def test_a_failed_repair_neither_changes_nor_leaves_objects(store, threads):
    coded = polarmap.encode(random_array(SHAPE), storage=store, **OPTIONS)
    damage(store, coded.block_segments(1)[2], "corrupt")
    damage(store, coded.block_segments(3)[0], "missing")
    before = objects(store)
    for task in (0, 1):  # Task 0 fails in the check, task 1 in the first rebuilt stripe.
        broken = FaultyExecutor(threads, {task: Fault("raise", attempts=99)})
        with pytest.raises(RuntimeError, match="injected fault"):
            coded.repair(executor=broken)
        assert objects(store) == before
    coded.repair(executor=threads)
    assert coded.check().ok


def test_damage_between_check_and_repair_raises_an_error(store, threads, monkeypatch):
    coded = polarmap.encode(random_array((20, 10)), storage=store, **OPTIONS)
    damage(store, coded.block_segments(1)[0], "missing")
    audit = coded.check()
    monkeypatch.setattr("polarmap.arrays.repairing.audit_array", lambda *_: audit)
    damage(store, coded.block_segments(2)[0], "corrupt")
    before = objects(store)
    with pytest.raises(NotDecodableError, match="is corrupt: its checksum is not the one in the manifest"):
        coded.repair(executor=threads)
    assert objects(store) == before


def test_inconsistent_blocks_are_refused(store, threads):
    coded = polarmap.encode(random_array((20, 10), "i4"), storage=store, **OPTIONS)
    other = polarmap.encode(random_array((20, 10), "i4", 1), storage=store, **OPTIONS | {"name": "b"})
    manifest = coded.coded_blocks().manifest
    part = manifest.segments[5][0]._replace(crc32=other.block_segments(5)[0].crc32)
    forged = manifest.with_replaced_segments(
        {(5, 0): part, (0, 0): manifest.segments[0][0]._replace(crc32=7)}
    )
    store.put(part.key, store.get(other.block_segments(5)[0].key))
    store.put("polarmap/manifests/a.json", forged.to_bytes())
    before = objects(store)
    with pytest.raises(StorageError, match="the parts do not belong together"):
        polarmap.open_coded("a", store).repair(executor=threads)
    assert objects(store) == before


def test_the_driver_repairs_stripes_with_nan_and_workers_repair_the_rest(tmp_path, threads):
    A = random_array(SHAPE)
    A[0, 5] = np.nan  # This entry is in the first stripe of block 0.
    store = CountingReads(tmp_path)
    with pytest.warns(RuntimeWarning, match="1 entry is NaN or inf"):
        coded = polarmap.encode(A, storage=store, **OPTIONS)
    for stripe in range(5):
        store.delete([coded.block_segments(4)[stripe].key])  # The parity also contains NaN there.
    part, store.read = coded.block_segments(0)[0].size, 0
    coded.repair(executor=threads)
    # The driver reads the intact parts of the first stripe, and manifests.
    assert 5 * part < store.read < 6 * part
    assert coded.check().ok
    store.delete([coded.block_segments(1)[0].key, coded.block_segments(1)[2].key])
    before = objects(store)
    with pytest.raises(NotDecodableError, match=r"1 entry of blocks \[1\] .* first at index \[5, 5\]"):
        coded.repair(executor=threads)
    assert objects(store) == before


REPAIRS = """
import sys, tracemalloc
import numpy as np
import polarmap
from array_data import MIB, damage, random_array
from counting_store import CountingReads

A = random_array((64, 40_000))  # The array has 20 MB.
store = CountingReads(sys.argv[1])
coded = polarmap.encode(A, blocks=4, tasks=6, name="a", storage=store, memory=16 * MIB)
part = coded.block_segments(0)[0].size
assert len(coded.block_segments(0)) == 8
with polarmap.Pool(workers=2) as pool:
    for _ in range(2):
        for stripe in range(8):
            store.delete([coded.block_segments(1)[stripe].key, coded.block_segments(5)[stripe].key])
        damage(store, coded.block_segments(2)[7], "appended")
        store.read, store.puts = 0, ()
        assert len(coded.check(executor=pool).damaged) == 17
        tracemalloc.start()
        coded.repair(executor=pool)
        print(tracemalloc.get_traced_memory()[1] / part)
        tracemalloc.stop()
        assert store.read < part // 8
        assert not [key for key in store.puts if not key.endswith(".json")]
        assert coded.check(executor=pool).ok
np.testing.assert_allclose(coded[:], A, rtol=1e-10, atol=1e-10)
"""


def test_repairs_on_workers_do_not_move_data_through_the_driver(tmp_path):
    # This runs in a separate process, where no abandoned task of another test can read at the same time.
    tests = Path(__file__).parent.parent
    command = [sys.executable, "-c", REPAIRS, str(tmp_path)]
    run = subprocess.run(command, cwd=tests, stdout=subprocess.PIPE, text=True, timeout=100, check=True)
    peaks = list(map(float, run.stdout.split()))
    assert len(peaks) == 2
    assert max(peaks) < 4  # The unit is parts. A stripe of all blocks has six.


def test_workers_that_cannot_reach_the_storage_are_refused(store, threads):
    coded = polarmap.encode(np.ones((8, 2)), blocks=4, name="a", storage=Counting(store))
    store.delete([coded.block_segments(5)[0].key])
    before = objects(store)
    with pytest.raises(ExecutorError, match="which workers cannot reach: leave executor out"):
        coded.repair(executor=threads)
    assert objects(store) == before


@pytest.mark.parametrize("dtype", ["f8", "i8"])
def test_an_array_of_several_groups_is_opened_and_repaired(store, dtype):
    A = random_array((60, 3), dtype)
    code = PolarCode(48, 30, "arikan" if dtype == "i8" else "rotation", groups=3)
    polarmap.encode(A, code=code, name="a", storage=store)
    coded = polarmap.open_coded("a", storage=store)
    assert repr(coded.code) == repr(code)
    for group_code, blocks in code.split_into_groups():
        lost = int(blocks[np.flatnonzero((group_code.encoding_matrix % 2).any(axis=0))[0]])
        damage(store, coded.block_segments(lost)[0], "missing")
    tolerance = 0 if dtype == "i8" else 1e-10
    np.testing.assert_allclose(coded[:], A, atol=tolerance)
    coded.repair()
    assert coded.check().ok
    np.testing.assert_allclose(polarmap.open_coded("a", storage=store)[:], A, atol=tolerance)
