"""Store and repair the data blocks of a coded array as a Zarr array, which other libraries can open.

    segments of a data block --same object or copied--> chunk data/c/i/j;  all chunks --> zarr.json

A segment holds the stored bytes of one stripe of one block. If possible, a segment is written as a Zarr chunk
in the first place. Otherwise its bytes are copied to a chunk: by the storage itself, by workers, or through
this process. The Zarr metadata is written last, so readers never see an incomplete array.
"""

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
    """Store one stripe (slice) of a data block as a Zarr chunk, and return the segment that refers to it.

    If the stripe is not a chunk, for example because it contains only padding, store nothing and return None.
    """
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
    """Make a coded array readable as a Zarr array, by storing the Zarr chunks and metadata if possible.

    Returns a manifest that describes the Zarr array. Chunks that are not stored yet are copied from other
    objects. If the storage has no operation for this, the Zarr array stays incomplete.
    """
    manifest = replace(manifest, zarr_view=ZarrView(f"{transaction.prefix}{GROUP_NAME}", chunk_shape))
    return _store_chunks_and_metadata(transaction.store, manifest, through_driver=False)


def _store_chunks_and_metadata(store: Store, manifest: Manifest, through_driver: bool) -> Manifest:
    """Complete the Zarr array that contains the data blocks, by storing its missing chunks and its metadata.

    The bytes of the chunks are copied from other objects by the storage itself. If it has no operation for
    this, and `through_driver` is True, this process reads and writes the bytes.

    Returns a manifest with the complete Zarr array. If the array cannot be completed, the manifest is
    returned unchanged.
    """
    data_segments = chain.from_iterable(manifest.segments[: manifest.code.k])
    if any(segment.crc32 is None for segment in data_segments):
        return manifest
    copied_chunks = [chunk for chunk in manifest.zarr_chunks if _is_chunk_copied(manifest, chunk)]
    if not _try_store_chunks(store, manifest, copied_chunks, through_driver):
        return manifest
    return _store_zarr_metadata(store, _replace_segments_by_chunk_ranges(manifest, copied_chunks))


def repair_zarr_array(
    runner: ArrayJobRunner,
    transaction: WriteTransaction,
    old_manifest: Manifest,
    new_manifest: Manifest,
    damaged_keys: Collection[str],
) -> Manifest:
    """Update the Zarr array that contains the data blocks after damaged parts have been rebuilt.

    If the Zarr array was complete, the rebuilt bytes are copied to its chunks, and the coded array itself
    reads them from other objects. If it was incomplete, all chunks are written now, and the coded array reads
    its data blocks from the chunks.

    Parameters
    ----------
    runner : ArrayJobRunner
        Runs the tasks that concatenate segments to chunks.
    transaction : WriteTransaction
        The transaction of the repair.
    old_manifest, new_manifest : Manifest
        The manifest before the repair, and the manifest with the rebuilt segments.
    damaged_keys : collection of str
        The keys of damaged objects of the Zarr array.

    Returns
    -------
    Manifest
        A manifest with the updated Zarr array.
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
    """Let workers concatenate the segments of each chunk, and store the result as a single object.

    The storage can then copy this object to the chunk. Returns a manifest that refers to the new objects. If
    the runner has no workers, this process copies the segments later, and the manifest is returned unchanged.
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

    # A chunk with several segments is always a whole block, so all of these chunks have the same number of
    # segments.
    byte_dtypes = [np.dtype(np.uint8)] * len(segments_by_chunk[0])
    chunk_size = sum(segment.size for segment in segments_by_chunk[0])
    output = OutputSpec(runner.segment_store.location, f"{transaction.prefix}joined", chunk_size)
    runner.run_tasks(
        make_concatenate_function(),
        SegmentTaskBlocks(runner.segment_store, segments_by_chunk, byte_dtypes),
        on_task_done,
        output,
    )
    return _replace_segments_by_chunk_ranges(manifest, concatenated_chunks)


def make_concatenate_function() -> Callable[[Sequence[Array]], list[Array]]:
    """Return a function that concatenates arrays on a worker, which needs only numpy.

    As `ArrayJobRunner` requires, the function returns a list: the concatenated array and an unused summary.
    """
    return lambda arrays: [np.concatenate(arrays), np.zeros(1)]


def _get_source_segments(manifest: Manifest, chunk: ZarrChunk) -> list[Segment]:
    """Return the segments (byte ranges of objects) that currently hold the bytes of a Zarr chunk."""
    return [manifest.segments[chunk.block_index][stripe_index] for stripe_index in chunk.stripe_range]


def _replace_segments_by_chunk_ranges(manifest: Manifest, chunks: Iterable[ZarrChunk]) -> Manifest:
    """Return a copy of the manifest that says that the bytes of data blocks are stored in `chunks`.

    The segments that these chunks contain become byte ranges of the chunks, instead of other objects.
    """
    return manifest.with_replaced_segments(
        {
            (chunk.block_index, stripe_index): segment
            for chunk in chunks
            for stripe_index, segment in zip(chunk.stripe_range, _make_segments_within_chunk(manifest, chunk))
        }
    )


def list_chunk_copy_and_metadata_segments(manifest: Manifest) -> list[Segment]:
    """List the parts of the Zarr array that exist only for other libraries, as segments (byte ranges).

    These are the metadata, and chunks that are copies of bytes in other objects. The coded array itself does
    not read them.
    """
    if not manifest.has_zarr_array:
        return []
    copied_chunks = [chunk for chunk in manifest.zarr_chunks if _is_chunk_copied(manifest, chunk)]
    return [
        *(segment for chunk in copied_chunks for segment in _make_segments_within_chunk(manifest, chunk)),
        *manifest.zarr_metadata,
    ]


def find_unrelated_zarr_keys(store: Store, manifest: Manifest) -> list[str]:
    """Return the keys of objects inside the Zarr group that do not belong to the coded array."""
    if manifest.zarr_view is None or not manifest.has_zarr_array:
        return []
    return [key for key in store.keys(f"{manifest.zarr_view.path}/") if key not in manifest.object_keys]


def _make_segments_within_chunk(manifest: Manifest, chunk: ZarrChunk) -> list[Segment]:
    """Return the byte ranges of a Zarr chunk, one segment for each stripe (slice of a block) in the chunk."""
    segments = _get_source_segments(manifest, chunk)
    starts = accumulate((segment.size for segment in segments), initial=0)
    return [segment._replace(key=chunk.key, offset=start) for segment, start in zip(segments, starts)]


def _is_chunk_copied(manifest: Manifest, chunk: ZarrChunk) -> bool:
    """Return whether a Zarr chunk exists only for other libraries, as a copy of bytes in other objects.

    The coded array itself then reads the other objects. Otherwise, it reads the chunk.
    """
    return _get_source_segments(manifest, chunk) != _make_segments_within_chunk(manifest, chunk)


def _try_store_chunks(
    store: Store, manifest: Manifest, chunks: Sequence[ZarrChunk], through_driver: bool
) -> bool:
    """Store chunks by copying their bytes from other objects. Return whether this was possible.

    If possible, the storage copies the bytes itself. If not, and if `through_driver` is True, this process
    reads and writes the bytes.
    """
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

    # Store a single chunk first, to find out whether the storage can copy objects. Only then store the
    # others.
    if not chunks or not store_chunk(chunks[0]):
        return not chunks
    map_function = map_in_parallel if len(chunks[0].stripe_range) == 1 else map
    return all(map_function(store_chunk, chunks[1:]))


def _try_concatenate_in_store(store: Store, manifest: Manifest, chunk: ZarrChunk) -> bool:
    """Ask the storage to concatenate objects, and store the result as a chunk. Return whether it did.

    This is only possible if the chunk consists of the bytes of whole objects.
    """
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
    except StorageError:
        # The caller then writes the chunk or other objects. If the storage does not work at all, this raises
        # the error again.
        return False


def _pad_with_zeros(
    data: bytes | bytearray | memoryview, padded_bytes: int
) -> bytes | bytearray | memoryview:
    """Return `data`, followed by zeros up to `padded_bytes` bytes."""
    return data if len(data) == padded_bytes else b"".join([data, bytes(padded_bytes - len(data))])


def _store_zarr_metadata(store: Store, manifest: Manifest) -> Manifest:
    """Store the metadata of the Zarr array, which completes it.

    Returns a manifest that lists the metadata.
    """
    zarr_view = manifest.zarr_view
    assert zarr_view is not None
    documents = zarr_view.build_metadata(manifest.shape, manifest.dtype, get_manifest_key(manifest.name))
    for key, text in documents.items():
        store.put(key, text)
    metadata_segments = tuple(Segment(key, len(text), zlib.crc32(text)) for key, text in documents.items())
    return replace(manifest, zarr_view=zarr_view._replace(metadata=metadata_segments))
