"""Repair coded arrays in storage: rebuild damaged parts from intact ones.

    audit -> stripes grouped by the blocks they have lost -> new segments -> new manifest

A stripe is the same slice of every block, and a segment holds the stored bytes of one stripe of one block. A
damaged segment is a weighted sum of intact segments of the same stripe. The weights are the same for all
stripes that have lost the same blocks, so workers can compute the sums. Stripes that contain NaN or inf are
decoded in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from polarmap.arrays.array_jobs import ArrayJobRunner, SegmentTaskBlocks
from polarmap.arrays.audits import Audit, audit_array, find_erased_blocks_by_stripe
from polarmap.arrays.manifest import Manifest
from polarmap.arrays.reading import StoredCodedBlocks, decode_stripe_blocks
from polarmap.arrays.weighted_sums import compute_recovery_weights, make_weighted_sum_function
from polarmap.arrays.write_transaction import WriteTransaction
from polarmap.arrays.zarr_chunks import repair_zarr_array
from polarmap.codes import modular_linalg
from polarmap.driver.prepared_map import make_context
from polarmap.dtypes import Array, is_integer_dtype
from polarmap.errors import NotDecodableError, StorageError
from polarmap.worker.segments import Segment
from polarmap.worker.task_records import OutputSpec


def repair_array(
    coded_blocks: StoredCodedBlocks, manifest_bytes: bytes, executor: Any = None
) -> tuple[Manifest, Audit]:
    """Find all missing and damaged parts of a coded array in storage, and rebuild them.

    Rebuilt parts are stored in new objects. The manifest (the document that says where the parts are) is
    replaced last, so an interrupted or failed repair changes nothing.

    Parameters
    ----------
    coded_blocks : StoredCodedBlocks
        The blocks of the array.
    manifest_bytes : bytes
        The stored bytes of the current manifest.
    executor : optional
        The executor whose workers read and rebuild the array. If None, this process does.

    Returns
    -------
    manifest : Manifest
        The manifest of the repaired array.
    audit : Audit
        The damage that was found and repaired.

    Raises
    ------
    NotDecodableError
        If too many parts of a stripe (the same slice of every block) are damaged.
    """
    manifest, audit = coded_blocks.manifest, audit_array(coded_blocks, executor)
    if audit.ok and (manifest.zarr_view is None or manifest.has_zarr_array):
        return manifest, audit
    if audit.undecodable_stripes:
        raise NotDecodableError(
            f"repair() cannot rebuild all stripes, because too many parts are damaged: {audit!r}"
        )
    runner = ArrayJobRunner(coded_blocks.segment_store, executor, make_context(None))
    with WriteTransaction(coded_blocks.segment_store, manifest.name) as transaction:
        repaired_manifest = _ArrayRepair(runner, transaction, coded_blocks).rebuild_damaged_segments(audit)
        return transaction.commit(repaired_manifest, manifest_bytes), replace(audit, is_repaired=True)


class _ArrayRepair:
    """Rebuilds the damaged parts of a coded array, and stores them in a single transaction."""

    def __init__(
        self, runner: ArrayJobRunner, transaction: WriteTransaction, coded_blocks: StoredCodedBlocks
    ) -> None:
        self._runner, self._transaction, self._coded_blocks = runner, transaction, coded_blocks
        self._manifest = coded_blocks.manifest

    def rebuild_damaged_segments(self, audit: Audit) -> Manifest:
        """Rebuild and store everything that `audit` lists as damaged.

        Returns the manifest of the repaired array.
        """
        runner, transaction, manifest = self._runner, self._transaction, self._manifest
        rebuilt_segments: dict[tuple[int, int], Segment] = {}
        for group_index, ((erased, rewritten), stripes) in enumerate(
            _group_stripes_by_erasures(manifest, audit).items()
        ):
            segments_by_stripe = self._rebuild_stripes(
                f"{transaction.prefix}rebuilt{group_index}", erased, rewritten, stripes
            )
            for stripe_index in stripes:
                if stripe_index not in segments_by_stripe:
                    decoded_blocks = self._decode_stripe(stripe_index, rewritten).items()
                    segments_by_stripe[stripe_index] = {
                        block_index: transaction.store_segment(block_index, stripe_index, values)
                        for block_index, values in decoded_blocks
                    }
                    transaction.write_heartbeat()
            rebuilt_segments |= {
                (block_index, stripe_index): segment
                for stripe_index in segments_by_stripe
                for block_index, segment in segments_by_stripe[stripe_index].items()
            }
        if manifest.dtype.kind in "iu" and runner.segment_store.has_plaintext_checksums:
            for position, segment in rebuilt_segments.items():
                _check_integers_unchanged(manifest, *position, segment)
        damaged_keys = {key for key, _ in audit.zarr_damages}
        return repair_zarr_array(
            runner, transaction, manifest, manifest.with_replaced_segments(rebuilt_segments), damaged_keys
        )

    def _rebuild_stripes(
        self,
        key_prefix: str,
        erased_blocks: Sequence[int],
        rewritten_blocks: Sequence[int],
        stripe_indices: Sequence[int],
    ) -> dict[int, dict[int, Segment]]:
        """Rebuild stripes with the same erasures, using one task per stripe, and store the results.

        Lost segments (the bytes of one stripe of one block) are computed as weighted sums of intact segments.

        Parameters
        ----------
        key_prefix : str
            The prefix for the keys of the new objects.
        erased_blocks : sequence of int
            The blocks that have lost their segment in each of these stripes.
        rewritten_blocks : sequence of int
            Blocks whose segment is intact, but has to be stored again because its object is damaged
            elsewhere.
        stripe_indices : sequence of int
            The stripes to rebuild.

        Returns
        -------
        dict of int to dict of int to Segment
            For each stripe, the new segments by block. Stripes that contain NaN or inf are left out, because
            workers, which have only numpy, cannot decode them.
        """
        manifest, runner, dtype_of = self._manifest, self._runner, self._manifest.get_block_dtype
        available = np.setdiff1d(np.arange(manifest.code.n), erased_blocks)
        weights = compute_recovery_weights(manifest.code, manifest.dtype, erased_blocks)
        is_read_mask = weights.any(axis=0) | np.isin(available, rewritten_blocks)
        read_blocks = available[is_read_mask].tolist()
        rebuilt_by_stripe: dict[int, dict[int, Segment]] = {}

        def on_task_done(task: int, segments: list[Segment], all_finite: Array) -> None:
            if all_finite.all():
                block_indices = [*rewritten_blocks, *erased_blocks]
                rebuilt_by_stripe[stripe_indices[task]] = dict(zip(block_indices, segments))
            self._transaction.write_heartbeat()

        is_modular = runner.is_local and is_integer_dtype(manifest.dtype)
        multiply = modular_linalg.matmul_mod64 if is_modular else np.matmul
        dtypes = list(map(dtype_of, erased_blocks))
        compute_sums = make_weighted_sum_function(weights[:, is_read_mask], dtypes, multiply)
        rebuild_task = make_rebuild_function(compute_sums, list(map(read_blocks.index, rewritten_blocks)))
        segments = [
            [manifest.segments[block_index][stripe_index] for block_index in read_blocks]
            for stripe_index in stripe_indices
        ]
        bounds, n_outputs = manifest.stripe_bounds, len(rewritten_blocks) + len(erased_blocks)
        max_stripe_size = max(bounds[index + 1] - bounds[index] for index in stripe_indices)
        output = OutputSpec(runner.segment_store.location, key_prefix, max_stripe_size, n_outputs)
        read_dtypes = list(map(dtype_of, read_blocks))
        task_blocks = SegmentTaskBlocks(runner.segment_store, segments, read_dtypes)
        runner.run_tasks(rebuild_task, task_blocks, on_task_done, output)
        return rebuilt_by_stripe

    def _decode_stripe(self, stripe_index: int, rewritten_blocks: Collection[int]) -> dict[int, Array]:
        """Decode one stripe (the same slice of every block) in this process, even if it contains NaN or inf.

        Returns a dict from block index to the slice to store. It contains the decoded slices of all damaged
        blocks, and the unchanged slices of `rewritten_blocks`.
        """
        manifest, code = self._manifest, self._manifest.code
        intact_rows = self._coded_blocks.read_intact_segments(stripe_index, range(code.n))
        damaged_blocks = [block_index for block_index in range(code.n) if block_index not in intact_rows]
        rebuilt = {
            block_index: intact_rows[block_index]
            for block_index in rewritten_blocks
            if block_index in intact_rows
        }
        erased_data_blocks = [block_index for block_index in damaged_blocks if block_index < code.k]
        if erased_data_blocks:
            rebuilt |= decode_stripe_blocks(manifest, stripe_index, erased_data_blocks, intact_rows)
        if max(damaged_blocks, default=0) >= code.k:
            parity = code.encode_parity(
                [
                    (rebuilt if block_index in damaged_blocks else intact_rows)[block_index]
                    for block_index in range(code.k)
                ]
            )
            rebuilt |= {
                block_index: parity[block_index - code.k]
                for block_index in damaged_blocks
                if block_index >= code.k
            }
        return {
            block_index: values.astype(manifest.get_block_dtype(block_index), copy=False)
            for block_index, values in rebuilt.items()
        }


def _group_stripes_by_erasures(
    manifest: Manifest, audit: Audit
) -> dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]]:
    """Group the damaged stripes (slices of all blocks) by the blocks that have to be stored again.

    Returns a dict from (erased blocks, rewritten blocks) to a list of stripes. The slices of erased blocks
    are lost. The slices of rewritten blocks are intact, but stored in the same object as damaged bytes.
    """
    erased_by_stripe = find_erased_blocks_by_stripe(audit.damaged)
    damaged_keys = {damage.key for damage in audit.damaged} & manifest.object_extents.keys()
    stripes_by_erasures: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for stripe_index in range(audit.n_stripes):
        erased = erased_by_stripe.get(stripe_index, set())
        affected_blocks = (
            block_index
            for block_index, segments in enumerate(manifest.segments)
            if segments[stripe_index].key in damaged_keys
        )
        rewritten = tuple(block_index for block_index in affected_blocks if block_index not in erased)
        if erased or rewritten:
            stripes_by_erasures.setdefault((tuple(sorted(erased)), rewritten), []).append(stripe_index)
    return stripes_by_erasures


def make_rebuild_function(
    compute_sums: Callable[[Sequence[Array]], list[Array]], rewritten_rows: Sequence[int]
) -> Callable[[Sequence[Array]], list[Array]]:
    """Return a function that rebuilds a stripe (the same slice of every block) on a worker.

    Workers can run the function with only numpy installed. It is called with a list of rows, one per intact
    block, and returns a list of arrays to store: first the rows with the indices `rewritten_rows`, unchanged,
    and then the lost rows, which `compute_sums` computes. The last item of the list is an array with one
    boolean, whether all numbers are finite.
    """

    def rebuild_rows(rows: Sequence[Array]) -> list[Array]:
        rebuilt_rows = compute_sums(rows)
        all_finite = all(row.dtype.kind in "iu" or np.isfinite(row).all() for row in [*rows, *rebuilt_rows])
        return [*(rows[row_index] for row_index in rewritten_rows), *rebuilt_rows, np.array([all_finite])]

    return rebuild_rows


def _check_integers_unchanged(
    manifest: Manifest, block_index: int, stripe_index: int, segment: Segment
) -> None:
    """Raise StorageError if the checksum of rebuilt integers differs from that of the original ones.

    Integers are decoded exactly. A mismatch therefore means that the parts used for decoding are wrong, too.
    """
    if manifest.segments[block_index][stripe_index].crc32 not in (None, segment.crc32):
        raise StorageError(
            f"part {stripe_index} of block {block_index} of {manifest.name!r} decodes to different numbers "
            "than were stored, so the parts do not belong together: encode again with overwrite=True"
        )
