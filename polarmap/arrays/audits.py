"""Check coded arrays in storage: read all stored bytes, and compare them with their checksums.

`CodedArray.check` returns an `Audit`, which lists the damaged segments (a segment holds one stripe of one
block). `repairing` rebuilds them. Workers can read the segments, unless these are encrypted.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import numpy as np

from polarmap.arrays.array_jobs import ArrayJobRunner, SegmentTaskBlocks
from polarmap.arrays.manifest import Manifest, get_array_key_prefix
from polarmap.arrays.reading import StoredCodedBlocks, make_arrival_tracker
from polarmap.arrays.stores import SegmentStore
from polarmap.arrays.zarr_chunks import find_unrelated_zarr_keys, list_chunk_copy_and_metadata_segments
from polarmap.driver.prepared_map import make_context
from polarmap.dtypes import Array
from polarmap.executors.transfers import map_in_parallel
from polarmap.storage import Store
from polarmap.worker.segments import DamagedError, Segment

DAMAGE_KINDS = ("missing", "truncated", "corrupt", "forged", "appended", "foreign")

MAX_LISTED_DAMAGES = 12  # maximum number of damaged parts that are listed when an `Audit` is printed

# All tasks must read the same number of segments (byte ranges of objects). If there are too few segments for
# the last task, it reads this empty segment instead.
EMPTY_SEGMENT = Segment("", 0)


class Damage(NamedTuple):
    """A damaged segment of a coded array: the stored bytes of one stripe of one block.

    Attributes
    ----------
    block, stripe : int
        The block and the stripe (slice of all blocks) that the segment belongs to.
    kind : str
        What is wrong: "missing", "truncated", "corrupt" (the checksum differs), "forged" (the checksum is
        right, but the bytes were not encrypted for this position with the key of the array), or "appended"
        (the segment is intact, but is followed by unexpected bytes).
    key : str
        The key of the object that holds the segment.
    """

    block: int
    stripe: int
    kind: str
    key: str


@dataclass(frozen=True)
class Audit:
    """A report on damaged parts of a coded array, returned by `CodedArray.check` and `CodedArray.repair`.

    Print it to see a list, in which each segment is called a part of its block.

    Attributes
    ----------
    name : str
        The name of the array.
    n_blocks, n_stripes : int
        The number of blocks, and of segments (parts) per block.
    damaged : tuple of Damage
        The segments that are missing, truncated, corrupt, forged, or followed by unexpected bytes.
    undecodable_stripes : tuple of int
        The stripes (slices of all blocks) that `repair()` cannot rebuild, because too few of their segments
        are intact.
    zarr_damages : tuple of (str, str)
        Other damaged objects of the Zarr array, as (key, kind of damage) pairs. The kind is "foreign" for
        objects that do not belong to the array.
    is_repaired : bool
        Whether all damage has been repaired.
    """

    name: str
    n_blocks: int
    n_stripes: int
    damaged: tuple[Damage, ...]
    undecodable_stripes: tuple[int, ...]
    zarr_damages: tuple[tuple[str, str], ...] = ()
    is_repaired: bool = field(default=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether the check found no damage."""
        return not (self.damaged or self.zarr_damages)

    @property
    def damaged_blocks(self) -> list[int]:
        """The indices of all blocks with damage, in ascending order."""
        return sorted({damage.block for damage in self.damaged})

    def __repr__(self) -> str:
        headline = f"<Audit of {self.name!r}: {self.n_blocks} blocks of {self.n_stripes} parts"
        if self.ok:
            return f"{headline}, all good>"
        kinds = Counter(damage.kind for damage in self.damaged)
        counts = ", ".join(f"{kinds[kind]} {kind}" for kind in DAMAGE_KINDS if kinds[kind])
        if self.damaged:
            headline += f"; {'rebuilt ' * self.is_repaired}{counts}, in blocks {self.damaged_blocks}"
        if self.zarr_damages:
            state_text = "were wrong and are replaced" if self.is_repaired else "are wrong"
            headline += f"; {len(self.zarr_damages)} other objects of the Zarr array {state_text}"
        conclusion = (
            f"stripes {list(self.undecodable_stripes)} are lost"
            if self.undecodable_stripes
            else "repair() can rebuild them"
        )
        conclusion, prefix = ("all parts are good now", "was ") if self.is_repaired else (conclusion, "")
        lines = [
            f"block {damage.block}, part {damage.stripe}: {prefix}{damage.kind} ({damage.key})"
            for damage in self.damaged
        ]
        lines += [f"{prefix}{kind} ({key})" for key, kind in self.zarr_damages]
        if len(lines) > MAX_LISTED_DAMAGES:
            lines[MAX_LISTED_DAMAGES:] = [f"and {len(lines) - MAX_LISTED_DAMAGES} more"]
        return "\n  ".join([f"{headline}; {conclusion}", *lines]) + ">"


def audit_array(coded_blocks: StoredCodedBlocks, executor: Any = None) -> Audit:
    """Check all stored bytes of a coded array, and return an `Audit` that lists the damage.

    The array is read by the workers of `executor` or, if it is None, by this process.
    """
    manifest = coded_blocks.manifest
    n_stripes = len(manifest.stripe_bounds) - 1
    positions = [
        (block_index, stripe_index)
        for stripe_index in range(n_stripes)
        for block_index in range(manifest.code.n)
    ]
    segments = [manifest.segments[block_index][stripe_index] for block_index, stripe_index in positions]
    other_segments = list_chunk_copy_and_metadata_segments(manifest)
    damage_kinds = _find_damage_kinds(coded_blocks, [*segments, *other_segments], executor)
    damages = (
        Damage(*position, damage_kind, segment.key)
        for position, segment, damage_kind in zip(positions, segments, damage_kinds)
        if damage_kind
    )
    sorted_damages = tuple(sorted(damages))
    kind_by_zarr_key: dict[str, str] = {}
    for segment, damage_kind in zip(other_segments, damage_kinds[len(segments) :]):
        if damage_kind:
            kind_by_zarr_key.setdefault(segment.key, damage_kind)
    kind_by_zarr_key |= dict.fromkeys(
        find_unrelated_zarr_keys(coded_blocks.segment_store.store, manifest), "foreign"
    )
    undecodable_stripes = _find_undecodable_stripes(manifest, sorted_damages)
    return Audit(
        manifest.name,
        manifest.code.n,
        n_stripes,
        sorted_damages,
        undecodable_stripes,
        tuple(kind_by_zarr_key.items()),
    )


def _find_damage_kinds(
    coded_blocks: StoredCodedBlocks, segments: Sequence[Segment], executor: Any
) -> list[str]:
    """Return the kind of damage of each segment (byte range of an object), or "" if it is intact.

    Missing and truncated objects are detected by their sizes. All other segments are read and verified
    against their checksums. Unexpected bytes at the end of an object count as damage to its last segment.

    Encrypted arrays are always checked by this process. Their checksums are those of the encrypted bytes, but
    workers would compute the checksums of the decrypted bytes.
    """
    segment_store, manifest = coded_blocks.segment_store, coded_blocks.manifest
    size_by_key = _get_object_sizes(
        segment_store.store, manifest, {segment.key for segment in segments if segment.crc32 is not None}
    )
    damage_kinds, segments_to_read = list[str](), dict[int, Segment]()
    for index, segment in enumerate(segments):
        size, (read_end, is_last) = size_by_key.get(segment.key), _find_segment_read_end(manifest, segment)
        if segment.crc32 is None or size is None:
            damage_kinds.append("missing")
        elif size < read_end:
            damage_kinds.append("truncated")
        else:
            damage_kinds.append("appended" if is_last and size > read_end else "")
            # If the object is a Zarr chunk, zeros may follow the last segment as padding. Extend the segment
            # and its checksum by these zeros, so that damage to the padding is also found.
            n_zeros = read_end - segment.offset - manifest.get_stored_segment_size(segment)
            segments_to_read[index] = segment._replace(
                size=segment.size + n_zeros, crc32=zlib.crc32(bytes(n_zeros), segment.crc32)
            )
    if executor is None or not segment_store.has_plaintext_checksums:
        kinds_read = map_in_parallel(partial(_get_damage_kind, segment_store), segments_to_read.values())
    else:
        kinds_read = _find_damage_kinds_on_workers(
            segment_store, manifest.code.n, list(segments_to_read.values()), executor
        )
    for index, damage_kind in zip(segments_to_read, kinds_read):
        damage_kinds[index] = damage_kind or damage_kinds[index]
    return damage_kinds


def _get_damage_kind(segment_store: SegmentStore, segment: Segment) -> str:
    """Read a segment (byte range of an object), and return its kind of damage, or "" if it is intact."""
    try:
        segment_store.get(segment)
    except DamagedError as error:
        return error.kind
    return ""


def _get_object_sizes(store: Store, manifest: Manifest, keys: Collection[str]) -> Mapping[str, int | None]:
    """Return the size in bytes of each object in `keys`, or None if the object does not exist.

    If the store can list the sizes of all objects of the array, this is a single request. The sizes of
    objects that are not listed are requested one by one.
    """
    listed_sizes = (
        store.list_sizes(get_array_key_prefix(manifest.name)) if hasattr(store, "list_sizes") else {}
    )
    unlisted_keys = [key for key in keys if key not in listed_sizes]
    return {**listed_sizes, **dict(zip(unlisted_keys, map_in_parallel(store.size, unlisted_keys)))}


def _find_segment_read_end(manifest: Manifest, segment: Segment) -> tuple[int, bool]:
    """Return the offset at which to stop reading a segment, and whether it is the last one in its object.

    A segment is a byte range of an object. It is usually read up to its own end, but the last segment is read
    up to the end of the object, which may be padded with zeros.
    """
    segment_end = segment.offset + manifest.get_stored_segment_size(segment)
    last_segment_end, object_end = manifest.object_extents.get(segment.key, (0, segment_end))
    return (object_end, True) if segment_end == last_segment_end else (segment_end, False)


def _find_damage_kinds_on_workers(
    segment_store: SegmentStore, n_per_task: int, segments: Sequence[Segment], executor: Any
) -> list[str]:
    """Let workers compute the checksums of segments, and return the kind of damage of each segment.

    A segment is a byte range of an object. The kind is "corrupt" if the checksum differs, and "" for intact
    segments. Each task reads `n_per_task` segments.
    """
    unchecked_segments = (segment._replace(crc32=None) for segment in segments)
    segments_by_task = list(zip_longest(*[unchecked_segments] * n_per_task, fillvalue=EMPTY_SEGMENT))
    checksums_by_task: dict[int, list[int]] = {}

    def on_task_done(task: int, stored: list[Segment], checksums: Array) -> None:
        checksums_by_task[task] = checksums.tolist()

    task_blocks = SegmentTaskBlocks(segment_store, segments_by_task, [np.dtype(np.uint8)] * n_per_task)
    ArrayJobRunner(segment_store, executor, make_context(None)).run_tasks(
        make_checksum_function(), task_blocks, on_task_done
    )
    checksums = chain.from_iterable(checksums_by_task[task] for task in range(len(segments_by_task)))
    return ["" if segment.crc32 == checksum else "corrupt" for segment, checksum in zip(segments, checksums)]


def make_checksum_function() -> Callable[[Sequence[Array]], list[Array]]:
    """Return a function that computes the CRC-32 checksum of each array.

    Workers can run the function with only numpy installed.
    """
    return lambda segments: [np.array([zlib.crc32(segment.data) for segment in segments], np.int64)]


def _find_undecodable_stripes(manifest: Manifest, damages: Iterable[Damage]) -> tuple[int, ...]:
    """Return the stripes (slices of all blocks) that have too many damaged blocks to be decoded."""
    all_blocks = set(range(manifest.code.n))
    erased_by_stripe = find_erased_blocks_by_stripe(damages).items()
    return tuple(
        stripe
        for stripe, erased_blocks in sorted(erased_by_stripe)
        if not make_arrival_tracker(manifest, all_blocks - erased_blocks).is_ready
    )


def find_erased_blocks_by_stripe(damages: Iterable[Damage]) -> dict[int, set[int]]:
    """Return the set of damaged blocks (erasures) for each damaged stripe (slice of all blocks).

    Unexpected bytes at the end ("appended") do not count, because they leave the block itself intact.
    """
    erased_by_stripe: dict[int, set[int]] = {}
    for damage in damages:
        if damage.kind != "appended":
            erased_by_stripe.setdefault(damage.stripe, set()).add(damage.block)
    return erased_by_stripe
