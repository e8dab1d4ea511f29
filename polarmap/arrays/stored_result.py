"""Results that stay in storage: a linear f maps a coded array to a coded array of the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar, overload

import numpy as np

from polarmap.arrays.array import CodedArray
from polarmap.arrays.generations import Generation, replaceable
from polarmap.arrays.manifest import Manifest, check_name
from polarmap.arrays.stores import PartStore, open_store
from polarmap.arrays.stripes import chunk_shape
from polarmap.arrays.zarr_chunks import as_zarr
from polarmap.blocks.code_choice import CodeOptions
from polarmap.blocks.coded import CodedData
from polarmap.blocks.equal import concatenate
from polarmap.codes.polar import PolarCode
from polarmap.dtypes import is_integer_dtype
from polarmap.errors import CodeError
from polarmap.run.codeword import Codeword
from polarmap.run.options import MapOptions
from polarmap.run.padding import PaddingEffect
from polarmap.run.prepared_map import PreparedMap, prepared, run_coded
from polarmap.run.reports import LazyReport
from polarmap.run.results import CodedResult
from polarmap.run.running_map import Observers
from polarmap.worker.messages import OutputSpec, StoredOutput
from polarmap.worker.parts import Part
from polarmap.worker.program import sample
from polarmap.worker.pytree import Structure, unflatten

T = TypeVar("T")

STRIPE_BYTES = 64 << 20  # of all n results together, that repairing them later holds at once


@dataclass(frozen=True)
class Stored:
    """For `out=` of `coded_map`: results stay in storage, as a coded array of this name.

    Workers write their own, only a sample of each travels, and the checks are made on that. f must be
    linear or affine and return one array.

    Parameters
    ----------
    name : str
        What to call the array: letters, digits, '.', '_' and '-'.
    storage : optional
        Where, as for `encode`; by default where the data lies.

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
    """The results of a coded map that stayed in storage; `coded_map` takes it as data.

    Attributes
    ----------
    array : CodedArray
        The results as `concatenate` would join them. Those that had not arrived are missing in it: decoded
        when they are read, until `array.repair()` rebuilds them.
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
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        leaves = self.coded_blocks().leaves(number)
        if self.array.padding:
            leaves = [leaf[: max(0, len(self.array) - number * self.array.rows)] for leaf in leaves]
        result: T = unflatten(self._structure, leaves)
        return result

    def __iter__(self) -> Iterator[T]:
        return (self[index] for index in range(len(self)))

    def concatenate(self, axis: int = 0) -> Any:
        """The results as one array, read from storage."""
        if axis == 0:
            return self.array[:]
        return concatenate(list(self), axis)

    def coded_blocks(self) -> CodedData:
        """As `coded_map` takes data that is encoded already."""
        return self.array.coded_blocks()

    @property
    def store(self) -> Any:
        """The storage where the results lie."""
        return self.array.store

    @property
    def executor(self) -> Any:
        """What `coded_map` runs on by default, as of a `CodedArray`."""
        return self.array.executor


def prepared_to_storage(
    f: Callable[[Any], T],
    data: Any,
    code_options: CodeOptions,
    out: Stored,
    executor: Any,
    options: MapOptions,
) -> PreparedMap[CodedResult[T]]:
    """A map whose results workers leave in storage."""
    _check_out(out, options)
    running, coded = prepared(data, code_options, executor, replace(options, parity_for="out="))
    place = getattr(data, "store", None) if out.storage is None else out.storage

    def sampled(block: Any) -> Any:
        return sample(np.asarray(f(block)))  # all that the driver needs to know of a result

    def run(observers: Observers) -> StoredResult[T]:
        code, name, items = coded.code, check_name(out.name), max(1, STRIPE_BYTES // (8 * coded.n))
        if not isinstance(code, PolarCode):
            raise CodeError(
                f"out=Stored(...) keeps results of linear f, coded by a PolarCode, not by {code!r}"
            )
        key = coded.key if options.key is None else options.key
        parts = PartStore.new(open_store(place), key, items * np.dtype(complex).itemsize)
        replaceable(parts.store, name, " for Stored(...), or delete it first")
        with Generation(parts, name) as generation:
            output = OutputSpec(parts.place, f"{generation.prefix}result", items)
            word, report = run_coded(running, f, coded, options, observers, sampled, output)
            padding = coded.blocks.padding if PaddingEffect.ADDS_ROWS in word.padding_effects else 0
            made = _manifest(name, code, word, padding, output)
            if key is None:
                whole = (made.rows, *made.shape[1:])
                made = as_zarr(generation, made, chunk_shape(whole, whole))
            made = generation.publish(made, None)
        _, _, structure = word.structure  # of a sample: see worker.store_result
        return StoredResult(CodedArray(parts.store, made), report, structure)

    return PreparedMap(run, is_lasting=True)


def _check_out(out: Any, options: MapOptions) -> None:
    if not isinstance(out, Stored):
        advice = f": use Stored({out!r})" if isinstance(out, str) else ""
        raise CodeError(f"out must be None or Stored(name, storage), not {out!r}{advice}")
    if options.estimates:
        raise CodeError("on_timeout='estimate' does not go with out=Stored(...): leave one out")


def _manifest(name: str, code: PolarCode, word: Codeword, padding: int, output: OutputSpec) -> Manifest:
    """The results as an array; those that never came are missing in it until they are repaired.

    padding : last rows of the results, which come from no data.
    """
    stored, dtype = word.stored, word.decoded[0][0].dtype
    _check_dtypes(code, dtype, stored)
    [(_, shape)] = stored[min(stored)].layout
    (rows, *inner), size = shape or (1,), prod(shape)
    counts = [min(output.items, size - start) for start in range(0, size, output.items)]

    def absent(index: int) -> tuple[Part, ...]:
        itemsize = (dtype if index < code.k else code.parity_dtype(dtype)).itemsize
        keys = [f"{output.prefix}/{index}-absent/{number}" for number in range(len(counts))]
        return tuple(Part(key, count * itemsize) for key, count in zip(keys, counts))

    parts = tuple(stored[index].parts if index in stored else absent(index) for index in range(code.n))
    return Manifest(name, (code.k * rows - padding, *inner), dtype, code, parts, scalars=shape == ())


def _check_dtypes(code: PolarCode, dtype: np.dtype[Any], stored: Mapping[int, StoredOutput]) -> None:
    """Raise CodeError unless results have the dtype of data blocks' results, or that of their parity."""
    dtypes = [dtype] * code.k + [code.parity_dtype(dtype)] * (code.n - code.k)
    for index, one in stored.items():
        found, wanted = np.dtype(one.layout[0][0]), dtypes[index]
        alike = (
            found.itemsize == wanted.itemsize == 8 and is_integer_dtype(found) and is_integer_dtype(wanted)
        )
        if found != wanted and not alike:  # the bits of 64-bit integers are the same, signed or not
            raise CodeError(
                f"results cannot be kept as a coded array: that of block {index} is {found.str} where "
                f"{wanted.str} is due; let f return {dtypes[-1].str} for any block"
            )
