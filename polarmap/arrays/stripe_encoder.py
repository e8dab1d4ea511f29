"""Encode an array stripe by stripe, and store it as a coded array.

    one task: stripe of k data blocks --read--> k rows --encode--> n rows --store--> n segments, summary

A stripe is the same slice of every block, and a segment holds the stored bytes of one stripe of one block.
The manifest, which describes the array, is written last. Each task also returns a summary that counts NaN and
inf, for a warning at the end. If encoding is interrupted, the next call with the same arguments reuses the
finished stripes.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from polarmap.arrays.array_jobs import ArrayJobRunner
from polarmap.arrays.manifest import Manifest, get_array_key_prefix, serialize_code
from polarmap.arrays.sources import DataSource
from polarmap.arrays.stripes import StripePlan
from polarmap.arrays.weighted_sums import make_parity_function
from polarmap.arrays.write_transaction import WriteTransaction, check_manifest_replaceable
from polarmap.arrays.zarr_chunks import publish_as_zarr_array, store_stripe_as_chunk
from polarmap.dtypes import Array
from polarmap.errors import CodeError, StorageError, warn
from polarmap.executors.interface import TaskBlocks
from polarmap.storage import Store
from polarmap.worker.pytree import Layout
from polarmap.worker.segments import Segment
from polarmap.worker.task_records import OutputSpec

# Each encoding task returns a summary, which is an array of integers. The first three are:
# - the number of NaN and inf entries in the data,
# - the index of the first such entry,
# - the number of positions at which all data blocks are finite, but a parity block overflows.
# They may be followed by checksums of the data.
N_NONFINITE_FIELDS = 3


class StripeEncoder:
    """Reads, encodes and stores an array, with one task per stripe (the same slice of every block).

    If the tasks run on workers, the workers read the data themselves. The constructor raises CodeError if
    they cannot. Data blocks that are already in the store are not copied.

    Parameters
    ----------
    runner : ArrayJobRunner
        Runs the tasks, on workers or in this process.
    source : DataSource
        The data to encode.
    plan : StripePlan
        How the data is cut into blocks and stripes, and the code.
    """

    def __init__(self, runner: ArrayJobRunner, source: DataSource, plan: StripePlan) -> None:
        self._runner, self._source, self._plan = runner, source, plan
        self._summaries: dict[int, Array] = {}  # the summary that each task returned, by stripe index
        positions = itertools.product(range(plan.code.k), range(len(plan.hyperslabs)))
        if not runner.is_local and not all(
            source.find_segments(plan.get_data_slab(*position)) for position in positions
        ):
            raise CodeError(
                "with executor=, workers must be able to read the data themselves: pass a .npy file or "
                "memory "
                "map on this machine, or objects in the storage such that every block consists of whole "
                "objects, without padding rows. Or leave executor out to encode in this process"
            )

    def encode_and_store_array(self, array_name: str, overwrite: bool) -> Manifest:
        """Encode the array, store its n blocks, and return its manifest.

        Warns if the data contains NaN or inf.
        """
        plan, store = self._plan, self._runner.segment_store.store
        previous_manifest = check_manifest_replaceable(
            store, array_name, "" if overwrite else ", or pass overwrite=True"
        )
        if hasattr(store, "remove_stale_files"):
            store.remove_stale_files()
        with WriteTransaction(self._runner.segment_store, array_name, _build_resume_key(plan)) as transaction:
            reused_stripes = self._find_reusable_stripes(transaction.find_resumable_stripes())
            stripes = range(len(plan.hyperslabs))
            segments_by_stripe = reused_stripes | self._encode_stripes(
                [stripe_index for stripe_index in stripes if stripe_index not in reused_stripes], transaction
            )
            segments = tuple(
                tuple(segments_by_stripe[stripe_index][block_index] for stripe_index in stripes)
                for block_index in range(plan.code.n)
            )
            manifest = Manifest(array_name, plan.shape, plan.dtype, plan.code, segments)
            if plan.chunk_shape is not None:
                manifest = publish_as_zarr_array(transaction, manifest, plan.chunk_shape)
                # Omit the Zarr array if it could not be completed because its chunks are whole blocks. Each
                # chunk would have to be concatenated from several objects (the stripes of a block), which
                # this storage cannot do. A later repair could not do it either if a block exceeds its memory.
                if not manifest.has_zarr_array and not plan.has_chunk_per_stripe:
                    manifest = replace(manifest, zarr_view=None)
            if reused_stripes:
                _check_objects_exist(store, manifest)
            manifest = transaction.commit(manifest, previous_manifest)
        warn_if_nonfinite(plan, self._summaries.items())
        return manifest

    def _find_reusable_stripes(self, earlier_segments: dict[int, list[Segment]]) -> dict[int, list[Segment]]:
        """Return the stripes that an interrupted call has stored, and whose data has not changed since.

        A stripe is the same slice of every block. To detect changes, the data is read again and its checksums
        are compared. Stripes that need padding to the size of a Zarr chunk are not reused, because there is
        no record of whether they were padded.

        Parameters
        ----------
        earlier_segments : dict of int to list of Segment
            The segments (byte ranges of objects) of each stripe that the interrupted call has stored.

        Returns
        -------
        dict of int to list of Segment
            The items of `earlier_segments` that can be reused.
        """
        plan, reused_stripes = self._plan, dict[int, list[Segment]]()
        stripes = [
            index
            for index in range(len(plan.hyperslabs))
            if index in earlier_segments and not plan.is_padded_chunk(index)
        ]

        def compare_checksums(task: int, segments: list[Segment], summary: Array) -> None:
            stripe_index = stripes[task]
            earlier_checksums = [segment.crc32 for segment in earlier_segments[stripe_index][: plan.code.k]]
            if summary[N_NONFINITE_FIELDS:].tolist() == earlier_checksums:
                self._summaries[stripe_index] = summary
                reused_stripes[stripe_index] = earlier_segments[stripe_index]

        task_blocks = StripeTaskBlocks(plan, self._source, stripes)
        compute_checksums = make_stripe_encode_function(None, include_data=False)
        self._runner.run_tasks(compute_checksums, task_blocks, compare_checksums)
        return reused_stripes

    def _encode_stripes(
        self, stripes: Sequence[int], transaction: WriteTransaction
    ) -> dict[int, list[Segment]]:
        """Encode and store the given stripes (slices of all blocks).

        Returns the segments (byte ranges of objects) of each stripe, one segment per block. Finished stripes
        are recorded in storage, so that a later call can reuse them.
        """
        plan, code, segments_by_stripe = self._plan, self._plan.code, dict[int, list[Segment]]()
        task_blocks = StripeTaskBlocks(plan, self._source, stripes)
        include_data = self._runner.is_local or not self._source.rows_per_object

        def store_row(task: int, block_index: int, row: Array) -> Segment:
            return self._store_block_stripe(transaction, block_index, stripes[task], row)

        def on_task_done(task: int, segments: list[Segment], summary: Array) -> None:
            stripe_index = stripes[task]
            self._summaries[stripe_index] = summary
            if not include_data:
                data = zip(task_blocks.block_segments(task), summary[N_NONFINITE_FIELDS:].tolist())
                segments = [segment._replace(crc32=crc32) for segment, crc32 in data] + segments
            segments_by_stripe[stripe_index] = segments
            # Record each finished stripe for a later call, in case this call is interrupted. The last stripe
            # needs no record, because the array is complete once this stripe is stored.
            if len(segments_by_stripe) < len(stripes):
                transaction.record_finished_stripe(stripe_index, segments)

        n_arrays = code.n if include_data else code.n - code.k
        max_items = max(plan.max_stripe_size, code.k + N_NONFINITE_FIELDS)
        location = self._runner.segment_store.location
        output = OutputSpec(location, f"{transaction.prefix}stripes", max_items, n_arrays)
        encode_parity: Callable[[Any], Any] = code.encode_parity
        if not self._runner.is_local:
            encode_parity = make_parity_function(code, plan.dtype)
        self._runner.run_tasks(
            make_stripe_encode_function(encode_parity, include_data),
            task_blocks,
            on_task_done,
            output,
            store_row,
        )
        return segments_by_stripe

    def _store_block_stripe(
        self, transaction: WriteTransaction, block_index: int, stripe_index: int, row: Array
    ) -> Segment:
        """Store a row (one stripe of one block), as a Zarr chunk if possible, and return its location.

        A row that is already in the store is not copied.
        """
        plan = self._plan
        if block_index < plan.code.k:
            if self._source.rows_per_object:
                for segment in self._source.find_segments(plan.get_data_slab(block_index, stripe_index)):
                    return segment._replace(crc32=zlib.crc32(row.data))
            chunk_segment = store_stripe_as_chunk(transaction, plan, block_index, stripe_index, row)
            if chunk_segment is not None:
                return chunk_segment
        return transaction.store_segment(block_index, stripe_index, row)


def _build_resume_key(plan: StripePlan) -> dict[str, Any]:
    """Return the parameters that identify a call of `encode`, as JSON types.

    A call resumes an interrupted call only if all of these parameters are equal.
    """
    return {
        "shape": list(plan.shape),
        "dtype": plan.dtype.str,
        "code": serialize_code(plan.code),
        "stripes": [len(plan.hyperslabs), plan.max_stripe_size],
        "chunk": plan.chunk_shape and list(plan.chunk_shape),
    }


def _check_objects_exist(store: Store, manifest: Manifest) -> None:
    """Raise StorageError if objects of the array are missing.

    This happens if another process deletes the objects of an interrupted call while this call reuses them.
    """
    prefix = get_array_key_prefix(manifest.name)
    missing_keys = {key for key in manifest.object_keys if key.startswith(prefix)} - set(store.keys(prefix))
    if missing_keys:
        raise StorageError(
            f"another process has removed {len(missing_keys)} objects of {manifest.name!r} in {store.name} "
            "meanwhile: encode again"
        )


class StripeTaskBlocks(TaskBlocks):
    """The input of encoding tasks: for each task, one stripe (the same slice) of all k data blocks.

    Workers read it from the file or objects that hold the data.
    """

    def __init__(self, plan: StripePlan, data_source: DataSource, stripes: Sequence[int]) -> None:
        self._plan, self._data_source, self._stripes = plan, data_source, stripes
        self.n, self.structure = len(stripes), ("array",)
        self.location = data_source.location

    def block_segments(self, task: int) -> tuple[Segment, ...]:
        """Return the segments (byte ranges of files or objects) from which a worker reads a task's input.

        The segments are in the order of the data blocks.
        """
        plan, stripe_index = self._plan, self._stripes[task]
        slabs = (
            plan.get_data_slab(data_block_index, stripe_index) for data_block_index in range(plan.code.k)
        )
        return tuple(segment for slab in slabs for segment in self._data_source.find_segments(slab))

    def block_layout(self, task: int) -> Layout:
        """Return the dtype and shape of a task's input: an array with one row per data block."""
        stripe_size = self._plan.count_stripe_elements(self._stripes[task])
        return ((self._plan.dtype.str, (self._plan.code.k, stripe_size)),)

    def component_leaves(self, component: int) -> list[Array]:
        """Read the input of a task in this process, instead of on a worker."""
        [(_, shape)] = self.block_layout(component)
        rows = np.empty(shape, self._plan.dtype)
        for data_block_index, row in enumerate(rows):
            self._data_source.read_slab(
                self._plan.get_data_slab(data_block_index, self._stripes[component]), row
            )
        return [rows]


def warn_if_nonfinite(plan: StripePlan, summaries: Iterable[tuple[int, Array]]) -> None:
    """Warn if the data contains NaN or inf, or if parity blocks of finite data overflow.

    `summaries` are (stripe index, summary of its encoding task) pairs.
    """
    counts_by_stripe = [(stripe, summary[:N_NONFINITE_FIELDS].tolist()) for stripe, summary in summaries]
    n_nonfinite, n_overflowing = (sum(counts[i] for _, counts in counts_by_stripe) for i in (0, 2))
    text = []
    if n_nonfinite:
        stripe_sizes = map(plan.count_stripe_elements, range(len(plan.hyperslabs)))
        stripe_starts = list(accumulate(stripe_sizes, initial=0))
        nonfinite_positions = [
            (stripe_index, *divmod(first_index, plan.count_stripe_elements(stripe_index)))
            for stripe_index, (n_in_stripe, first_index, _) in counts_by_stripe
            if n_in_stripe
        ]
        position = min(
            block_index * stripe_starts[-1] + stripe_starts[stripe_index] + column
            for stripe_index, block_index, column in nonfinite_positions
        )
        first_index = [int(coordinate) for coordinate in np.unravel_index(position, plan.shape)]
        entries_text = "1 entry is" if n_nonfinite == 1 else f"{n_nonfinite} entries are"
        text.append(f"{entries_text} NaN or inf, the first at index {first_index}")
    if n_overflowing:
        places_text = "1 position" if n_overflowing == 1 else f"{n_overflowing} positions"
        text.append(f"the parity overflows {plan.parity_dtype} at {places_text} of a block")
    if text:
        warn(f"{' and '.join(text)}: if a block is lost, its entries at these positions cannot be decoded")


# --- functions that run on workers, which have only numpy ----------------------------------------


def make_stripe_encode_function(
    encode_parity: Callable[[Any], Any] | None, include_data: bool
) -> Callable[[Array], list[Array]]:
    """Return a function that encodes one stripe (the same slice of every block) on a worker.

    Workers can run the function with only numpy installed. It is called with an array that has one row per
    data block. It returns a list of the rows to store, followed by a summary that counts NaN and inf entries.

    Parameters
    ----------
    encode_parity : callable or None
        Called with the stripe; returns the parity rows. None if the stripe is already encoded.
    include_data : bool
        Whether to return the data rows before the parity rows. If False, the summary contains their checksums
        instead.
    """

    def count_nonfinite(stripe: Array, rows: Sequence[Array]) -> list[int]:
        if stripe.dtype.kind in "iu" or (rows and all(np.isfinite(row).all() for row in rows)):
            return [0, 0, 0]
        n_nonfinite, first_index, stripe_size = 0, 0, stripe.shape[1]
        nonfinite_columns, overflow_columns = np.zeros(stripe_size, bool), np.zeros(stripe_size, bool)
        # Check rows one by one, because a mask for all rows would exceed the memory budget.
        for block_index, row in enumerate(stripe):
            nonfinite = ~np.isfinite(row)
            if not n_nonfinite and nonfinite.any():
                first_index = block_index * stripe_size + int(nonfinite.argmax())
            n_nonfinite += int(nonfinite.sum())
            nonfinite_columns |= nonfinite
        for row in rows:
            overflow_columns |= ~np.isfinite(row)
        return [n_nonfinite, first_index, int((overflow_columns & ~nonfinite_columns).sum())]

    def encode_stripe(stripe: Array) -> list[Array]:
        rows = [] if encode_parity is None else list(encode_parity(stripe))
        nonfinite = count_nonfinite(stripe, rows)
        if include_data:
            return [*stripe, *rows, np.array(nonfinite, np.int64)]
        return [*rows, np.array([*nonfinite, *(zlib.crc32(row.data) for row in stripe)], np.int64)]

    return encode_stripe
