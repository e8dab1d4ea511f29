"""xr.apply: a coded map over a DataArray or Dataset of xarray, whose labels come back with the results."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, Unpack, overload

import numpy as np

from polarmap.blocks.code_choice import CodeName, CodeOptions, block_count
from polarmap.blocks.equal import rows_of_block
from polarmap.clouds.extras import needed_by
from polarmap.codes.linear_code import LinearCode
from polarmap.codes.secret_sharing import SecretSharing
from polarmap.dtypes import Array, check_dtype, machine_epsilon
from polarmap.errors import CodeError, NotDecodableError, warn
from polarmap.maps.coded import SharedOptions
from polarmap.report import Report
from polarmap.run.options import (
    OnTimeout,
    ScheduleName,
    Verify,
    check_function,
    checked_options,
    planned,
)
from polarmap.run.prepared_map import PreparedMap, prepared_blocks, verb
from polarmap.run.results import CodedResult
from polarmap.run.running_map import Observers
from polarmap.run.trusted import Trust

with needed_by("polarmap.xr", "xarray", "xarray"):
    import xarray as xr

if TYPE_CHECKING:
    from polarmap.planning.planner import Plan

ROW_BY_ROW = "row by row"  # what f is found to be
ROUNDINGS = 16  # times the amplification of errors: what decoding may leave of a zero

Labelled = TypeVar("Labelled", xr.DataArray, xr.Dataset)
OutputDims = Hashable | Iterable[Hashable] | Mapping[Any, Any]


@overload
def apply(
    f: Callable[[Array], Array],
    obj: Labelled,
    dim: Hashable | Iterable[Hashable],
    *,
    output_dims: OutputDims | None = None,
    skipna: bool = False,
    return_report: Literal[False] = False,
    **options: Unpack[SharedOptions],
) -> Labelled: ...
@overload
def apply(
    f: Callable[[Array], Array],
    obj: Labelled,
    dim: Hashable | Iterable[Hashable],
    *,
    output_dims: OutputDims | None = None,
    skipna: bool = False,
    return_report: Literal[True],
    **options: Unpack[SharedOptions],
) -> tuple[Labelled, Report]: ...
@verb
def apply(
    f: Callable[[Array], Array],
    obj: Any,
    dim: Hashable | Iterable[Hashable],
    *,
    output_dims: OutputDims | None = None,
    skipna: bool = False,
    return_report: bool = False,
    blocks: int | None = None,
    tasks: int | None = None,
    code: CodeName | LinearCode | SecretSharing = "auto",
    degree: int = 1,
    schedule: ScheduleName | Plan = "upfront",
    executor: Any = None,
    verify: Verify = "auto",
    rtol: float | None = None,
    timeout: float | None = None,
    on_timeout: OnTimeout = "raise",
    retries: int = 1,
    progress: bool | None = None,
) -> PreparedMap[Any]:
    """Apply a linear f along dimensions of labelled arrays, without waiting for stragglers.

    As `xarray.apply_ufunc(f, obj, input_core_dims=[dim], output_core_dims=[output_dims])` with a coded
    map in place of a plain call: what lies along all other dimensions is cut into blocks.

    Parameters
    ----------
    f : callable
        Takes an array of shape (rows, *sizes of `dim`) and returns one of shape (rows, ...). Each row is one
        place along all other dimensions; that of the result depends on it alone, linearly.
    obj : DataArray or Dataset
        What dask or a file holds is computed once, before the map. Variables of a Dataset go through one
        map; those without any dimension of `dim` stay as they are.
    dim : name or names
        The dimensions that f works along, which are not cut.
    output_dims : name, names or mapping from names to coordinates, optional
        The dimensions of f's results behind the rows, and their coordinates. By default a result of as many
        axes as `dim` has its names, and one without any has none of them.
    skipna : bool
        f is an average over the entries that are not NaN: f of the data with 0 in place of NaN,
        divided by f of the mask (1 where there is data), NaN where the latter is 0.
    return_report : bool
        Return the report of the map, too.
    blocks, tasks, code, degree, schedule, executor, verify, rtol, timeout, on_timeout, retries, progress
        As for `coded_map`, of rows.

    Returns
    -------
    DataArray or Dataset
        With names, attributes and coordinates of `obj`, where they still fit. Dimensions of `obj` keep
        their order, new ones come last.
    Report
        With `return_report`, in a tuple behind the other.

    Warns
    -----
    RuntimeWarning
        As for `coded_map`; or f raised here, where it is checked that it acts on each row by itself.

    Raises
    ------
    CodeError
        Dimensions or variables that f cannot be applied to; an f that mixes rows. And as for `coded_map`.
    NotLinearError, NotDecodableError, CodedTimeoutError, ExecutorError
        As for `coded_map`.

    Examples
    --------
    >>> import math, numpy as np, polarmap, xarray as xr
    >>> lost = polarmap.testing.ReplayExecutor({0: math.inf, 2: math.inf})
    >>> heat = xr.DataArray(
    ...     np.arange(24.0).reshape(6, 4), {"day": range(6)}, ("day", "hour"), attrs={"units": "K"}
    ... )
    >>> heat[1, 2] = np.nan
    >>> mean = polarmap.xr.apply(
    ...     lambda rows: rows.mean(axis=-1), heat, "hour", skipna=True, blocks=3, tasks=5, executor=lost
    ... )
    >>> mean.dims, mean.attrs, mean.values.round(9).tolist()
    (('day',), {'units': 'K'}, [1.5, 5.333333333, 9.5, 13.5, 17.5, 21.5])
    """

    def run(observers: Observers) -> Any:
        check_function(f)
        options = checked_options(verify, rtol, timeout, retries, on_timeout, schedule)
        code_options = planned(CodeOptions(blocks, tasks, code, degree), schedule).checked()
        dims = _core_dims(obj, dim)
        named = _named_outputs(obj, dims, output_dims)
        variables = _computed(_with_dims(obj, dims))
        mapped = {name: _rows_of(variable, dims, skipna) for name, variable in variables.items()}
        arrays = [array for one in mapped.values() for array in one.arrays]
        k = block_count(max(map(len, arrays)), code_options, [one.dtype for one in arrays])
        cut = [[rows_of_block(array, -(-len(array) // k), index) for array in arrays] for index in range(k)]

        def on_leaves(leaves: list[Array]) -> list[Array]:
            return [f(leaf) for leaf in leaves]

        with _advice_on_gaps(arrays):
            result = prepared_blocks(on_leaves, cut, code_options, executor, options).run(observers)
        _check_shapes(cut[0], result[0], dims)
        if verify is not False:
            _check_rows(f, cut, result)
        found = iter(_joined(result, arrays))
        values = {
            name: one.combined([next(found) for _ in one.arrays], result.report)
            for name, one in mapped.items()
        }
        labelled = _labelled(obj, dims, named, values)
        return (labelled, result.report) if return_report else labelled

    return PreparedMap(run)


# --- labels in ---------------------------------------------------------------------------------


def _core_dims(obj: Any, dim: Any) -> tuple[Hashable, ...]:
    """The names of the dimensions that f works along, all of which the object has."""
    if not isinstance(obj, (xr.DataArray, xr.Dataset)):
        raise CodeError(
            f"obj must be an xarray DataArray or Dataset, not {type(obj).__name__}: use "
            "polarmap.coded_map for arrays without labels"
        )
    dims = _names(dim)
    if not dims:
        raise CodeError("dim names no dimension: name those that f works along, as in dim='time'")
    for name in dims:
        if name not in obj.dims:
            there = ", ".join(map(repr, obj.dims)) or "none"
            raise CodeError(f"obj has no dimension {name!r}: its dimensions are {there}")
    return dims


def _names(names: Any) -> tuple[Hashable, ...]:
    """One name or several, as xarray tells them apart."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        return (names,)
    return tuple(dict.fromkeys(names))


def _named_outputs(
    obj: xr.DataArray | xr.Dataset, dims: Sequence[Hashable], output_dims: Any
) -> dict[Hashable, Any] | None:
    """The dimensions of results, each with its new coordinate or None; None where nothing is said."""
    if output_dims is None:
        return None
    pairs = output_dims if isinstance(output_dims, Mapping) else dict.fromkeys(_names(output_dims))
    _check_free(obj, dims, pairs)
    found: dict[Hashable, Any] = {}
    for name, values in pairs.items():
        found[name] = None
        if values is not None:
            if np.ndim(values) != 1:
                raise CodeError(
                    f"output_dims[{name!r}] has {np.ndim(values)} axes: a coordinate of a dimension has one"
                )
            found[name] = xr.Variable((name,), np.asarray(values), getattr(values, "attrs", None))
    return found


def _check_free(obj: xr.DataArray | xr.Dataset, dims: Sequence[Hashable], names: Iterable[Hashable]) -> None:
    """CodeError for names of results that something has which stays."""
    stay = {name for name, one in obj.coords.items() if not {*dims} & {*one.dims}} | ({*obj.dims} - {*dims})
    for name in names:
        if name in stay:
            raise CodeError(
                f"output_dims names {name!r}, which obj has beside dim={list(dims)}: use another name, or "
                "rename that of obj"
            )


def _with_dims(obj: xr.DataArray | xr.Dataset, dims: Sequence[Hashable]) -> dict[Hashable, xr.Variable]:
    """The variables that f is applied to, by name: those with all of the dimensions, and numbers."""
    names = list(obj.data_vars) if isinstance(obj, xr.Dataset) else [obj.name]
    variables = {name: obj.variables[name] if isinstance(obj, xr.Dataset) else obj.variable for name in names}
    found = {name: one for name, one in variables.items() if {*dims} & {*one.dims}}
    if not found:
        raise CodeError(f"no variable of the Dataset has dimension {dims[0]!r}, only coordinates have")
    for name, variable in found.items():
        what, leave = "obj", "convert it first"
        if isinstance(obj, xr.Dataset):
            what = f"variable {name!r} of obj"
            leave = f"leave it out, as in obj.drop_vars({name!r}), or convert it first"
        _check_variable(variable, dims, what, leave)
    return found


def _check_variable(variable: xr.Variable, dims: Sequence[Hashable], what: str, leave: str) -> None:
    """CodeError for one that f cannot be applied to."""
    twice = [name for name in variable.dims if variable.dims.count(name) > 1]
    if twice:
        raise CodeError(f"{what} has dimension {twice[0]!r} twice: give each a name of its own")
    lacking = [name for name in dims if name not in variable.dims]
    if lacking:
        raise CodeError(f"{what} has no dimension {lacking[0]!r}, only {list(variable.dims)}: {leave}")
    empty = [name for name, size in variable.sizes.items() if size == 0]
    if empty:
        raise CodeError(f"{what} has dimension {empty[0]!r} of size 0: there is nothing to map")
    if variable.dtype == bool:
        raise CodeError(f"{what} has dtype bool, and codes carry numbers: convert it with .astype(int)")
    if getattr(variable.dtype, "kind", "") not in "iufc" or not isinstance(variable.dtype, np.dtype):
        raise CodeError(f"{what} has dtype {variable.dtype}, and codes carry numbers: {leave}")
    check_dtype(variable.dtype, what)


def _computed(variables: Mapping[Hashable, xr.Variable]) -> dict[Hashable, xr.Variable]:
    """The variables in memory: what dask or files hold is computed or read, all at once."""
    numbered = {f"variable {number}": one for number, one in enumerate(variables.values())}
    computed = xr.Dataset(numbered).compute()
    found = {name: computed.variables[number] for name, number in zip(variables, numbered)}
    for name, variable in found.items():
        if type(variable.data) not in (np.ndarray, np.memmap):
            raise CodeError(
                f"variable {name!r} holds a {type(variable.data).__name__}, of which f would see plain "
                "arrays: use obj.as_numpy()"
            )
    return found


# --- rows --------------------------------------------------------------------------------------


class _Rows(NamedTuple):
    """What is mapped of a variable.

    others : the dimensions along which it has rows, with their sizes.
    arrays : the rows; with skipna the filled rows, and the masks of rows, each once.
    mask : with skipna, for each row which of the masks is its own.
    """

    others: dict[Hashable, int]
    arrays: list[Array]
    mask: Array | None

    def combined(self, results: list[Array], report: Report) -> Array:
        """The values of the variable that f's results for its arrays make, shaped as the others."""
        values = results[0]
        if self.mask is not None:
            weights = _without_noise(results[1], report)[self.mask]
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.where(weights == 0, np.nan, values / weights)
        return values.reshape((*self.others.values(), *values.shape[1:]))


def _rows_of(variable: xr.Variable, dims: Sequence[Hashable], skipna: bool) -> _Rows:
    """A row for each place along the dimensions that are not in `dims`, which come last."""
    others = {name: size for name, size in variable.sizes.items() if name not in dims}
    rows = variable.transpose(*others, *dims).to_numpy()
    rows = rows.reshape(-1, *rows.shape[len(others) :])
    if not skipna:
        return _Rows(others, [rows], None)
    there = ~np.isnan(rows)
    numbers: dict[bytes, int] = {}
    packed = np.packbits(there.reshape(len(there), -1), axis=1)
    mask = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in packed])
    masks = there[np.unique(mask, return_index=True)[1]].astype(rows.dtype)
    return _Rows(others, [np.where(there, rows, rows.dtype.type(0)), masks], mask)


def _without_noise(weights: Array, report: Report) -> Array:
    """f of masks, with 0 where decoding has left nothing but its rounding."""
    rows = -(-len(weights) // report.k)
    decoded = np.isin(np.arange(len(weights)) // rows, report.recovered)
    size = np.abs(weights)
    rounding = ROUNDINGS * machine_epsilon(weights.dtype) * report.amplification
    noise = (size <= rounding * size.max(initial=0)).T & decoded
    return np.where(noise.T, weights.dtype.type(0), weights)


@contextmanager
def _advice_on_gaps(arrays: Sequence[Array]) -> Iterator[None]:
    """Says of a map that could not be decoded how it could have been, if NaN in its data is the reason."""
    try:
        yield
    except NotDecodableError as error:
        if not any(np.isnan(array).any() for array in arrays):
            raise
        raise NotDecodableError(
            f"{error}; the data holds NaN: leave them out with skipna=True if f is an average, or apply f to "
            "obj.fillna(0)"
        ) from error


def _joined(result: CodedResult[list[Array]], arrays: Sequence[Array]) -> list[Array]:
    """f's results for the rows of each array."""
    return [np.concatenate(pieces)[: len(array)] for pieces, array in zip(zip(*result, strict=True), arrays)]


def _check_shapes(block: Sequence[Array], results: Sequence[Any], dims: Sequence[Hashable]) -> None:
    """CodeError unless f gave one array, with a row for each row."""
    for rows, found in zip(block, results):
        if not isinstance(found, np.ndarray):
            raise CodeError(f"f must return one array, not {type(found).__name__}")
        if found.shape[:1] != rows.shape[:1]:
            raise CodeError(
                f"f of shape {rows.shape} gave shape {found.shape}: a result has as many rows (axis 0) as "
                f"its block, and dim={list(dims)} stands for axes {list(range(1, rows.ndim))}"
            )


def _check_rows(
    f: Callable[[Array], Array], cut: list[list[Array]], result: CodedResult[list[Array]]
) -> None:
    """CodeError if f of a few rows of a block is not what it gave them in the block; once for each f."""
    few = min(2, max(map(len, cut[0])) - 1)
    dtypes = [rows.dtype for rows in cut[0]]
    if not few or result.report.errors or Trust(f, ROW_BY_ROW, dtypes).known:
        return
    pairs = (pair for block, found in zip(cut, result) for pair in zip(block, found))
    rows, whole = next((pair for pair in pairs if pair[0][few:].any()), (cut[0][0], result[0][0]))
    try:
        alone = np.asarray(f(rows[:few].copy()))
    except Exception as error:
        warn(f"it could not be verified that f acts on each row by itself: here it raised {error!r}")
        return
    if alone.shape != whole[:few].shape or not _are_close(alone, whole):
        raise CodeError(
            f"f of {few} rows is not what it gives of them among {len(rows)}: it mixes rows, so name in dim "
            "all dimensions that it works along"
        )
    Trust(f, ROW_BY_ROW, dtypes).note()  # as it is now: what it holds may change by calls


def _are_close(alone: Array, whole: Array) -> bool:
    """Whether the first rows are the same but for rounding, which is far below what mixing them makes."""
    largest = float(np.abs(whole[np.isfinite(whole)]).max(initial=0))
    error = float(np.sqrt(max(machine_epsilon(whole.dtype), 1e-15))) * largest
    return bool(np.allclose(alone, whole[: len(alone)], rtol=0, atol=error, equal_nan=True))


# --- labels out --------------------------------------------------------------------------------


def _labelled(
    obj: Any, dims: Sequence[Hashable], named: dict[Hashable, Any] | None, values: Mapping[Hashable, Array]
) -> Any:
    """The results of variables, by name, with the labels of the object."""
    variables = obj.variables if isinstance(obj, xr.Dataset) else {obj.name: obj.variable}
    first = next(iter(values))
    shape = values[first].shape[len(variables[first].dims) - len(dims) :]
    named = _fitting(named, dims, shape)
    sizes = dict(zip(named, shape))
    same = {name for name in dims if named.get(name, ()) is None and sizes[name] == obj.sizes[name]}
    kept = obj.coords.to_dataset().drop_dims(set(dims) - same, errors="ignore")
    kept = kept.assign_coords({name: one for name, one in named.items() if one is not None})
    found = {name: _variable(variables[name], dims, named, array) for name, array in values.items()}
    if isinstance(obj, xr.DataArray):
        return xr.DataArray(found[first], kept.coords, name=obj.name)
    found = {name: found.get(name, variables[name]) for name in obj.data_vars}
    return kept.assign(found).assign_attrs(obj.attrs)


def _fitting(
    named: dict[Hashable, Any] | None, dims: Sequence[Hashable], shape: tuple[int, ...]
) -> dict[Hashable, Any]:
    """The dimensions of results of this shape behind the rows; CodeError where they do not fit it."""
    if named is None:
        if len(shape) not in (0, len(dims)):
            raise CodeError(
                f"f gave results of shape {shape} for each row, and dim={list(dims)} names {len(dims)} axes: "
                f"name the {len(shape)} axes of a result, as in output_dims={['new'] * len(shape)}"
            )
        return dict.fromkeys(dims if shape else ())
    if len(named) != len(shape):
        raise CodeError(
            f"f gave results of shape {shape} for each row, and output_dims names {len(named)} axes: name "
            f"all {len(shape)}"
        )
    for (name, coordinate), size in zip(named.items(), shape):
        if coordinate is not None and coordinate.size != size:
            raise CodeError(
                f"f gave {size} entries along {name!r}, and output_dims has a coordinate of {coordinate.size}"
            )
    return named


def _variable(
    before: xr.Variable, dims: Sequence[Hashable], named: Iterable[Hashable], values: Array
) -> xr.Variable:
    """The values as a variable with the attributes of another, in whose order its dimensions are."""
    names = [name for name in before.dims if name not in dims] + list(named)
    order = [name for name in before.dims if name in names]
    order += [name for name in names if name not in before.dims]
    return xr.Variable(names, values, before.attrs).transpose(*order)
