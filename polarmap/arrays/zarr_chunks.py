"""Putting the chunks of the Zarr array where Zarr looks for them, and its metadata last."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy.typing as npt

from polarmap.arrays.fetching import TRANSFERS
from polarmap.arrays.keys import manifest_key
from polarmap.arrays.manifest import Manifest, ZarrChunk, checksum
from polarmap.arrays.stripes import StripePlan
from polarmap.arrays.zarr_view import ZarrView
from polarmap.errors import StorageError
from polarmap.storage.base import Store
from polarmap.worker.parts import Part, assemble


def complete(store: Store, manifest: Manifest, through_here: bool) -> Manifest:
    """A manifest whose data parts lie in the chunks of a Zarr array, once these are stored.

    Parts that lie elsewhere are joined to chunks by the storage itself, or read and written by this process
    where it may (`through_here`). Else, and while parts are missing, the manifest stays what it is.
    """
    data = chain.from_iterable(manifest.parts[: manifest.code.k])
    if manifest.zarr is None or any(part.crc32 is None for part in data):
        return manifest
    moves = [chunk for chunk in manifest.zarr_chunks if manifest.lies_elsewhere(chunk)]
    if not _put_chunks(store, manifest, moves, through_here):
        return manifest
    moved = {
        (chunk.block, stripe): part
        for chunk in moves
        for stripe, part in zip(chunk.stripes, manifest.chunk_parts(chunk)[1])
    }
    return _with_metadata(store, manifest.with_parts(moved))


def restore(store: Store, manifest: Manifest, changed: Collection[str]) -> Manifest:
    """The Zarr array of a manifest made whole again where the objects `changed` are not as they should be.

    Parts that lie elsewhere stay there: nobody else writes to them.
    """
    wrong = [
        chunk for chunk in manifest.zarr_chunks if chunk.key in changed and manifest.lies_elsewhere(chunk)
    ]
    _put_chunks(store, manifest, wrong, True)
    is_described = not {part.key for part in manifest.zarr.metadata} & set(changed) if manifest.zarr else True
    return manifest if is_described else _with_metadata(store, manifest)


def _put_chunks(store: Store, manifest: Manifest, chunks: Sequence[ZarrChunk], through_here: bool) -> bool:
    """Store chunks whose parts lie elsewhere; False if only this process could, and may not."""

    def put(chunk: ZarrChunk) -> bool:
        if _join(store, manifest, chunk):
            return True
        if through_here:
            _copy(store, manifest, chunk)
        return through_here

    if not chunks or not put(chunks[0]):  # the first tells whether the storage can
        return not chunks
    with ThreadPoolExecutor(TRANSFERS if len(chunks[0].stripes) == 1 else 1) as pool:
        return all(pool.map(put, chunks[1:]))


def _join(store: Store, manifest: Manifest, chunk: ZarrChunk) -> bool:
    """Have the storage make a chunk of the objects that its parts are, if it can."""
    keys, size = _whole_objects(manifest, manifest.chunk_parts(chunk)[0])
    assert manifest.zarr is not None
    if not hasattr(store, "join") or size != manifest.zarr.chunk_bytes(manifest.dtype):
        return False
    try:
        return bool(store.join(keys, chunk.key))
    except StorageError:  # one that is down says so when the manifest is written
        return False


def _whole_objects(manifest: Manifest, parts: Sequence[Part]) -> tuple[list[str], int]:
    """The objects that these parts are, and their bytes together; none if they are pieces of others."""
    keys = list(dict.fromkeys(part.key for part in parts))
    if any(key not in manifest.ends for key in keys):
        return [], 0
    starts, start = {}, 0
    for key in keys:
        starts[key], start = start, start + manifest.ends[key][1]
    at = 0
    for part in parts:
        if starts[part.key] + part.offset != at:
            return [], 0
        at += part.size
    return keys, start


def _copy(store: Store, manifest: Manifest, chunk: ZarrChunk) -> None:
    """Read the parts of a chunk and write it."""
    parts, _ = manifest.chunk_parts(chunk)
    data = assemble(parts, lambda part: store.get(part.key, part.offset, part.offset + part.size))
    assert manifest.zarr is not None
    store.put(chunk.key, _filled(data, manifest.zarr.chunk_bytes(manifest.dtype)))


def put_stripe(
    store: Store, path: str, plan: StripePlan, block: int, stripe: int, row: npt.NDArray[Any]
) -> Part | None:
    """Store a stripe of a data block as a chunk of the Zarr array at `path`; None if it is none."""
    if plan.chunk_shape is None or not plan.stripes_are_chunks:
        return None
    view = ZarrView(path, plan.chunk_shape)
    key = view.chunk_key(plan.shape, plan.rows, block, stripe)
    if key is None:
        return None
    store.put(key, _filled(row.data.cast("B"), view.chunk_bytes(plan.dtype)))
    return Part(key, row.nbytes, checksum(row))


def _filled(data: bytes | bytearray | memoryview, size: int) -> bytes | bytearray | memoryview:
    """`data` with zeros behind it if it is smaller than that."""
    return data if len(data) == size else b"".join([data, bytes(size - len(data))])


def _with_metadata(store: Store, manifest: Manifest) -> Manifest:
    assert manifest.zarr is not None
    documents = manifest.zarr.documents(manifest.shape, manifest.dtype, manifest_key(manifest.name))
    for key, text in documents.items():
        store.put(key, text)
    metadata = tuple(Part(key, len(text), checksum(text)) for key, text in documents.items())
    return replace(manifest, zarr=manifest.zarr._replace(metadata=metadata))


def copies_and_metadata(manifest: Manifest) -> list[Part]:
    """What the Zarr array consists of beside the parts of the data blocks: copies of these, and metadata."""
    if manifest.zarr is None or not manifest.is_zarr:
        return []
    copied = filter(manifest.lies_elsewhere, manifest.zarr_chunks)
    copies = [part for chunk in copied for part in manifest.chunk_parts(chunk)[1]]
    return [*copies, *manifest.zarr.metadata]


def foreign_keys(store: Store, manifest: Manifest) -> list[str]:
    """Keys in the Zarr array that do not belong to it."""
    if manifest.zarr is None or not manifest.is_zarr:
        return []
    return [key for key in store.keys(f"{manifest.zarr.path}/") if key not in manifest.objects]
