"""Stores from which workers read blocks: shared memory, files on disk, a bucket, or the driver's memory.

A block is the input data of one task. It consists of components, which several blocks may share. Each
component is stored only once, and removed when its blocks no longer exist.
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
from polarmap.worker.pytree import Array, count_layout_bytes, get_layout
from polarmap.worker.segments import Segment
from polarmap.worker.task_records import BlockRef

# A block of fewer bytes than this is sent in the message of its task, which is faster than writing a file.
INLINE_BLOCK_BYTES = 1 << 14
FREE_SPACE_DIVISOR = 2  # Stored blocks may use at most 1/2 of the free space in shared memory (/dev/shm).
DIGEST_BYTES = 16  # Two different blocks have the same digest with a probability of 2**-128.
# Workers may keep cached copies of sets of blocks that the driver has removed, in case equal blocks are
# needed again. The number of such sets is limited because their ids are sent with every job.
MAX_REMOVED_SETS = 64
NETWORK_BYTES_PER_SECOND = 1e8  # the assumed bandwidth, for estimates of transfer times

# Identifies a stored copy of a set of blocks: the `id()` of the `TaskBlocks` object, and the encryption.
BlockSetKey = tuple[int, Encryption | None]


class PublishedBlocks:
    """A set of blocks that the driver stores for its workers, shared by all jobs on the same blocks.

    A block is the input data of one task. It consists of components, which several blocks may share. A
    component is stored when a task first needs it. Blocks that are already in storage are not copied.

    Attributes
    ----------
    blocks_weakref : weakref.ref
        A weak reference to the blocks, which does not keep them alive.
    key_prefixes : list of str
        The key prefixes of stored components, in order of preference. Empty until one is stored.
    n_bytes : int
        An upper bound on the total size of all components in bytes; 0 until one is stored.
    use_count : int
        The number of open sessions that use the blocks. Blocks in use are never evicted to make room.
    block_set_id : int
        The id of this set of blocks in its block store.
    cache_id : int or None
        The id under which workers cache the blocks until the set is removed; None if other sets may share
        the stored bytes.
    """

    def __init__(
        self, blocks: TaskBlocks, location: Location, block_store: BlockStore, block_set_id: int
    ) -> None:
        self.blocks_weakref, self._source_location = weakref.ref(blocks), blocks.location
        self._location, self._block_store, self.block_set_id = location, block_store, block_set_id
        self._is_inline = self._source_location is not None and self._source_location.is_inline
        # References are stable if blocks are already in storage, or if keys contain a digest of the bytes.
        # Equal blocks of different sets then have equal references, so that a worker caches them only once.
        has_stable_refs = self._source_location is not None or block_store.is_content_addressed
        self._is_identified_by_ref = has_stable_refs and not self._is_inline
        self.cache_id = block_set_id if (self._source_location or location).is_owned_by_blocks else None
        self.key_prefixes, self.n_bytes, self.use_count = list[str](), 0, 0
        self._lock = threading.RLock()
        tasks = range(blocks.n if self._source_location is None else 0)
        self._unpublished = {component for task in tasks for component in blocks.block_components(task)}
        self._segments: dict[int, Segment] = {}  # component index -> its stored byte range
        self._pickled_refs: dict[int, bytes] = {}  # task -> pickled `BlockRef`
        # The byte ranges that workers may request from a user's store: (key, offset) -> size.
        self._referenced_ranges: dict[tuple[str, int], int] = {}

    def get_task_key(self, blocks: TaskBlocks, task: int) -> Hashable:
        """Return a key by which a scheduler recognizes workers that have cached a task's block.

        All jobs that use the same blocks have the same keys.
        """
        if not self._is_identified_by_ref:
            return self.block_set_id, task
        return self._pickled_refs.get(task) or self.get_pickled_block_ref(blocks, task)

    def estimate_transfer_seconds(self, blocks: TaskBlocks) -> float:
        """Estimate the seconds it takes to send a block to a worker: 0 for a worker on this machine."""
        is_local = (self._source_location or self._location).is_local
        return 0.0 if is_local else count_layout_bytes(blocks.block_layout(0)) / NETWORK_BYTES_PER_SECOND

    def get_pickled_block_ref(self, blocks: TaskBlocks, task: int) -> bytes:
        """Return the pickled `BlockRef` that tells a worker where to read a task's block.

        The block is stored first if it is not stored yet.
        """
        with self._lock:
            pickled_ref = self._pickled_refs.get(task)
            if pickled_ref is None:
                location, segments, *other_fields = self.publish_block(blocks, task)
                fields = location.fields, tuple(map(tuple, segments)), *other_fields
                pickled_ref = pickle.dumps(fields, pickle.HIGHEST_PROTOCOL)
                # An inline block may be different the next time that its task is sent, so do not cache it.
                if not self._is_inline:
                    self._pickled_refs[task] = pickled_ref
            return pickled_ref

    def publish_in_parallel(self, blocks: TaskBlocks, tasks: Sequence[int], deadline: float = inf) -> None:
        """Store the blocks of several tasks in parallel, if the store supports parallel writes.

        Otherwise do nothing: each block is then written just before its task is sent, so that the first
        worker can start early. Raises TimeoutError if writing takes until `deadline`, a time on the monotonic
        clock.
        """
        if self._source_location is not None or not self._block_store.max_parallel_writes:
            return
        from polarmap.executors.transfers import map_in_parallel

        with self._lock:
            components = dict.fromkeys(item for task in tasks for item in blocks.block_components(task))
            new_components = [component for component in components if component not in self._segments]
            if not new_components:
                return
            # Encode first, so that an encoding error is not mistaken for a storage error.
            blocks.block_leaves(max(tasks))
            self._reserve_block_space(blocks)
            store = partial(self._store_component, blocks)
            n_threads = self._block_store.max_parallel_writes
            new_segments = map_in_parallel(store, new_components, n_threads, deadline)
            self._segments |= zip(new_components, new_segments)

    def publish_block(self, blocks: TaskBlocks, task: int) -> BlockRef:
        """Return a reference that tells a worker where to read a task's block.

        The block is stored first if it is not stored yet.
        """
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
        """Return the bytes of a block component that a worker has requested from the driver.

        `segment_key` ends with the index of the component. A component that is a single array is not copied,
        which saves memory if many workers send requests at the same time.
        """
        buffers = _get_buffers(blocks.component_leaves(int(segment_key.rpartition("/")[2])))
        stored_buffers = encrypt_if_location_requires(
            self._location, Segment(segment_key, sum(map(len, buffers))), *buffers
        )
        return stored_buffers[0] if len(stored_buffers) == 1 else b"".join(stored_buffers)

    def check_segment_is_referenced(self, requested: Segment) -> None:
        """Raise LookupError if a worker requests a byte range that belongs to no task's block.

        Workers must not be able to read other data of the user's store.
        """
        n_bytes = self._referenced_ranges[requested.key, requested.offset]
        if requested.size > compute_encrypted_size(n_bytes):
            raise LookupError(requested)

    def invalidate_if_damaged(self, blocks: TaskBlocks, task: int, failure: Failure) -> None:
        """Mark a task's block as not stored if a worker found it damaged, so that it is stored again."""
        if failure.kind == FailureKind.DAMAGED:
            with self._lock:
                for component in blocks.block_components(task):
                    self._segments.pop(component, None)
                self._pickled_refs.clear()

    def _publish_new_block(self, blocks: TaskBlocks, task: int) -> BlockRef:
        layout, components = blocks.block_layout(task), blocks.block_components(task)
        if (
            # Sending a small block together with its task is faster than writing a file.
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
        """Reserve space in the store for all blocks of this set. If it is already reserved, do nothing."""
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
        with block_store.lock:  # Other threads must not reserve the same space in the meantime.
            self.key_prefixes = block_store.allocate_key_prefixes(self.block_set_id, n_bytes)
            self.n_bytes = n_bytes
        if self._location.is_memory_mapped:
            weakref.finalize(
                blocks,
                _remove_prefixes_if_store_alive,
                weakref.WeakMethod(block_store.remove_segments_below),
                self.key_prefixes,
            ).atexit = False
            block_store.collect_garbage()  # Free the memory of blocks that were evicted to make room.

    def _store_component(self, blocks: TaskBlocks, component: int) -> Segment:
        buffers, last_error = _get_buffers(blocks.component_leaves(component)), OSError()
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
    """Remove stored data below some key prefixes, if the block store itself still exists.

    This is the finalizer of a set of blocks: it is called once the blocks have been garbage-collected.
    """
    remove = remove_weakref()
    if remove is not None:
        remove(key_prefixes)


def make_block_ref(blocks: TaskBlocks, task: int) -> BlockRef:
    """Return a reference that tells a worker where to read a task's block.

    The blocks must be in storage already, or small enough for their bytes to be part of the reference.
    """
    assert blocks.location is not None
    if blocks.location.is_inline:
        return _make_inline_block_ref(blocks, task)
    return BlockRef(blocks.location, blocks.block_segments(task), blocks.block_layout(task))


def _make_inline_block_ref(blocks: TaskBlocks, task: int) -> BlockRef:
    """Return a reference that contains the bytes of a task's block."""
    leaves = blocks.block_leaves(task)
    return BlockRef(INLINE, (), get_layout(leaves), b"".join(_get_buffers(leaves)))


def _get_buffers(leaves: Iterable[Array]) -> list[Any]:
    """Return the bytes of each array. Contiguous arrays are not copied."""
    arrays = map(np.ascontiguousarray, leaves)
    return [array.reshape(-1).view(np.uint8).data if array.nbytes else b"" for array in arrays]


class BlockStore(ABC):
    """The base class of stores to which the driver writes blocks, and from which workers read them.

    Attributes
    ----------
    location : Location
        Where workers read the blocks.
    holds_bytes : bool
        True if the store copies the blocks, so that the driver can free its arrays.
    is_content_addressed : bool
        True if keys contain a digest of the stored bytes, so that equal blocks have equal keys in all sets.
    max_parallel_writes : int
        The number of objects that can be written at the same time. 0 if it is better to write each block when
        its first task is sent.
    max_removed_bytes : int
        How many bytes of removed blocks may stay in the workers' caches, in case a later set contains equal
        blocks. 0 for stores that are not content-addressed.
    garbage_prefixes : list of str
        The key prefixes of stored data that is no longer needed.
    """

    location: Location
    holds_bytes = is_content_addressed = False
    max_parallel_writes = max_removed_bytes = 0

    def __init__(self) -> None:
        # The lock is reentrant because a destructor may close a session while this thread holds the lock.
        self.lock = threading.RLock()
        self._garbage_lock = threading.Lock()
        self.next_block_set_id = 0
        # The stored sets of blocks, the most recently used last. The encryption is part of the key, because
        # each job with an encryption key stores its own encrypted copy of the blocks.
        self._published: dict[BlockSetKey, PublishedBlocks] = {}
        self.garbage_prefixes: list[str] = []

    @abstractmethod
    def allocate_key_prefixes(self, block_set_id: int, n_bytes: int) -> list[str]:
        """Return the key prefixes under which new blocks can be stored, in order of preference.

        For example, these are a folder in memory and then a folder on disk. `block_set_id` identifies the set
        of blocks, and `n_bytes` is its total size. Called while `lock` is held.
        """

    def make_segment_key(self, key_prefix: str, component: int, buffers: Sequence[Any]) -> str:
        """Return the key under which to store a component, i.e. a part of one or more blocks.

        The key begins with `key_prefix` and ends with `component`, the index of the component. `buffers` are
        the bytes to store, from which some stores compute a part of the key.
        """
        return f"{key_prefix}{component}"

    @abstractmethod
    def put_segment(self, segment_key: str, buffers: Sequence[Any]) -> int | None:
        """Store bytes under a key, and return their checksum, or None if workers need not verify them.

        Raises OSError if there is no space left under the key's prefix.
        """

    @abstractmethod
    def remove_segments_below(self, key_prefixes: Sequence[str]) -> None:
        """Remove all stored bytes whose keys begin with one of the prefixes."""

    def acquire_blocks(self, job_spec: JobSpec) -> PublishedBlocks:
        """Return the `PublishedBlocks` of a job, which manages the stored copies of the job's blocks.

        The copies are not evicted before `release_blocks` is called.
        """
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
        """Return the ids of all sets of blocks that workers may keep in their caches."""
        with self.lock:
            return tuple([published.block_set_id for published in self._published.values()])

    def release_blocks(self, published_blocks: PublishedBlocks) -> None:
        """Record that a session no longer uses a set of blocks.

        The blocks stay in the store for later sessions, but may be evicted to make room.
        """
        with self.lock:
            published_blocks.use_count -= 1

    def collect_garbage(self) -> None:
        """Remove stored data that is no longer needed.

        `lock` is not held during the removal, because the storage may hang. If the storage cannot be reached,
        the next call tries again.
        """
        if not self._garbage_lock.acquire(blocking=False):
            # Another thread is already collecting garbage. Do not wait for it, because it may hang.
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
    """A store that copies nothing: blocks stay in the driver's memory and are sent on request.

    The key of each stored piece of a block contains a digest of its bytes, so that equal blocks have equal
    keys. A worker that has cached a block can therefore reuse it in later jobs on an equal array.

    Parameters
    ----------
    key_prefix : str
        The common prefix of the keys with which workers request blocks.
    """

    is_content_addressed = True

    def __init__(self, key_prefix: str) -> None:
        super().__init__()
        self.location, self._key_prefix = DriverLocation(key_prefix), key_prefix
        # "Writing" a block only computes its digest, so use as many threads as there are cores.
        self.max_parallel_writes = count_available_cores()
        # Digests use a secret key, so that they do not reveal in unencrypted messages what blocks contain.
        self._digest_key = secrets.token_bytes(DIGEST_BYTES)
        self._removed_sets = deque[tuple[int, int]]()  # (id, size in bytes) of each set, oldest first

    def allocate_key_prefixes(self, block_set_id: int, n_bytes: int) -> list[str]:
        """Return a single key prefix. All sets share it, so that equal blocks have equal keys."""
        return [f"{self._key_prefix}/blocks/"]

    def make_segment_key(self, key_prefix: str, component: int, buffers: Sequence[Any]) -> str:
        """Return a key that contains a digest of the bytes, so that equal components have equal keys."""
        digest = blake2b(key=self._digest_key, digest_size=DIGEST_BYTES)
        for buffer in buffers:
            digest.update(buffer)
        return f"{key_prefix}{digest.hexdigest()}/{component}"

    def get_live_block_set_ids(self) -> tuple[int, ...]:
        """Return the ids of all sets of blocks that workers may keep in their caches.

        These are the existing sets, and recently removed ones, whose blocks may be needed again.
        """
        with self.lock:
            removed_ids = [block_set_id for block_set_id, _ in self._removed_sets]
            return (*removed_ids, *super().get_live_block_set_ids())

    def _evict_block_sets(self, set_keys: Iterable[BlockSetKey]) -> None:
        """Remove sets of blocks from the store.

        Workers may keep their cached copies of the sets that were removed last, because a later set may
        contain equal blocks. The total size of these sets is limited to `max_removed_bytes`.
        """
        for published in map(self._published.pop, set_keys):
            self._removed_sets.append((published.block_set_id, published.n_bytes))
        while (
            len(self._removed_sets) > MAX_REMOVED_SETS
            or sum(n_bytes for _, n_bytes in self._removed_sets) > self.max_removed_bytes
        ):
            self._removed_sets.popleft()

    def put_segment(self, segment_key: str, buffers: Sequence[Any]) -> None:
        """Do nothing: the bytes stay in the blocks' arrays."""

    def remove_segments_below(self, key_prefixes: Sequence[str]) -> None:
        """Do nothing: there are no copies to remove."""


class MemoryMappedBlockStore(BlockStore):
    """A store of files, which workers on this machine memory-map.

    Files are created in shared memory (/dev/shm) while there is room, and otherwise on disk.

    Parameters
    ----------
    memory_folder : Path or None
        A folder in shared memory, or None to use only the disk.
    disk_folder : Path
        A folder on disk.
    max_memory_bytes : int
        The maximum total size of the files in memory. The least recently used blocks are evicted first.
    """

    holds_bytes = True

    def __init__(self, memory_folder: Path | None, disk_folder: Path, max_memory_bytes: int) -> None:
        super().__init__()
        self.location, self._owner_pid = PrivateFolderLocation("/"), os.getpid()
        self._memory_folder = memory_folder
        self._disk_folder = disk_folder
        self._max_memory_bytes = max_memory_bytes

    def allocate_key_prefixes(self, block_set_id: int, n_bytes: int) -> list[str]:
        """Return a folder on disk, preceded by a folder in shared memory if there is enough space.

        To make space in memory, blocks that no session uses are evicted.
        """
        folders = [self._disk_folder]
        if self._memory_folder is not None and self._try_free_memory(self._memory_folder, n_bytes):
            folders.insert(0, self._memory_folder)
        return [f"{folder}/blocks-{block_set_id}/".lstrip("/") for folder in folders]

    def put_segment(self, segment_key: str, buffers: Sequence[Any]) -> None:
        """Write a file.

        An existing file is replaced, not overwritten, because a worker may have mapped it.
        """
        write_private_file(os.path.join("/", segment_key), *buffers)

    def remove_segments_below(self, key_prefixes: Sequence[str]) -> None:
        """Remove the folders. Do nothing in a forked child process, which does not own them."""
        for key_prefix in key_prefixes if os.getpid() == self._owner_pid else ():
            shutil.rmtree(os.path.join("/", key_prefix), ignore_errors=True)

    def _try_free_memory(self, memory_folder: Path, n_bytes: int) -> bool:
        """Evict unused blocks until `n_bytes` more bytes fit into shared memory. Return True if they fit."""
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
