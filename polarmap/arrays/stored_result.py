"""Coded maps that keep their results in storage, as a coded array (`coded_map(..., out=Stored(...))`).

A linear f applied to all blocks of a code gives blocks of the same code. So the results of data
blocks and of parity blocks form a coded array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar, cast, overload

import numpy as np

from polarmap.arrays.array import CodedArray
from polarmap.arrays.manifest import Manifest, check_array_name
from polarmap.arrays.stores import SegmentStore, open_store
from polarmap.arrays.stripes import choose_chunk_shape
from polarmap.arrays.write_transaction import WriteTransaction, check_manifest_replaceable
from polarmap.arrays.zarr_chunks import publish_as_zarr_array
from polarmap.blocks.code_choice import CodeOptions
from polarmap.blocks.coded import CodedData
from polarmap.blocks.equal import concatenate_results
from polarmap.codes.polar import PolarCode
from polarmap.driver.coded_collector import CodedCollector
from polarmap.driver.events import JobContext
from polarmap.driver.options import MapOptions
from polarmap.driver.padding import PaddingEffect
from polarmap.driver.prepared_map import PreparedMap, execute_coded, prepare_coded_execution
from polarmap.driver.results import CodedResult, LazyReport
from polarmap.dtypes import is_integer_dtype
from polarmap.errors import CodeError
from polarmap.executors.resolved import ResolvedExecutor
from polarmap.worker.pytree import Structure, unflatten
from polarmap.worker.segments import Segment
from polarmap.worker.task_execution import sample_evenly
from polarmap.worker.task_records import OutputSpec, ResultRef

T = TypeVar("T")

# Results are stored in stripes (slices), such that one stripe of all n results has about this many bytes at
# most. A later repair loads one stripe at a time, so this limits how much memory the repair needs.
MAX_STRIPE_BYTES = 64 << 20


@dataclass(frozen=True)
class Stored:
    """Tells `coded_map` to keep its results in storage, as a coded array. Pass it as `out=`.

    Each worker stores its own result, and sends only a sample of it to the driver for verification. f must be
    linear or affine, and return one array.

    Parameters
    ----------
    name : str
        The name of the array: letters, digits, '.', '_' and '-'.
    storage : optional
        The storage for the array, as for `encode`. Defaults to the storage of the data.

    Examples
    --------
    >>> import tempfile
    >>> from polarmap import coded_map
    >>> from polarmap.testing import ReplayExecutor
    >>> folder = tempfile.TemporaryDirectory()
    >>> out = Stored("doubled", storage=folder.name)
    >>> y = coded_map(lambda block: 2 * block, np.eye(4), blocks=4, out=out, executor=ReplayExecutor())
    >>> y.array.name, y[3].tolist()
    ('doubled', [[0.0, 0.0, 0.0, 2.0]])
    >>> folder.cleanup()
    """

    name: str
    storage: Any = None


class StoredResult(CodedResult[T]):
    """The results of a coded map in storage, as a sequence. `coded_map` accepts it as data.

    Attributes
    ----------
    array : CodedArray
        The results as one coded array, concatenated along the first axis. Results that did not arrive are
        missing in storage. They are decoded whenever they are read, until `array.repair()` stores them.
    """

    def __init__(self, array: CodedArray, report: LazyReport, structure: Structure) -> None:
        super().__init__([], report)
        self.array, self._structure = array, structure

    def __len__(self) -> int:
        return self.array.k

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[block_index] for block_index in range(len(self))[index]]
        block_index = range(len(self))[index]
        leaves = self.coded_blocks().block_leaves(block_index)
        if self.array.padding:
            leaves = [
                leaf[: max(0, len(self.array) - block_index * self.array.rows_per_block)] for leaf in leaves
            ]
        result: T = unflatten(self._structure, leaves)
        return result

    def __iter__(self) -> Iterator[T]:
        return (self[index] for index in range(len(self)))

    def concatenate(self, axis: int = 0) -> Any:
        """Read the results from storage, and concatenate them along `axis`."""
        if axis == 0:
            return self.array[:]
        return concatenate_results(list(self), axis)

    def coded_blocks(self) -> CodedData:
        """Return the stored results as task inputs for `coded_map`. Workers read them from storage."""
        return self.array.coded_blocks()

    @property
    def store(self) -> Any:
        """The storage that holds the results."""
        return self.array.store

    @property
    def executor(self) -> Any:
        """The default executor of coded maps of these results, or None (see `CodedArray.executor`)."""
        return self.array.executor


def prepare_stored_map(
    f: Callable[[Any], T],
    data: Any,
    code_options: CodeOptions,
    out: Stored,
    executor: ResolvedExecutor,
    options: MapOptions,
) -> PreparedMap[CodedResult[T]]:
    """Prepare a coded map whose workers store their results as specified by `out`."""
    _check_stored_output(out, options)
    options_for_storage = replace(options, parity_required_by="out=")
    execution, coded_data = prepare_coded_execution(data, code_options, executor, options_for_storage)
    storage = getattr(data, "store", None) if out.storage is None else out.storage

    def compute_sample(block: Any) -> Any:
        # To verify a result, the driver computes f itself. Workers return only a sample of each result, so
        # the driver has to take the same sample of its own result.
        return sample_evenly(np.asarray(f(block)))

    def execute(context: JobContext) -> StoredResult[T]:
        code, name = coded_data.code, check_array_name(out.name)
        max_items = max(1, MAX_STRIPE_BYTES // (8 * coded_data.n))
        if not code.is_storable:
            raise CodeError(f"out=Stored(...) needs a linear f and a PolarCode, not {code!r}")
        key = coded_data.encryption_key if options.key is None else options.key
        segment_store = SegmentStore.create(open_store(storage), key, max_items * np.dtype(complex).itemsize)
        check_manifest_replaceable(segment_store.store, name, " for Stored(...), or delete it first")
        with WriteTransaction(segment_store, name) as transaction:
            output = OutputSpec(segment_store.location, f"{transaction.prefix}result", max_items)
            collector, report = execute_coded(
                execution, f, coded_data, options, context, compute_sample, output
            )
            n_padding_rows = (
                coded_data.data_blocks.n_padding_rows
                if collector.padded_block and PaddingEffect.ROWWISE in collector.padded_block.effects
                else 0
            )
            manifest = _build_result_manifest(name, cast(PolarCode, code), collector, n_padding_rows, output)
            if key is None:
                block_shape = (manifest.rows_per_block, *manifest.shape[1:])
                manifest = publish_as_zarr_array(
                    transaction, manifest, choose_chunk_shape(block_shape, block_shape)
                )
            manifest = transaction.commit(manifest, None)
        # Workers return only a sample of each result, but the structure that is returned along with the
        # sample is that of the whole result.
        _, _, structure = collector.received.structure
        return StoredResult(CodedArray(segment_store.store, manifest), report, structure)

    return PreparedMap(execute, is_stored=True)


def _check_stored_output(out: Any, options: MapOptions) -> None:
    if not isinstance(out, Stored):
        advice = f": use Stored({out!r})" if isinstance(out, str) else ""
        raise CodeError(f"out must be None or Stored(name, storage), not {out!r}{advice}")
    if options.estimate_on_timeout:
        raise CodeError(
            "on_timeout='estimate' cannot be combined with out=Stored(...): leave one of them out"
        )


def _build_result_manifest(
    name: str, code: PolarCode, collector: CodedCollector, n_padding_rows: int, output: OutputSpec
) -> Manifest:
    """Build the manifest of a coded array whose blocks are the stored results of a map.

    Results that did not arrive are listed without a checksum, which marks them as missing. `n_padding_rows`
    counts the rows at the end of the last result that come from padding.
    """
    result_refs, dtype = collector.received.result_refs, collector.decoder.decoded_results[0][0].dtype
    _check_result_dtypes(code, dtype, result_refs)
    [(_, shape)] = result_refs[min(result_refs)].layout
    (rows, *inner_shape), n_items = shape or (1,), prod(shape)
    segment_sizes = [
        min(output.max_segment_items, n_items - start)
        for start in range(0, n_items, output.max_segment_items)
    ]

    def make_missing_segments(block_index: int) -> tuple[Segment, ...]:
        itemsize = (dtype if block_index < code.k else code.parity_dtype(dtype)).itemsize
        keys = [
            f"{output.prefix}/{block_index}-absent/{segment_index}"
            for segment_index in range(len(segment_sizes))
        ]
        return tuple(Segment(key, segment_size * itemsize) for key, segment_size in zip(keys, segment_sizes))

    segments = tuple(
        result_refs[block_index].segments
        if block_index in result_refs
        else make_missing_segments(block_index)
        for block_index in range(code.n)
    )
    return Manifest(
        name,
        (code.k * rows - n_padding_rows, *inner_shape),
        dtype,
        code,
        segments,
        has_scalar_blocks=shape == (),
    )


def _check_result_dtypes(code: PolarCode, dtype: np.dtype[Any], result_refs: Mapping[int, ResultRef]) -> None:
    """Raise CodeError unless all results have the dtypes required of a coded array's blocks.

    Results of data blocks must have `dtype`, and results of parity blocks the corresponding parity dtype.
    """
    dtypes = [dtype] * code.k + [code.parity_dtype(dtype)] * (code.n - code.k)
    for block_index, result_ref in result_refs.items():
        actual, expected = np.dtype(result_ref.layout[0][0]), dtypes[block_index]
        has_same_bits = (
            actual.itemsize == expected.itemsize == 8
            and is_integer_dtype(actual)
            and is_integer_dtype(expected)
        )
        # Accept int64 instead of uint64 and vice versa. The code computes modulo 2^64, so the bits of the
        # results are the same.
        if actual != expected and not has_same_bits:
            raise CodeError(
                f"the results cannot be stored as a coded array: f returned dtype {actual.str} for block "
                f"{block_index}, but {expected.str} is required: let f return {dtypes[-1].str} for every "
                "block"
            )
