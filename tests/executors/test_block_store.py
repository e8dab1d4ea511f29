"""Block stores: components of blocks are stored once, shared by jobs, and removed with their blocks."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from memory_storage import DictStorage

from polarmap.arrays.manifest import Manifest
from polarmap.arrays.reading import StoredCodedBlocks
from polarmap.blocks.code_choice import CodeOptions, cut_blocks_and_choose_code
from polarmap.blocks.coded import CodedBlocks
from polarmap.blocks.uneven import UncodedBlocks
from polarmap.errors import ExecutorError
from polarmap.executors.block_store import (
    INLINE_BLOCK_BYTES,
    BlockStore,
    DriverBlockStore,
    MemoryMappedBlockStore,
    PublishedBlocks,
)
from polarmap.executors.interface import Failure, JobSpec, TaskBlocks
from polarmap.executors.lithops import BucketBlockStore
from polarmap.worker import encryption
from polarmap.worker.block_cache import BlockCache
from polarmap.worker.encryption import CIPHERTEXT_OVERHEAD_BYTES, Encryption, read_segment
from polarmap.worker.locations import INLINE, BucketLocation, Location, StoreLocation
from polarmap.worker.private_files import read_private_segment
from polarmap.worker.segments import Segment
from polarmap.worker.task_execution import TaskIO
from polarmap.worker.task_records import to_plain_tuple

K, N = 3, 4
ROWS = INLINE_BLOCK_BYTES // 8
DATA = np.random.default_rng(0).standard_normal((K * ROWS, 2))


class CountingStorage(DictStorage):
    """A storage that counts how often each object was written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = Counter[str]()

    def put_object(self, bucket: str, key: str, data: bytes) -> None:
        self.writes[key] += 1
        super().put_object(bucket, key, data)


def blocks(rows: int = K * ROWS) -> CodedBlocks:
    return CodedBlocks(*cut_blocks_and_choose_code(DATA[:rows], CodeOptions(K, N)))


def make_job_spec(coded: TaskBlocks, key: Encryption | None = None) -> JobSpec:
    return JobSpec(len, coded, encryption=key)


def failure(kind: str) -> Failure:
    return Failure(kind, "", "")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


class Kind:
    """A block store of one kind, with methods that read blocks as workers do."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder, self.storage = kind, folder, CountingStorage()
        (folder / "memory").mkdir()
        stores: dict[str, Callable[[], BlockStore]] = {
            "memory": lambda: MemoryMappedBlockStore(folder / "memory", folder / "disk", 10**8),
            "disk": lambda: MemoryMappedBlockStore(None, folder / "disk", 10**8),
            "bucket": lambda: BucketBlockStore(self.storage, "prefix"),
            "driver": lambda: DriverBlockStore("prefix"),
        }
        self.store = stores[kind]()

    def load(self, stored: PublishedBlocks, coded: Any, task: int) -> list[Any]:
        """Return the leaves of a block as a worker with an empty cache reads them."""

        def read(place: Location, part: Segment) -> Any:
            return read_segment(place, part, partial(lie, place))

        def lie(place: Location, part: Segment) -> Any:
            if place.is_sent_by_driver:
                return stored.read_component(coded, part.key)
            return self.read(place, part)

        return [BlockCache().load_block(stored.publish_block(coded, task), coded.structure, read)]

    def read(self, place: Location, part: Segment) -> Any:
        return (
            place.read(part, TaskIO(self.storage))
            if self.kind == "bucket"
            else read_private_segment(place.root, part)
        )

    def left(self) -> int:
        return len(files(self.folder)) + len(self.storage.objects)


@pytest.fixture(params=["memory", "disk", "bucket", "driver"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    return Kind(request.param, tmp_path)


def check(place: Kind, stored: PublishedBlocks, coded: Any) -> None:
    for task in range(coded.n):
        for actual, right in zip(place.load(stored, coded, task), coded.block_leaves(task), strict=True):
            np.testing.assert_array_equal(actual, right)


def test_workers_read_unchanged_blocks(place: Kind) -> None:
    coded = blocks()
    stored = place.store.acquire_blocks(make_job_spec(coded))
    stored.publish_in_parallel(coded, [0, 2])
    # Only a bucket stores blocks in advance. With the other stores, the first worker starts without waiting.
    assert place.left() == (2 if place.kind == "bucket" else 0)
    for _ in range(2):
        stored.publish_in_parallel(coded, range(N))
        check(place, stored, coded)
    assert place.left() == (0 if place.kind == "driver" else N)
    assert set(place.storage.writes.values()) <= {1}
    block = stored.publish_block(coded, 1)
    assert stored.get_pickled_block_ref(coded, 1) is stored.get_pickled_block_ref(coded, 1)
    for part in block.segments:
        may_change = block.location.needs_checksums
        assert part.crc32 == (zlib.crc32(coded.block_leaves(1)[0].tobytes()) if may_change else None)


def test_maps_share_stored_blocks_which_are_removed_with_the_data(place: Kind) -> None:
    coded, other = blocks(), blocks()
    first = place.store.acquire_blocks(make_job_spec(coded))
    check(place, first, coded)
    place.store.release_blocks(first)
    assert place.store.acquire_blocks(make_job_spec(coded)) is first
    assert place.store.acquire_blocks(make_job_spec(other)) is not first
    assert first.get_task_key(coded, 1) != first.get_task_key(coded, 2)
    # The driver's keys contain digests of the bytes, and both sets consist of equal blocks.
    other_key = place.store.acquire_blocks(make_job_spec(other)).get_task_key(other, 1)
    assert (first.get_task_key(coded, 1) == other_key) is (place.kind == "driver")
    check(place, place.store.acquire_blocks(make_job_spec(other)), other)
    del coded
    gc.collect()
    place.store.acquire_blocks(make_job_spec(other))
    place.store.collect_garbage()
    assert place.left() == (0 if place.kind == "driver" else N)


def test_task_keys_are_never_reused_for_other_blocks(place: Kind) -> None:
    names = list[Any]()
    for _ in range(20):
        coded = blocks()
        stored = place.store.acquire_blocks(make_job_spec(coded))
        names.append(stored.get_task_key(coded, 0))
        assert place.store.get_live_block_set_ids() == (stored.block_set_id,)
        assert (stored.cache_id is None) == (place.kind == "bucket")  # objects are identified by checksums
        place.store.release_blocks(stored)
        del coded  # the next blocks often get the same memory address
    assert len(set(names)) == (1 if place.kind == "driver" else 20)  # All sets consist of equal blocks.


def test_the_driver_names_blocks_by_their_bytes() -> None:
    store, data = DriverBlockStore("prefix"), DATA.copy()

    def keys() -> list[Any]:
        coded = CodedBlocks(*cut_blocks_and_choose_code(data, CodeOptions(K, N)))
        stored = store.acquire_blocks(make_job_spec(coded))
        stored.publish_in_parallel(coded, range(N))
        for task in range(N):
            [part] = stored.publish_block(coded, task).segments
            assert stored.read_component(coded, part.key) == coded.block_leaves(task)[0].tobytes()
        return [stored.get_task_key(coded, task) for task in range(N)]

    before = keys()
    assert keys() == before
    assert len(set(before)) == N
    data[0, 0] += 1.0  # in place
    assert [one == other for one, other in zip(before, keys())] == [task in range(1, K) for task in range(N)]
    other_store = DriverBlockStore("prefix").acquire_blocks(make_job_spec(coded := blocks()))
    assert other_store.get_task_key(coded, 1) != before[1]  # The digests have a secret key.


@pytest.mark.parametrize("n_kept", [0, 2])
def test_workers_may_keep_the_latest_sets_of_blocks_that_are_gone(n_kept: int) -> None:
    store = DriverBlockStore("prefix")
    for count in range(5):
        coded = blocks()
        stored = store.acquire_blocks(make_job_spec(coded))
        stored.publish_in_parallel(coded, range(N))
        store.max_removed_bytes = n_kept * stored.n_bytes
        live_ids = store.get_live_block_set_ids()
        assert live_ids == tuple(range(max(0, count - n_kept), count + 1))
        store.release_blocks(stored)
        del coded


@pytest.mark.parametrize("key", [None, Encryption.create(bytes(range(32)))])
def test_damaged_block_is_stored_again(place: Kind, key: Encryption | None) -> None:
    coded = blocks()
    stored = place.store.acquire_blocks(make_job_spec(coded, key))
    check(place, stored, coded)
    for key in place.storage.objects:
        place.storage.objects[key] = b"wrong"
    with ExitStack() as stack:
        paths = [path for path in place.folder.rglob("*") if path.is_file()]
        mapped = [stack.enter_context(path.open("rb")) for path in paths]
        for path in paths:
            path.write_bytes(b"cut")
        for task in range(N):
            stored.invalidate_if_damaged(coded, task, failure("damaged"))
        check(place, stored, coded)
        # A file must not change while readers have it open.
        assert [file.read() for file in mapped] == [b"cut"] * len(paths)
    before = [stored.get_pickled_block_ref(coded, task) for task in range(N)]
    for task in range(N):
        stored.invalidate_if_damaged(coded, task, failure("lost"))
        assert stored.get_pickled_block_ref(coded, task) is before[task]


def test_blocks_are_stored_and_sent_encrypted_with_a_key(place: Kind) -> None:
    coded, (key, other) = blocks(), (Encryption.create(bytes(range(32))) for _ in range(2))
    stored = place.store.acquire_blocks(make_job_spec(coded, key))
    assert place.store.acquire_blocks(make_job_spec(coded, key)) is stored
    assert place.store.acquire_blocks(make_job_spec(coded, other)) is not stored
    stored.publish_in_parallel(coded, range(N))
    check(place, stored, coded)
    for task in range(N):
        [part] = stored.publish_block(coded, task).segments
        lying = part._replace(size=part.size + CIPHERTEXT_OVERHEAD_BYTES)
        source = stored.publish_block(coded, task).location.with_encryption(None)
        data = stored.read_component(coded, part.key) if place.kind == "driver" else place.read(source, lying)
        assert len(data) == part.size + CIPHERTEXT_OVERHEAD_BYTES
        assert not any(row.tobytes() in bytes(data) for row in coded.block_leaves(task)[0])
        assert part.crc32 in (None, zlib.crc32(data))  # A checksum of encrypted bytes reveals nothing.
        # Readers need no module of polarmap.
        ticket = to_plain_tuple(
            make_job_spec(coded, key).make_task_request(task, 0, stored.publish_block(coded, task))
        )
        for sent in (stored.get_pickled_block_ref(coded, task), pickle.dumps(ticket)):
            assert b"polarmap.worker" not in sent
    small = blocks(6)
    assert (
        place.store.acquire_blocks(make_job_spec(small, key)).publish_block(small, 0).location is not INLINE
    )


def test_small_blocks_are_sent_with_tasks_instead_of_files(place: Kind) -> None:
    coded = blocks(6)
    stored = place.store.acquire_blocks(make_job_spec(coded))
    stored.publish_in_parallel(coded, range(N))
    check(place, stored, coded)
    is_sent = stored.publish_block(coded, 0).location == INLINE
    assert is_sent == (place.kind in ("memory", "disk"))
    assert (stored.key_prefixes == []) is is_sent  # blocks that are sent with tasks occupy no storage


def test_stored_arrays_are_not_copied_and_identified_by_their_segments(place: Kind) -> None:
    plain_blocks, source = blocks(), BucketLocation("theirs", "s3")
    parts = tuple((Segment(f"x{task}", 8, task),) for task in range(N))

    def stored_array() -> StoredCodedBlocks:
        manifest = Manifest("a", (plain_blocks.code.k,), np.dtype("<f8"), plain_blocks.code, parts)
        stored = StoredCodedBlocks(SimpleNamespace(name="theirs"), manifest)  # type: ignore[arg-type]
        stored.location = source
        return stored

    first, second = stored_array(), stored_array()
    stored = place.store.acquire_blocks(make_job_spec(first))
    stored.publish_in_parallel(first, range(N))
    for task in range(N):
        assert stored.publish_block(first, task) == (source, parts[task], (("<f8", (1,)),), None)
        assert stored.get_task_key(first, task) == place.store.acquire_blocks(
            make_job_spec(second)
        ).get_task_key(second, task)
    stored.invalidate_if_damaged(first, 0, failure("damaged"))
    assert place.left() == 0


def test_shared_components_are_stored_once(tmp_path: Path) -> None:
    class Pairs(UncodedBlocks):
        def block_components(self, task: int) -> Any:
            return task, (task + 1) % 3

    place = Kind("disk", tmp_path)
    coded = Pairs([[np.full(ROWS, float(number))] for number in range(3)], (tuple, (), (("array",),) * 2))
    stored = place.store.acquire_blocks(make_job_spec(coded))
    for task in range(3):
        [actual] = place.load(stored, coded, task)
        np.testing.assert_array_equal(actual, coded.block_leaves(task))
    assert files(tmp_path) == {"0", "1", "2"}
    assert stored.n_bytes >= 3 * 8 * ROWS


# --- folders -----------------------------------------------------------------------------------


def test_least_recently_used_blocks_are_evicted(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    first, second, third = [
        UncodedBlocks([[DATA[:ROWS] + task] for task in range(3)], ("array",)) for _ in range(3)
    ]
    store = MemoryMappedBlockStore(tmp_path / "memory", tmp_path / "disk", 2 * 3 * DATA[:ROWS].nbytes)
    for coded in (first, second):
        stored = store.acquire_blocks(make_job_spec(coded))
        stored.publish_block(coded, 0)
        store.release_blocks(stored)
    in_use, stored = store.acquire_blocks(make_job_spec(second)), store.acquire_blocks(make_job_spec(third))
    store.collect_garbage()
    stored.publish_block(third, 1)
    assert sorted(path.name for path in (tmp_path / "memory").rglob("?")) == ["0", "1"]
    on_disk = store.acquire_blocks(
        make_job_spec(first)
    )  # the other two block sets are in use, so memory is full
    on_disk.publish_block(first, 2)
    assert files(tmp_path / "disk") == {"2"}
    assert store.acquire_blocks(make_job_spec(second)) is in_use


def test_concurrent_maps_do_not_reserve_the_same_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory").mkdir()
    first, second = (UncodedBlocks([[DATA[:ROWS]]], ("array",)) for _ in range(2))
    store = MemoryMappedBlockStore(tmp_path / "memory", tmp_path / "disk", DATA[:ROWS].nbytes)
    stored, other = store.acquire_blocks(make_job_spec(first)), store.acquire_blocks(make_job_spec(second))

    def meanwhile() -> None:
        monkeypatch.undo()
        other.publish_block(second, 0)

    monkeypatch.setattr(store, "collect_garbage", meanwhile)
    stored.publish_block(first, 0)
    assert files(tmp_path / "memory") == files(tmp_path / "disk") == {"0"}


# --- buckets -----------------------------------------------------------------------------------


def test_refused_upload_raises_one_clear_error() -> None:
    class Refusing(DictStorage):
        def put_object(self, bucket: str, key: str, data: bytes) -> None:
            raise PermissionError("AccessDenied")

    coded = blocks()
    with pytest.raises(ExecutorError, match="stored in bucket 'b': PermissionError: AccessDenied"):
        BucketBlockStore(Refusing(), "prefix").acquire_blocks(make_job_spec(coded)).publish_in_parallel(
            coded, [0]
        )


def test_outage_during_garbage_collection_does_not_stop_maps() -> None:
    class Away(DictStorage):
        is_away = False

        def list_keys(self, bucket: str, prefix: str) -> list[str]:
            if self.is_away:
                raise ConnectionError("away")
            return super().list_keys(bucket, prefix)

    storage = Away()
    store = BucketBlockStore(storage, "prefix")
    for storage.is_away in (False, True, True, False):
        coded = blocks()
        stored = store.acquire_blocks(make_job_spec(coded))
        store.collect_garbage()
        stored.publish_in_parallel(coded, [0])  # The previous job is over.
    assert len(storage.objects) == 1


def test_unpublished_components_cannot_be_read() -> None:
    coded = blocks()
    stored = DriverBlockStore("prefix").acquire_blocks(make_job_spec(coded))
    for key, error in (("prefix/blocks/0/x", ValueError), ("prefix/blocks/0/99", LookupError)):
        with pytest.raises(error):
            stored.read_component(coded, key)


def test_workers_can_only_read_published_segments_of_a_user_store() -> None:
    class Stored(UncodedBlocks):
        location = StoreLocation("mine")

        def block_segments(self, task: int) -> tuple[Segment, ...]:
            return (Segment("key", 8, 7, 16),)

    coded = Stored([[np.zeros(1)]], ("array",))
    stored = DriverBlockStore("prefix").acquire_blocks(make_job_spec(coded))
    assert stored.cache_id is None  # another array may later be stored under the same key
    with pytest.raises(LookupError):
        stored.check_segment_is_referenced(Segment("key", 8, None, 16))
    stored.publish_block(coded, 0)
    stored.check_segment_is_referenced(Segment("key", 8, None, 16))
    stored.check_segment_is_referenced(Segment("key", 8 + CIPHERTEXT_OVERHEAD_BYTES, None, 16))
    for asked in (Segment("key", 8, None, 0), Segment("key", 100, None, 16), Segment("other", 8, None, 16)):
        with pytest.raises(LookupError):
            stored.check_segment_is_referenced(asked)


# --- blocks that the driver sends --------------------------------------------------------------


@pytest.mark.parametrize("has_key", [False, True])
def test_blocks_are_joined_and_encrypted_only_on_request(
    has_key: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = [np.random.default_rng(seed).standard_normal(1 << 18) for seed in (0, 1)]
    coded = UncodedBlocks([leaves], (tuple, (), (("array",),) * 2))
    encrypted = Counter[str]()
    encrypt = encryption.encrypt
    monkeypatch.setattr(
        encryption,
        "encrypt",
        lambda key, name, data: encrypted.update([name]) or encrypt(key, name, data),
    )
    key = Encryption.create(bytes(range(32))) if has_key else None
    stored = DriverBlockStore("prefix").acquire_blocks(make_job_spec(coded, key))
    tracemalloc.start()
    try:
        [part] = stored.publish_block(coded, 0).segments
        assert tracemalloc.get_traced_memory()[1] < leaves[0].nbytes
    finally:
        tracemalloc.stop()
    assert not encrypted
    data = b"".join(leaf.tobytes() for leaf in leaves)
    assert (part.size, part.crc32) == (len(data), None)
    assert (stored.read_component(coded, part.key) == data) is not has_key
    assert encrypted.total() == has_key
