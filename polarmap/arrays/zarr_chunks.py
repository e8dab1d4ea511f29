"""Putting the chunks of the Zarr array where Zarr looks for them, its metadata last; its repair."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, chain

import numpy as np

from polarmap.arrays.array_tasks import PartTasks, TaskRunner
from polarmap.arrays.generations import Generation
from polarmap.arrays.manifest import Manifest, manifest_key
from polarmap.arrays.reading import whole_before
from polarmap.arrays.stores import PartStore
from polarmap.arrays.stripes import StripePlan
from polarmap.arrays.zarr_view import GROUP, ZarrChunk, ZarrView
from polarmap.dtypes import Array
from polarmap.errors import StorageError
from polarmap.executors.transfers import in_parallel
from polarmap.storage import Store
from polarmap.worker.messages import OutputSpec
from polarmap.worker.parts import Part


def put_stripe(generation: Generation, plan: StripePlan, block: int, stripe: int, row: Array) -> Part | None:
    """Store a stripe of a data block as a chunk of the Zarr array; None if it is none, as padding is."""
    slab = plan.slab(block, stripe)
    if plan.chunk_shape is None or not plan.stripes_are_chunks or slab[0].start >= plan.shape[0]:
        return None
    view = ZarrView(f"{generation.prefix}{GROUP}", plan.chunk_shape)
    key = view.chunk_key(slab)
    generation.store.put(key, _filled(row.data.cast("B"), view.chunk_bytes(plan.dtype)))
    return Part(key, row.nbytes, zlib.crc32(row.data))


def as_zarr(generation: Generation, manifest: Manifest, chunk_shape: tuple[int, ...]) -> Manifest:
    """An array whose data blocks are to be a Zarr array; they are if the storage can do it."""
    manifest = replace(manifest, zarr=ZarrView(f"{generation.prefix}{GROUP}", chunk_shape))
    return _complete(generation.store, manifest, through_here=False)


def _complete(store: Store, manifest: Manifest, through_here: bool) -> Manifest:
    """A manifest whose data parts lie in the chunks of its Zarr array, once these are stored.

    Parts that lie elsewhere are joined to chunks by the storage itself, or read and written by this process
    where it may (`through_here`). Else, and while parts are missing, they stay where they are.
    """
    data = chain.from_iterable(manifest.parts[: manifest.code.k])
    if any(part.crc32 is None for part in data):
        return manifest
    moves = [chunk for chunk in manifest.chunks if _is_copied(manifest, chunk)]
    if not _put_chunks(store, manifest, moves, through_here):
        return manifest
    return _with_metadata(store, _in_chunks(manifest, moves))


def repair_zarr(
    runner: TaskRunner, generation: Generation, before: Manifest, now: Manifest, wrong: Collection[str]
) -> Manifest:
    """The repaired array `now` with the Zarr array that it should have.

    Parts that lie elsewhere stay there, as nobody else writes to them, but for those of an array that has
    become one of Zarr only now.

    wrong : keys of objects of the Zarr array that are not as they should be.
    """
    if now.zarr is None:
        return now
    store = generation.store
    if not now.is_zarr:
        now = replace(now, zarr=now.zarr._replace(path=f"{generation.prefix}{GROUP}"))
        return _complete(store, _joined(runner, generation, now, now.chunks), through_here=True)
    moved = {chunk.key for chunk in now.chunks if _parts_of(now, chunk) != _parts_of(before, chunk)}
    chunks = [chunk for chunk in now.chunks if chunk.key in moved or chunk.key in wrong]
    now = _joined(runner, generation, now, chunks)
    _put_chunks(store, now, [chunk for chunk in chunks if _is_copied(now, chunk)], through_here=True)
    is_described = not any(part.key in wrong for part in now.metadata)
    return now if is_described else _with_metadata(store, now)


def _joined(
    runner: TaskRunner, generation: Generation, manifest: Manifest, chunks: Sequence[ZarrChunk]
) -> Manifest:
    """A manifest in which workers have joined the parts of each chunk to one object, as storages copy it.

    Without workers this process copies them where they belong, later.
    """
    apart = [chunk for chunk in chunks if len({part.key for part in _parts_of(manifest, chunk)}) > 1]
    if runner.is_here or not apart:
        return manifest
    parts, joined = [_parts_of(manifest, chunk) for chunk in apart], list[ZarrChunk]()

    def take(task: int, stored: list[Part], note: Array) -> None:
        joined.append(apart[task]._replace(key=stored[0].key))
        generation.heartbeat()

    bytes_of_parts = [np.dtype(np.uint8)] * len(parts[0])  # each is a block, cut like the others
    size = sum(part.size for part in parts[0])
    output = OutputSpec(runner.parts.place, f"{generation.prefix}joined", size)
    runner.run(joiner(), PartTasks(runner.parts, parts, bytes_of_parts), take, output)
    return _in_chunks(manifest, joined)


def joiner() -> Callable[[Sequence[Array]], list[Array]]:
    """On a worker, which has numpy only: all parts in a row, and a note that says nothing."""
    return lambda parts: [np.concatenate(parts), np.zeros(1)]


def _parts_of(manifest: Manifest, chunk: ZarrChunk) -> list[Part]:
    """The parts of a chunk where they lie."""
    return [manifest.parts[chunk.block][stripe] for stripe in chunk.stripes]


def _in_chunks(manifest: Manifest, chunks: Iterable[ZarrChunk]) -> Manifest:
    """A manifest in which the parts of these chunks lie in the chunks."""
    return manifest.with_parts(
        {
            (chunk.block, stripe): part
            for chunk in chunks
            for stripe, part in zip(chunk.stripes, _in_place(manifest, chunk))
        }
    )


def copies_and_metadata(manifest: Manifest) -> list[Part]:
    """What the Zarr array consists of beside the parts of the data blocks: copies of these, and metadata."""
    if not manifest.is_zarr:
        return []
    copied = [chunk for chunk in manifest.chunks if _is_copied(manifest, chunk)]
    return [*(part for chunk in copied for part in _in_place(manifest, chunk)), *manifest.metadata]


def foreign_keys(store: Store, manifest: Manifest) -> list[str]:
    """Keys in the Zarr array that do not belong to it."""
    if manifest.zarr is None or not manifest.is_zarr:
        return []
    return [key for key in store.keys(f"{manifest.zarr.path}/") if key not in manifest.objects]


def _in_place(manifest: Manifest, chunk: ZarrChunk) -> list[Part]:
    """The parts of a chunk as they lie in it."""
    parts = _parts_of(manifest, chunk)
    starts = accumulate((part.size for part in parts), initial=0)
    return [part._replace(key=chunk.key, offset=start) for part, start in zip(parts, starts)]


def _is_copied(manifest: Manifest, chunk: ZarrChunk) -> bool:
    """Whether the parts of a chunk lie in other objects, of which the chunk is a copy."""
    return _parts_of(manifest, chunk) != _in_place(manifest, chunk)


def _put_chunks(store: Store, manifest: Manifest, chunks: Sequence[ZarrChunk], through_here: bool) -> bool:
    """Store chunks whose parts lie elsewhere; False if only this process could, and may not."""
    parts = PartStore(store)

    def put(chunk: ZarrChunk) -> bool:
        if _join(store, manifest, chunk):
            return True
        if through_here:
            data = bytearray()
            with whole_before():
                for part in _parts_of(manifest, chunk):
                    data += parts.get(part)
            store.put(chunk.key, _filled(data, manifest.chunk_bytes))
        return through_here

    if not chunks or not put(chunks[0]):  # the first tells whether the storage can
        return not chunks
    each = in_parallel if len(chunks[0].stripes) == 1 else map
    return all(each(put, chunks[1:]))


def _join(store: Store, manifest: Manifest, chunk: ZarrChunk) -> bool:
    """Have the storage make a chunk of the objects that its parts are, if it can."""
    parts = _parts_of(manifest, chunk)
    keys = list(dict.fromkeys(part.key for part in parts))
    if not hasattr(store, "join") or not manifest.ends.keys() >= {*keys}:
        return False
    *starts, whole = accumulate((manifest.ends[key][1] for key in keys), initial=0)
    start_of = dict(zip(keys, starts))
    places = accumulate((part.size for part in parts), initial=0)
    are_in_a_row = all(start_of[part.key] + part.offset == place for part, place in zip(parts, places))
    if not are_in_a_row or whole != manifest.chunk_bytes:
        return False
    try:
        return bool(store.join(keys, chunk.key))
    except StorageError:  # one that is down says so when the manifest is written
        return False


def _filled(data: bytes | bytearray | memoryview, size: int) -> bytes | bytearray | memoryview:
    """`data` with zeros behind it if it is smaller than that."""
    return data if len(data) == size else b"".join([data, bytes(size - len(data))])


def _with_metadata(store: Store, manifest: Manifest) -> Manifest:
    """Stored last of all: then the Zarr array is there."""
    view = manifest.zarr
    assert view is not None
    documents = view.documents(manifest.shape, manifest.dtype, manifest_key(manifest.name))
    for key, text in documents.items():
        store.put(key, text)
    metadata = tuple(Part(key, len(text), zlib.crc32(text)) for key, text in documents.items())
    return replace(manifest, zarr=view._replace(metadata=metadata))
