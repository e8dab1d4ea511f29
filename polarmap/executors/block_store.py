"""Where workers read the blocks of maps: each piece is stored once, for as long as the blocks live."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from polarmap.errors import ExecutorError
from polarmap.executors.interface import Failure, JobSpec, TaskBlocks
from polarmap.executors.transfers import map_in_parallel
from polarmap.worker.encryption import Encryption, encrypt_if_location_requires
from polarmap.worker.locations import INLINE, DriverLocation, Location, PrivateFolderLocation
from polarmap.worker.private_files import write_private_file
from polarmap.worker.pytree import count_layout_bytes
from polarmap.worker.segments import Segment
from polarmap.worker.task_records import BlockRef

INLINE_BLOCK_BYTES = 1 << 14  # smaller blocks travel with their tasks: a file takes longer
FREE_SPACE_DIVISOR = 2  # of the memory that is free in a folder, one such part may be used
MAX_PARALLEL_WRITES = 16  # objects written at once
NETWORK_BYTES_PER_SECOND = 1e8  # of blocks in a second over a usual network


class PublishedBlocks:
    """The pieces of some coded blocks, and what workers are told of them; those in storage stay there.

    Attributes
    ----------
    blocks_weakref : weak reference to the blocks
    key_prefixes : list of str
        What the keys of its pieces begin with, once one is stored: the first unless there is no room.
    n_bytes : int
        That the pieces weigh when all are stored, at most; 0 while none is.
    use_count : int
        Maps that use it now.
    block_set_id : int
        Of these blocks, which no others of the store have.
    cache_id : int or None
        The number by which workers keep their bytes until these blocks are gone; None: the bytes are also
        others'.
    """

    def __init__(
        self, blocks: TaskBlocks, location: Location, block_store: BlockStore, block_set_id: int
    ) -> None:
        self.blocks_weakref, self._source_location = weakref.ref(blocks), blocks.location
        self._location, self._block_store, self.block_set_id = location, block_store, block_set_id
        self._is_inline = self._source_location is not None and self._source_location.is_inline
        self.cache_id = block_set_id if (self._source_location or location).is_owned_by_blocks else None
        self.key_prefixes, self.n_bytes, self.use_count = list[str](), 0, 0
        self._lock = threading.RLock()
        tasks = range(blocks.n if self._source_location is None else 0)
        self._unpublished = {component for task in tasks for component in blocks.block_components(task)}
        self._segments: dict[int, Segment] = {}  # of pieces
        self._pickled_refs: dict[int, bytes] = {}  # of tasks

    def get_task_key(self, blocks: TaskBlocks, task: int) -> Hashable:
        """What means the same task to every map of the same blocks."""
        if self._source_location is None or self._is_inline:
            return self.block_set_id, task
        return self._pickled_refs.get(task) or self.get_pickled_block_ref(blocks, task)

    def estimate_transfer_seconds(self, blocks: TaskBlocks) -> float:
        """About how long a block takes to a worker that does not have it; 0 where it is a file here."""
        is_local = (self._source_location or self._location).is_local
        return 0.0 if is_local else count_layout_bytes(blocks.block_layout(0)) / NETWORK_BYTES_PER_SECOND

    def get_pickled_block_ref(self, blocks: TaskBlocks, task: int) -> bytes:
        """What the worker of a task reads, as it is told: the fields of a `BlockRef`, pickled."""
        with self._lock:
            pickled_ref = self._pickled_refs.get(task)
            if pickled_ref is None:
                location, segments, *other_fields = self.publish_block(blocks, task)
                fields = location.fields, tuple(map(tuple, segments)), *other_fields
                pickled_ref = pickle.dumps(fields, pickle.HIGHEST_PROTOCOL)
                if not self._is_inline:  # inline blocks come and go
                    self._pickled_refs[task] = pickled_ref
            return pickled_ref

    def publish_in_parallel(self, blocks: TaskBlocks, tasks: Sequence[int], deadline: float = inf) -> None:
        """Store what is missing of the blocks of these tasks, where many at once take no longer than one.

        Others are stored when they are asked for, so that the first worker begins at once. TimeoutError at
        the deadline, on the monotonic clock: a storage may hang.
        """
        if self._source_location is not None or not self._block_store.writes_in_parallel:
            return
        with self._lock:
            components = dict.fromkeys(item for task in tasks for item in blocks.block_components(task))
            new_components = [component for component in components if component not in self._segments]
            if not new_components:
                return
            blocks.block_leaves(max(tasks))  # encode before anything is stored: its errors are the caller's
            self._reserve_block_space(blocks)
            store = partial(self._store_component, blocks)
            new_segments = map_in_parallel(store, new_components, MAX_PARALLEL_WRITES, deadline)
            self._segments |= zip(new_components, new_segments)

    def publish_block(self, blocks: TaskBlocks, task: int) -> BlockRef:
        """What the worker of a task gets; stored now if it is not yet."""
        with self._lock:
            if self._source_location is not None:
                return make_block_ref(blocks, task)
            return self._publish_new_block(blocks, task)

    def read_component(self, blocks: TaskBlocks, segment_key: str) -> bytes | memoryview:
        """Return the bytes of a piece as a worker gets them that asks for this key.

        A piece that is one array is not copied: many workers may be sent theirs at the same time.
        """
        buffers = _get_component_buffers(blocks, int(segment_key.rpartition("/")[2]))
        stored_buffers = encrypt_if_location_requires(
            self._location, Segment(segment_key, sum(map(len, buffers))), *buffers
        )
        return stored_buffers[0] if len(stored_buffers) == 1 else b"".join(stored_buffers)

    def invalidate_if_damaged(self, blocks: TaskBlocks, task: int, failure: Failure) -> None:
        """A block that its worker found damaged is stored anew when it is asked for again."""
        if failure.kind == "damaged":
            with self._lock:
                for component in blocks.block_components(task):
                    self._segments.pop(component, None)
                self._pickled_refs.clear()

    def _publish_new_block(self, blocks: TaskBlocks, task: int) -> BlockRef:
        layout, components = blocks.block_layout(task), blocks.block_components(task)
        if (
            self._block_store.is_memory_mapped
            and not self._location.encryption
            and count_layout_bytes(layout) < INLINE_BLOCK_BYTES
        ):
            block_ref = _make_inline_block_ref(blocks, task)
        else:
            self._reserve_block_space(blocks)
            for component in components:
                if component not in self._segments:
                    self._segments[component] = self._store_component(blocks, component)
            segments = tuple(self._segments[component] for component in components)
            block_ref = BlockRef(self._location, segments, layout)
        self._unpublished.difference_update(components)
        if not self._unpublished and self._block_store.holds_bytes:
            blocks.release_memory()
        return block_ref

    def _reserve_block_space(self, blocks: TaskBlocks) -> None:
        """Let there be roots, from the first piece on: blocks that all travel with their tasks have none."""
        if self.key_prefixes:
            return
        block_store = self._block_store
        task_of_component = {
            component: task
            for task in reversed(range(blocks.n))
            for component in blocks.block_components(task)
        }
        n_bytes = sum(
            count_layout_bytes(blocks.block_layout(task)) for task in set(task_of_component.values())
        )
        with block_store.lock:  # until others can see that the room is taken
            self.key_prefixes = block_store.allocate_key_prefixes(self.block_set_id, n_bytes)
            self.n_bytes = n_bytes
        if block_store.is_memory_mapped:
            weakref.finalize(
                blocks,
                _remove_prefixes_if_store_alive,
                weakref.WeakMethod(block_store.remove_segments_below),
                self.key_prefixes,
            ).atexit = False
            block_store.collect_garbage()  # at once: what has made way is in memory

    def _store_component(self, blocks: TaskBlocks, component: int) -> Segment:
        buffers, last_error = _get_component_buffers(blocks, component), OSError()
        for key_prefix in self.key_prefixes:
            segment = Segment(f"{key_prefix}{component}", sum(map(len, buffers)))
            if not self._block_store.holds_bytes:
                return segment
            try:
                stored_buffers = encrypt_if_location_requires(self._location, segment, *buffers)
                crc32 = self._block_store.put_segment(segment.key, stored_buffers)
                return segment._replace(crc32=crc32)
            except OSError as error:
                last_error = error
        raise ExecutorError(f"no room for what workers are to read: {last_error}") from last_error


def _remove_prefixes_if_store_alive(
    remove_weakref: weakref.WeakMethod[Callable[[Sequence[str]], None]], key_prefixes: Sequence[str]
) -> None:
    """Remove what is below roots, unless the store is gone, and with it all that it had."""
    remove = remove_weakref()
    if remove is not None:
        remove(key_prefixes)


def make_block_ref(blocks: TaskBlocks, task: int) -> BlockRef:
    """What the worker of a task gets of blocks that lie in storage already, or travel in messages."""
    assert blocks.location is not None
    if blocks.location.is_inline:
        return _make_inline_block_ref(blocks, task)
    return BlockRef(blocks.location, blocks.block_segments(task), blocks.block_layout(task))


def _make_inline_block_ref(blocks: TaskBlocks, task: int) -> BlockRef:
    """The block of a task as it travels with it."""
    data = b"".join(
        buffer
        for component in blocks.block_components(task)
        for buffer in _get_component_buffers(blocks, component)
    )
    return BlockRef(INLINE, (), blocks.block_layout(task), data)


def _get_component_buffers(blocks: TaskBlocks, component: int) -> list[Any]:
    """The bytes of the leaves of a piece, without copies of those whose memory is in one run."""
    leaves = map(np.ascontiguousarray, blocks.component_leaves(component))
    return [leaf.reshape(-1).view(np.uint8).data if leaf.size and leaf.itemsize else b"" for leaf in leaves]


class BlockStore:
    """What workers read of all blocks of a pool or a run: here they ask the driver. Others store the bytes.

    These lie below roots: the first unless there is no room.

    location : where workers find them.
    holds_bytes : whether they lie there, so that the blocks may let go of those that can be made again.
    writes_in_parallel : whether many are stored in the time of one.
    is_memory_mapped : whether workers map them, without checksums; small ones travel with their tasks, as
        that takes less time, and all are removed at once when the blocks are gone.
    garbage_prefixes : what the keys of all begin with that is to be removed.
    """

    holds_bytes = writes_in_parallel = is_memory_mapped = False

    def __init__(self, key_prefix: str) -> None:
        self.location: Location = DriverLocation(key_prefix)
        self._key_prefix = key_prefix
        self.lock = threading.RLock()  # a run that is closed by its destructor may interrupt anything
        self._garbage_lock = threading.Lock()
        self.next_block_set_id = 0  # of the next blocks that come
        # By the identity of the blocks and the encryption, of which each map with a key has its own. The set
        # that was used last comes last.
        self._published: dict[tuple[int, Encryption | None], PublishedBlocks] = {}
        self.garbage_prefixes: list[str] = []

    def acquire_blocks(self, job_spec: JobSpec) -> PublishedBlocks:
        """What is stored of the blocks of a map, in use until `release_blocks` is called."""
        blocks = job_spec.blocks
        with self.lock:
            published_sets = self._published.items()
            self._evict_block_sets([key for key, item in published_sets if item.blocks_weakref() is None])
            set_key = id(blocks), job_spec.encryption
            published_blocks = self._published.pop(set_key, None)
            if published_blocks is None:
                location = self.location
                if job_spec.encryption is not None:
                    location = location.with_encryption(job_spec.encryption)
                published_blocks = PublishedBlocks(blocks, location, self, self.next_block_set_id)
                self.next_block_set_id += 1
            self._published[set_key] = published_blocks
            published_blocks.use_count += 1
            return published_blocks

    def get_live_block_set_ids(self) -> tuple[int, ...]:
        """The numbers of all blocks that have not gone."""
        with self.lock:
            return tuple([published.block_set_id for published in self._published.values()])

    def release_blocks(self, published_blocks: PublishedBlocks) -> None:
        """A map does not need them any more; later ones may."""
        with self.lock:
            published_blocks.use_count -= 1

    def allocate_key_prefixes(self, block_set_id: int, n_bytes: int) -> list[str]:
        """For the pieces of new blocks of this size, while `lock` is held."""
        return [f"{self._key_prefix}/blocks/{block_set_id}/"]

    def put_segment(self, segment_key: str, buffers: Sequence[Any]) -> int | None:
        """Store bytes; their checksum, if workers are to compare it. OSError: no room is below this root."""
        raise NotImplementedError

    def remove_segments_below(self, key_prefixes: Sequence[str]) -> None:
        """Remove all below roots."""

    def collect_garbage(self) -> None:
        """Remove what nobody needs, with no lock held that other maps wait for, as a storage may hang.

        What one that is away keeps goes later, or at the end.
        """
        if not self._garbage_lock.acquire(blocking=False):  # the storage may not answer whoever does
            return
        try:
            with contextlib.suppress(Exception):
                while self.garbage_prefixes:
                    self.remove_segments_below(self.garbage_prefixes[:1])
                    del self.garbage_prefixes[0]
        finally:
            self._garbage_lock.release()

    def _evict_block_sets(self, set_keys: Iterable[tuple[int, Encryption | None]]) -> None:
        self.garbage_prefixes += [
            key_prefix for set_key in set_keys for key_prefix in self._published.pop(set_key).key_prefixes
        ]


class MemoryMappedBlockStore(BlockStore):
    """Files that workers on this machine map: in memory where there is room for them, else on disk.

    memory_folder : a folder whose files are in memory; None if there is none.
    disk_folder : another one.
    max_memory_bytes : bytes that the files in memory may take together; those that were used least recently
        go.
    """

    holds_bytes = is_memory_mapped = True

    def __init__(self, memory_folder: Path | None, disk_folder: Path, max_memory_bytes: int) -> None:
        super().__init__("")
        self.location, self._owner_pid = PrivateFolderLocation("/"), os.getpid()
        self._memory_folder = memory_folder
        self._disk_folder = disk_folder
        self._max_memory_bytes = max_memory_bytes

    def allocate_key_prefixes(self, block_set_id: int, n_bytes: int) -> list[str]:
        """A folder in memory, if it has room when what is not in use has made way, and one on disk."""
        folders = [self._disk_folder]
        if self._memory_folder is not None and self._try_free_memory(self._memory_folder, n_bytes):
            folders.insert(0, self._memory_folder)
        return [f"{folder}/blocks-{block_set_id}/".lstrip("/") for folder in folders]

    def put_segment(self, segment_key: str, buffers: Sequence[Any]) -> None:
        """A new file: one that is there is not written into, as a worker may have mapped it."""
        write_private_file(os.path.join("/", segment_key), *buffers)

    def remove_segments_below(self, key_prefixes: Sequence[str]) -> None:
        """The folders; not by a process that was forked of the one they belong to."""
        for key_prefix in key_prefixes if os.getpid() == self._owner_pid else ():
            shutil.rmtree(os.path.join("/", key_prefix), ignore_errors=True)

    def _try_free_memory(self, memory_folder: Path, n_bytes: int) -> bool:
        try:
            file_system = os.statvfs(memory_folder)
        except OSError:
            return False
        n_free_bytes = file_system.f_bavail * file_system.f_frsize
        if n_bytes > min(self._max_memory_bytes, n_free_bytes // FREE_SPACE_DIVISOR):
            return False
        published_in_memory = {
            key: published for key, published in self._published.items() if len(published.key_prefixes) > 1
        }
        n_used_bytes = sum(published.n_bytes for published in published_in_memory.values())
        evictable_keys = []
        for set_key, published in published_in_memory.items():
            if n_used_bytes + n_bytes > self._max_memory_bytes and not published.use_count:
                evictable_keys.append(set_key)
                n_used_bytes -= published.n_bytes
        self._evict_block_sets(evictable_keys)
        return n_used_bytes + n_bytes <= self._max_memory_bytes
