"""Putting the chunks of the Zarr array where Zarr looks for them, its metadata last; its repair."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, chain

import numpy as np

from polarmap.arrays.array_jobs import ArrayJobRunner, SegmentTaskBlocks
from polarmap.arrays.manifest import Manifest, get_manifest_key
from polarmap.arrays.reading import convert_damage_to_decoding_error
from polarmap.arrays.stores import SegmentStore
from polarmap.arrays.stripes import StripePlan
from polarmap.arrays.write_transaction import WriteTransaction
from polarmap.arrays.zarr_view import GROUP_NAME, ZarrChunk, ZarrView
from polarmap.dtypes import Array
from polarmap.errors import StorageError
from polarmap.executors.transfers import map_in_parallel
from polarmap.storage import Store
from polarmap.worker.segments import Segment
from polarmap.worker.task_records import OutputSpec


def store_stripe_as_chunk(
    transaction: WriteTransaction, plan: StripePlan, block_index: int, stripe_index: int, row: Array
) -> Segment | None:
    """Store a stripe of a data block as a chunk of the Zarr array; None if it is none, as padding is."""
    slab = plan.get_data_slab(block_index, stripe_index)
    if plan.chunk_shape is None or not plan.has_chunk_per_stripe or slab[0].start >= plan.shape[0]:
        return None
    view = ZarrView(f"{transaction.prefix}{GROUP_NAME}", plan.chunk_shape)
    key = view.get_chunk_key(slab)
    transaction.store.put(key, _pad_with_zeros(row.data.cast("B"), view.compute_chunk_bytes(plan.dtype)))
    return Segment(key, row.nbytes, zlib.crc32(row.data))


def publish_as_zarr_array(
    transaction: WriteTransaction, manifest: Manifest, chunk_shape: tuple[int, ...]
) -> Manifest:
    """An array whose data blocks are to be a Zarr array; they are if the storage can do it."""
    manifest = replace(manifest, zarr_view=ZarrView(f"{transaction.prefix}{GROUP_NAME}", chunk_shape))
    return _store_chunks_and_metadata(transaction.store, manifest, through_driver=False)


def _store_chunks_and_metadata(store: Store, manifest: Manifest, through_driver: bool) -> Manifest:
    """A manifest whose data parts lie in the chunks of its Zarr array, once these are stored.

    Parts that lie elsewhere are joined to chunks by the storage itself, or read and written by this process
    where it may (`through_driver`). Else, and while parts are missing, they stay where they are.
    """
    data_segments = chain.from_iterable(manifest.segments[: manifest.code.k])
    if any(segment.crc32 is None for segment in data_segments):
        return manifest
    copied_chunks = [chunk for chunk in manifest.zarr_chunks if _is_chunk_copied(manifest, chunk)]
    if not _try_store_chunks(store, manifest, copied_chunks, through_driver):
        return manifest
    return _store_zarr_metadata(store, _point_segments_to_chunks(manifest, copied_chunks))


def repair_zarr_array(
    runner: ArrayJobRunner,
    transaction: WriteTransaction,
    old_manifest: Manifest,
    new_manifest: Manifest,
    damaged_keys: Collection[str],
) -> Manifest:
    """The repaired array `new_manifest` with the Zarr array that it should have.

    Parts that lie elsewhere stay there, as nobody else writes to them, but for those of an array that has
    become one of Zarr only now.

    damaged_keys : keys of objects of the Zarr array that are not as they should be.
    """
    if new_manifest.zarr_view is None:
        return new_manifest
    store = transaction.store
    if not new_manifest.has_zarr_array:
        new_manifest = replace(
            new_manifest, zarr_view=new_manifest.zarr_view._replace(path=f"{transaction.prefix}{GROUP_NAME}")
        )
        return _store_chunks_and_metadata(
            store,
            _concatenate_chunks_on_workers(runner, transaction, new_manifest, new_manifest.zarr_chunks),
            through_driver=True,
        )
    moved_keys = {
        chunk.key
        for chunk in new_manifest.zarr_chunks
        if _get_source_segments(new_manifest, chunk) != _get_source_segments(old_manifest, chunk)
    }
    chunks = [
        chunk for chunk in new_manifest.zarr_chunks if chunk.key in moved_keys or chunk.key in damaged_keys
    ]
    new_manifest = _concatenate_chunks_on_workers(runner, transaction, new_manifest, chunks)
    _try_store_chunks(
        store,
        new_manifest,
        [chunk for chunk in chunks if _is_chunk_copied(new_manifest, chunk)],
        through_driver=True,
    )
    has_valid_metadata = not any(segment.key in damaged_keys for segment in new_manifest.zarr_metadata)
    return new_manifest if has_valid_metadata else _store_zarr_metadata(store, new_manifest)


def _concatenate_chunks_on_workers(
    runner: ArrayJobRunner, transaction: WriteTransaction, manifest: Manifest, chunks: Sequence[ZarrChunk]
) -> Manifest:
    """A manifest in which workers have joined the parts of each chunk to one object, as storages copy it.

    Without workers this process copies them where they belong, later.
    """
    split_chunks = [
        chunk
        for chunk in chunks
        if len({segment.key for segment in _get_source_segments(manifest, chunk)}) > 1
    ]
    if runner.is_local or not split_chunks:
        return manifest
    segments_by_chunk = [_get_source_segments(manifest, chunk) for chunk in split_chunks]
    concatenated_chunks = list[ZarrChunk]()

    def on_task_done(task: int, segments: list[Segment], summary: Array) -> None:
        concatenated_chunks.append(split_chunks[task]._replace(key=segments[0].key))
        transaction.write_heartbeat()

    byte_dtypes = [np.dtype(np.uint8)] * len(segments_by_chunk[0])  # each is a block, cut like the others
    chunk_size = sum(segment.size for segment in segments_by_chunk[0])
    output = OutputSpec(runner.segment_store.location, f"{transaction.prefix}joined", chunk_size)
    runner.run_tasks(
        make_concatenate_function(),
        SegmentTaskBlocks(runner.segment_store, segments_by_chunk, byte_dtypes),
        on_task_done,
        output,
    )
    return _point_segments_to_chunks(manifest, concatenated_chunks)


def make_concatenate_function() -> Callable[[Sequence[Array]], list[Array]]:
    """On a worker, which has numpy only: all parts in a row, and a note that says nothing."""
    return lambda arrays: [np.concatenate(arrays), np.zeros(1)]


def _get_source_segments(manifest: Manifest, chunk: ZarrChunk) -> list[Segment]:
    """The parts of a chunk where they lie."""
    return [manifest.segments[chunk.block_index][stripe_index] for stripe_index in chunk.stripe_range]


def _point_segments_to_chunks(manifest: Manifest, chunks: Iterable[ZarrChunk]) -> Manifest:
    """A manifest in which the parts of these chunks lie in the chunks."""
    return manifest.with_replaced_segments(
        {
            (chunk.block_index, stripe_index): segment
            for chunk in chunks
            for stripe_index, segment in zip(chunk.stripe_range, _make_segments_within_chunk(manifest, chunk))
        }
    )


def list_chunk_copy_and_metadata_segments(manifest: Manifest) -> list[Segment]:
    """What the Zarr array consists of beside the parts of the data blocks: copies of these, and metadata."""
    if not manifest.has_zarr_array:
        return []
    copied_chunks = [chunk for chunk in manifest.zarr_chunks if _is_chunk_copied(manifest, chunk)]
    return [
        *(segment for chunk in copied_chunks for segment in _make_segments_within_chunk(manifest, chunk)),
        *manifest.zarr_metadata,
    ]


def find_foreign_keys(store: Store, manifest: Manifest) -> list[str]:
    """Keys in the Zarr array that do not belong to it."""
    if manifest.zarr_view is None or not manifest.has_zarr_array:
        return []
    return [key for key in store.keys(f"{manifest.zarr_view.path}/") if key not in manifest.object_keys]


def _make_segments_within_chunk(manifest: Manifest, chunk: ZarrChunk) -> list[Segment]:
    """The parts of a chunk as they lie in it."""
    segments = _get_source_segments(manifest, chunk)
    starts = accumulate((segment.size for segment in segments), initial=0)
    return [segment._replace(key=chunk.key, offset=start) for segment, start in zip(segments, starts)]


def _is_chunk_copied(manifest: Manifest, chunk: ZarrChunk) -> bool:
    """Whether the parts of a chunk lie in other objects, of which the chunk is a copy."""
    return _get_source_segments(manifest, chunk) != _make_segments_within_chunk(manifest, chunk)


def _try_store_chunks(
    store: Store, manifest: Manifest, chunks: Sequence[ZarrChunk], through_driver: bool
) -> bool:
    """Store chunks whose parts lie elsewhere; False if only this process could, and may not."""
    segment_store = SegmentStore(store)

    def store_chunk(chunk: ZarrChunk) -> bool:
        if _try_concatenate_in_store(store, manifest, chunk):
            return True
        if through_driver:
            data = bytearray()
            with convert_damage_to_decoding_error():
                for segment in _get_source_segments(manifest, chunk):
                    data += segment_store.get(segment)
            store.put(chunk.key, _pad_with_zeros(data, manifest.zarr_chunk_bytes))
        return through_driver

    if not chunks or not store_chunk(chunks[0]):  # the first tells whether the storage can
        return not chunks
    map_function = map_in_parallel if len(chunks[0].stripe_range) == 1 else map
    return all(map_function(store_chunk, chunks[1:]))


def _try_concatenate_in_store(store: Store, manifest: Manifest, chunk: ZarrChunk) -> bool:
    """Have the storage make a chunk of the objects that its parts are, if it can."""
    segments = _get_source_segments(manifest, chunk)
    keys = list(dict.fromkeys(segment.key for segment in segments))
    if not hasattr(store, "concatenate") or not manifest.object_extents.keys() >= {*keys}:
        return False
    *object_starts, total_bytes = accumulate((manifest.object_extents[key][1] for key in keys), initial=0)
    start_by_key = dict(zip(keys, object_starts))
    positions = accumulate((segment.size for segment in segments), initial=0)
    is_contiguous = all(
        start_by_key[segment.key] + segment.offset == position
        for segment, position in zip(segments, positions)
    )
    if not is_contiguous or total_bytes != manifest.zarr_chunk_bytes:
        return False
    try:
        return bool(store.concatenate(keys, chunk.key))
    except StorageError:  # one that is down says so when the manifest is written
        return False


def _pad_with_zeros(
    data: bytes | bytearray | memoryview, padded_bytes: int
) -> bytes | bytearray | memoryview:
    """`data` with zeros behind it if it is smaller than that."""
    return data if len(data) == padded_bytes else b"".join([data, bytes(padded_bytes - len(data))])


def _store_zarr_metadata(store: Store, manifest: Manifest) -> Manifest:
    """Stored last of all: then the Zarr array is there."""
    zarr_view = manifest.zarr_view
    assert zarr_view is not None
    documents = zarr_view.build_metadata(manifest.shape, manifest.dtype, get_manifest_key(manifest.name))
    for key, text in documents.items():
        store.put(key, text)
    metadata_segments = tuple(Segment(key, len(text), zlib.crc32(text)) for key, text in documents.items())
    return replace(manifest, zarr_view=zarr_view._replace(metadata=metadata_segments))
