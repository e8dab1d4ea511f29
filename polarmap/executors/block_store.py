"""Publish the blocks of jobs to workers: in shared memory, on disk, in a bucket, or on request to the driver.

Blocks consist of components. Each is stored once, for as long as its blocks live.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import shutil
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from hashlib import blake2b
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from polarmap.errors import ExecutorError
from polarmap.executors.interface import Failure, FailureKind, JobSpec, TaskBlocks
from polarmap.worker.encryption import Encryption, compute_encrypted_size, encrypt_if_location_requires
from polarmap.worker.environment import count_available_cores
from polarmap.worker.locations import INLINE, DriverLocation, Location, PrivateFolderLocation
from polarmap.worker.private_files import write_private_file
from polarmap.worker.pytree import count_layout_bytes
from polarmap.worker.segments import Segment
from polarmap.worker.task_records import BlockRef

INLINE_BLOCK_BYTES = 1 << 14  # smaller blocks are sent with their tasks, which is faster than a file
FREE_SPACE_DIVISOR = 2  # blocks may use 1/2 of the free space of a folder in memory
DIGEST_BYTES = 16  # two different blocks have the same digest with a probability of 2**-128
MAX_REMOVED_SETS = 64  # removed sets whose blocks workers may keep; their ids are sent with every job
NETWORK_BYTES_PER_SECOND = 1e8  # assumed network bandwidth

BlockSetKey = tuple[int, Encryption | None]  # identity of task blocks, and how they are stored


class PublishedBlocks:
    """References to one set of task blocks, shared by all jobs on the same blocks.

    Components are stored in the block store when a task first needs them. Blocks that already have a location
    are referenced there and not copied.

    Attributes
    ----------
    blocks_weakref : weakref.ref
        The blocks.
    key_prefixes : list of str
        Prefixes of the keys of stored components, once one is stored. The first is used while it has room.
    n_bytes : int
        Upper bound of the bytes of all components; 0 while none is stored.
    use_count : int
        Open sessions that use the set; it is evicted to make room only at 0.
    block_set_id : int
        Identifies the set in its block store.
    cache_id : int or None
        Id under which workers cache the bytes until the set is removed; None if other sets may share the
        bytes.
    """

    def __init__(
        self, blocks: TaskBlocks, location: Location, block_store: BlockStore, block_set_id: int
    ) -> None:
        self.blocks_weakref, self._source_location = weakref.ref(blocks), blocks.location
        self._location, self._block_store, self.block_set_id = location, block_store, block_set_id
        self._is_inline = self._source_location is not None and self._source_location.is_inline
        # The same block of a later set has the same reference, and workers may have it cached.
        has_stable_refs = self._source_location is not None or block_store.is_content_addressed
        self._is_identified_by_ref = has_stable_refs and not self._is_inline
        self.cache_id = block_set_id if (self._source_location or location).is_owned_by_blocks else None
        self.key_prefixes, self.n_bytes, self.use_count = list[str](), 0, 0
        self._lock = threading.RLock()
        tasks = range(blocks.n if self._source_location is None else 0)
        self._unpublished = {component for task in tasks for component in blocks.block_components(task)}
        self._segments: dict[int, Segment] = {}  # by component
        self._pickled_refs: dict[int, bytes] = {}  # by task
        # Sizes by key and offset, of segments that workers may ask for in a store of the user's own.
        self._referenced_ranges: dict[tuple[str, int], int] = {}

    def get_task_key(self, blocks: TaskBlocks, task: int) -> Hashable:
        """Return a key that is equal for the same block in every job."""
        if not self._is_identified_by_ref:
            return self.block_set_id, task
        return self._pickled_refs.get(task) or self.get_pickled_block_ref(blocks, task)

    def estimate_transfer_seconds(self, blocks: TaskBlocks) -> float:
        """Estimate the seconds until a worker has a block that it has not cached; 0 on this machine."""
        is_local = (self._source_location or self._location).is_local
        return 0.0 if is_local else count_layout_bytes(blocks.block_layout(0)) / NETWORK_BYTES_PER_SECOND

    def get_pickled_block_ref(self, blocks: TaskBlocks, task: int) -> bytes:
        """Return the pickled fields of the `BlockRef` of a task, and store its block if it is not stored."""
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
        """Store the missing components of some tasks, if the store takes several at a time.

        Other stores write a component when its first task is sent, so that the first worker starts at once.
        Raises TimeoutError at `deadline`, on the monotonic clock: a storage may hang.
        """
        if self._source_location is not None or not self._block_store.max_parallel_writes:
            return
        from polarmap.executors.transfers import map_in_parallel

        with self._lock:
            components = dict.fromkeys(item for task in tasks for item in blocks.block_components(task))
            new_components = [component for component in components if component not in self._segments]
            if not new_components:
                return
            blocks.block_leaves(max(tasks))  # Encode first: errors of encoding are not errors of the store.
            self._reserve_block_space(blocks)
            store = partial(self._store_component, blocks)
            n_threads = self._block_store.max_parallel_writes
            new_segments = map_in_parallel(store, new_components, n_threads, deadline)
            self._segments |= zip(new_components, new_segments)

    def publish_block(self, blocks: TaskBlocks, task: int) -> BlockRef:
        """Return what the worker of a task needs to read its block, which is stored first if need be."""
        with self._lock:
            if self._source_location is None:
                return self._publish_new_block(blocks, task)
            block_ref = make_block_ref(blocks, task)
            if self._source_location.is_sent_by_driver:
                self._referenced_ranges |= {
                    (segment.key, segment.offset): segment.size for segment in block_ref.segments
                }
            return block_ref

    def read_component(self, blocks: TaskBlocks, segment_key: str) -> bytes | memoryview:
        """Return the bytes of a component for a worker that asks the driver for the key of its segment.

        A component of one array is not copied: many workers may be sent theirs at the same time.
        """
        buffers = _get_component_buffers(blocks, int(segment_key.rpartition("/")[2]))
        stored_buffers = encrypt_if_location_requires(
            self._location, Segment(segment_key, sum(map(len, buffers))), *buffers
        )
        return stored_buffers[0] if len(stored_buffers) == 1 else b"".join(stored_buffers)

    def check_was_referenced(self, requested: Segment) -> None:
        """Raise LookupError unless the requested segment was referenced in a task of a worker."""
        n_bytes = self._referenced_ranges[requested.key, requested.offset]
        if requested.size > compute_encrypted_size(n_bytes):
            raise LookupError(requested)

    def invalidate_if_damaged(self, blocks: TaskBlocks, task: int, failure: Failure) -> None:
        """Discard the stored block of a task if it is damaged, so that it is stored again when needed."""
        if failure.kind == FailureKind.DAMAGED:
            with self._lock:
                for component in blocks.block_components(task):
                    self._segments.pop(component, None)
                self._pickled_refs.clear()

    def _publish_new_block(self, blocks: TaskBlocks, task: int) -> BlockRef:
        layout, components = blocks.block_layout(task), blocks.block_components(task)
        if (
            # Sending a small block with its task is faster than writing a file.
            self._location.is_memory_mapped
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
        """Reserve room in the store for all components. Called before the first component is stored."""
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
        with block_store.lock:  # held until other sets can see the reserved room
            self.key_prefixes = block_store.allocate_key_prefixes(self.block_set_id, n_bytes)
            self.n_bytes = n_bytes
        if self._location.is_memory_mapped:
            weakref.finalize(
                blocks,
                _remove_prefixes_if_store_alive,
                weakref.WeakMethod(block_store.remove_segments_below),
                self.key_prefixes,
            ).atexit = False
            block_store.collect_garbage()  # frees the memory of evicted sets

    def _store_component(self, blocks: TaskBlocks, component: int) -> Segment:
        buffers, last_error = _get_component_buffers(blocks, component), OSError()
        for key_prefix in self.key_prefixes:
            segment_key = self._block_store.make_segment_key(key_prefix, component, buffers)
            segment = Segment(segment_key, sum(map(len, buffers)))
            if not self._block_store.holds_bytes:
                return segment
            try:
                stored_buffers = encrypt_if_location_requires(self._location, segment, *buffers)
                crc32 = self._block_store.put_segment(segment.key, stored_buffers)
                return segment._replace(crc32=crc32)
            except OSError as error:
                last_error = error
        raise ExecutorError(f"the block cannot be stored for the workers: {last_error}") from last_error


def _remove_prefixes_if_store_alive(
    remove_weakref: weakref.WeakMethod[Callable[[Sequence[str]], None]], key_prefixes: Sequence[str]
) -> None:
    """Remove stored components. Do nothing if the block store was deleted, which removes all its files."""
    remove = remove_weakref()
    if remove is not None:
        remove(key_prefixes)


def make_block_ref(blocks: TaskBlocks, task: int) -> BlockRef:
    """Return what the worker of a task needs to read blocks that have a location."""
    assert blocks.location is not None
    if blocks.location.is_inline:
        return _make_inline_block_ref(blocks, task)
    return BlockRef(blocks.location, blocks.block_segments(task), blocks.block_layout(task))


def _make_inline_block_ref(blocks: TaskBlocks, task: int) -> BlockRef:
    """Return the block of a task with its bytes."""
    data = b"".join(
        buffer
        for component in blocks.block_components(task)
        for buffer in _get_component_buffers(blocks, component)
    )
    return BlockRef(INLINE, (), blocks.block_layout(task), data)


def _get_component_buffers(blocks: TaskBlocks, component: int) -> list[Any]:
    """Return the bytes of each leaf of a component; contiguous leaves are not copied."""
    leaves = map(np.ascontiguousarray, blocks.component_leaves(component))
    return [leaf.reshape(-1).view(np.uint8).data if leaf.size and leaf.itemsize else b"" for leaf in leaves]


class BlockStore(ABC):
    """A store from which workers read the blocks of a pool or a session.

    Attributes
    ----------
    location : Location
        Where workers read segments.
    holds_bytes : bool
        True if segments are copies, so that the task blocks can free memory.
    is_content_addressed : bool
        True if the keys of segments contain a digest of their bytes, so that equal components have equal keys
        in all sets of blocks.
    max_parallel_writes : int
        The number of segments that can be written at the same time; 0 if it is better to write each segment
        when its first task is sent.
    max_removed_bytes : int
        The number of bytes of removed sets of blocks that workers may keep in their caches, for later sets
        with equal blocks. 0 for stores that are not content-addressed.
    garbage_prefixes : list of str
        The key prefixes of segments that can be removed.
    """

    location: Location
    holds_bytes = is_content_addressed = False
    max_parallel_writes = max_removed_bytes = 0

    def __init__(self) -> None:
        self.lock = threading.RLock()  # reentrant: a destructor may close a session at any point
        self._garbage_lock = threading.Lock()
        self.next_block_set_id = 0
        # In order of use, the latest last. Each job with a key has a separate encryption.
        self._published: dict[BlockSetKey, PublishedBlocks] = {}
        self.garbage_prefixes: list[str] = []

    @abstractmethod
    def allocate_key_prefixes(self, block_set_id: int, n_bytes: int) -> list[str]:
        """Return key prefixes for new blocks of `n_bytes` bytes, in order of preference.

        Called while `lock` is held.
        """

    def make_segment_key(self, key_prefix: str, component: int, buffers: Sequence[Any]) -> str:
        """Return the key below `key_prefix` of a component with these bytes; its last part is the index."""
        return f"{key_prefix}{component}"

    @abstractmethod
    def put_segment(self, segment_key: str, buffers: Sequence[Any]) -> int | None:
        """Store bytes, and return their checksum, or None if workers need not verify them.

        Raises OSError if there is no room under this key prefix.
        """

    @abstractmethod
    def remove_segments_below(self, key_prefixes: Sequence[str]) -> None:
        """Remove all segments whose keys begin with one of the prefixes."""

    def acquire_blocks(self, job_spec: JobSpec) -> PublishedBlocks:
        """Return the published blocks of a job, in use until `release_blocks` is called with them."""
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
        """Return the ids of all sets whose blocks workers may cache."""
        with self.lock:
            return tuple([published.block_set_id for published in self._published.values()])

    def release_blocks(self, published_blocks: PublishedBlocks) -> None:
        """Declare that a session does not use published blocks any more; later ones may."""
        with self.lock:
            published_blocks.use_count -= 1

    def collect_garbage(self) -> None:
        """Remove segments that no blocks need.

        `lock` is not held meanwhile, as a storage may hang. If a storage is away, its garbage stays for the
        next call.
        """
        if not self._garbage_lock.acquire(blocking=False):  # another thread does it, or hangs at it
            return
        try:
            with contextlib.suppress(Exception):
                while self.garbage_prefixes:
                    self.remove_segments_below(self.garbage_prefixes[:1])
                    del self.garbage_prefixes[0]
        finally:
            self._garbage_lock.release()

    def _evict_block_sets(self, set_keys: Iterable[BlockSetKey]) -> None:
        self.garbage_prefixes += [
            key_prefix for set_key in set_keys for key_prefix in self._published.pop(set_key).key_prefixes
        ]


class DriverBlockStore(BlockStore):
    """Keeps blocks in the memory of the driver, which sends a segment when a worker requests it.

    The key of a segment contains a digest of its bytes. A worker that has cached a block of an array thus
    finds it again in later jobs on an equal array, and does not request it.

    Parameters
    ----------
    key_prefix : str
        The prefix of the keys of all segments.
    """

    is_content_addressed = True

    def __init__(self, key_prefix: str) -> None:
        super().__init__()
        self.location, self._key_prefix = DriverLocation(key_prefix), key_prefix
        self.max_parallel_writes = count_available_cores()  # Segments are hashed instead of written.
        # The key of the digests is secret: messages are not encrypted, and do not reveal what blocks contain.
        self._digest_key = secrets.token_bytes(DIGEST_BYTES)
        self._removed_sets = deque[tuple[int, int]]()  # the id and the bytes of each, the latest last

    def allocate_key_prefixes(self, block_set_id: int, n_bytes: int) -> list[str]:
        """Return a single key prefix, which is the same for all sets of blocks."""
        return [f"{self._key_prefix}/blocks/"]

    def make_segment_key(self, key_prefix: str, component: int, buffers: Sequence[Any]) -> str:
        """Return the key of a component, with a digest of its bytes."""
        digest = blake2b(key=self._digest_key, digest_size=DIGEST_BYTES)
        for buffer in buffers:
            digest.update(buffer)
        return f"{key_prefix}{digest.hexdigest()}/{component}"

    def get_live_block_set_ids(self) -> tuple[int, ...]:
        """Return the ids of all sets whose blocks exist, and of the latest sets whose blocks do not."""
        with self.lock:
            removed_ids = [block_set_id for block_set_id, _ in self._removed_sets]
            return (*removed_ids, *super().get_live_block_set_ids())

    def _evict_block_sets(self, set_keys: Iterable[BlockSetKey]) -> None:
        """Forget sets of blocks, but let workers keep those of the latest that fit `max_removed_bytes`."""
        for published in map(self._published.pop, set_keys):
            self._removed_sets.append((published.block_set_id, published.n_bytes))
        while (
            len(self._removed_sets) > MAX_REMOVED_SETS
            or sum(n_bytes for _, n_bytes in self._removed_sets) > self.max_removed_bytes
        ):
            self._removed_sets.popleft()

    def put_segment(self, segment_key: str, buffers: Sequence[Any]) -> None:
        """Store nothing: the blocks have the bytes."""

    def remove_segments_below(self, key_prefixes: Sequence[str]) -> None:
        """Remove nothing: nothing is stored."""


class MemoryMappedBlockStore(BlockStore):
    """Stores blocks in files that workers on this machine map, in memory while there is room, else on disk.

    Parameters
    ----------
    memory_folder : Path or None
        A folder whose files are in memory; None: use the disk only.
    disk_folder : Path
        A folder on disk.
    max_memory_bytes : int
        The largest total size of the files in memory. The least recently used sets are evicted.
    """

    holds_bytes = True

    def __init__(self, memory_folder: Path | None, disk_folder: Path, max_memory_bytes: int) -> None:
        super().__init__()
        self.location, self._owner_pid = PrivateFolderLocation("/"), os.getpid()
        self._memory_folder = memory_folder
        self._disk_folder = disk_folder
        self._max_memory_bytes = max_memory_bytes

    def allocate_key_prefixes(self, block_set_id: int, n_bytes: int) -> list[str]:
        """Return a folder in memory, if unused sets can make room there, and a folder on disk."""
        folders = [self._disk_folder]
        if self._memory_folder is not None and self._try_free_memory(self._memory_folder, n_bytes):
            folders.insert(0, self._memory_folder)
        return [f"{folder}/blocks-{block_set_id}/".lstrip("/") for folder in folders]

    def put_segment(self, segment_key: str, buffers: Sequence[Any]) -> None:
        """Write a new file in place of any old one, which a worker may have mapped."""
        write_private_file(os.path.join("/", segment_key), *buffers)

    def remove_segments_below(self, key_prefixes: Sequence[str]) -> None:
        """Remove folders, unless this process was forked from their owner."""
        for key_prefix in key_prefixes if os.getpid() == self._owner_pid else ():
            shutil.rmtree(os.path.join("/", key_prefix), ignore_errors=True)

    def _try_free_memory(self, memory_folder: Path, n_bytes: int) -> bool:
        """Evict unused sets until there is room in memory, and return whether there is."""
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
