"""The Zarr array of a coded array that is repaired: made whole again, or made if there was none yet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.arrays.array_tasks import PartTasks, TaskRunner
from polarmap.arrays.generations import Generation
from polarmap.arrays.manifest import Manifest
from polarmap.arrays.zarr_chunks import complete, in_chunks, parts_of, restore
from polarmap.arrays.zarr_view import GROUP, ZarrChunk
from polarmap.worker.parts import Part
from polarmap.worker.stored_output import OutputSpec

Array = npt.NDArray[Any]


def repair_zarr(
    runner: TaskRunner, generation: Generation, before: Manifest, now: Manifest, wrong: Collection[str]
) -> Manifest:
    """The repaired array `now` with the Zarr array that it should have.

    wrong : keys of objects of the Zarr array that are not as they should be.
    """
    if now.zarr is None:
        return now
    if not now.is_zarr:
        now = replace(now, zarr=now.zarr._replace(path=f"{generation.prefix}{GROUP}"))
        return complete(generation.store, _joined(runner, generation, now, now.chunks), through_here=True)
    moved = {chunk.key for chunk in now.chunks if parts_of(now, chunk) != parts_of(before, chunk)}
    changed = moved | set(wrong)
    chunks = [chunk for chunk in now.chunks if chunk.key in changed]
    return restore(generation.store, _joined(runner, generation, now, chunks), changed)


def _joined(
    runner: TaskRunner, generation: Generation, manifest: Manifest, chunks: Sequence[ZarrChunk]
) -> Manifest:
    """A manifest in which workers have joined the parts of each chunk to one object, as storages copy it.

    Without workers this process copies them where they belong, later.
    """
    apart = [chunk for chunk in chunks if len({part.key for part in parts_of(manifest, chunk)}) > 1]
    if runner.is_here or not apart:
        return manifest
    parts, joined = [parts_of(manifest, chunk) for chunk in apart], list[ZarrChunk]()

    def take(task: int, stored: list[Part], size: Array) -> None:
        joined.append(apart[task]._replace(key=stored[0].key))
        generation.heartbeat()

    bytes_of_parts = [np.dtype(np.uint8)] * len(parts[0])  # each is a block, cut like the others
    tasks = PartTasks(runner.parts, parts, bytes_of_parts)
    size = sum(part.size for part in parts[0])
    output = OutputSpec(runner.parts.place, f"{generation.prefix}joined", size)
    runner.run(joiner(), tasks, take, output)
    return in_chunks(manifest, joined)


def joiner() -> Callable[[Sequence[Array]], list[Array]]:
    """On a worker, which has numpy only: all parts in a row, and how many bytes that is."""

    def join(parts: Sequence[Array]) -> list[Array]:
        whole = np.concatenate(parts)
        return [whole, np.array([whole.size])]

    return join
