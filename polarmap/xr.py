"""`xr.apply`, which applies a linear function along dimensions of xarray objects, as a coded map."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, Unpack, overload

import numpy as np

from polarmap.blocks.code_choice import CodeName, CodeOptions, choose_n_blocks
from polarmap.blocks.equal import copy_block_rows
from polarmap.codes.linear_code import LinearCode
from polarmap.codes.secret_sharing import SecretSharing
from polarmap.driver.events import JobContext
from polarmap.driver.function_properties import FunctionProperty
from polarmap.driver.options import (
    OnTimeout,
    Progress,
    ScheduleName,
    Verify,
    apply_plan,
    check_function,
    check_options,
)
from polarmap.driver.prepared_map import PreparedMap, map_function, prepare_coded_map
from polarmap.driver.results import CodedResult
from polarmap.dtypes import Array, check_supported_dtype, machine_epsilon
from polarmap.errors import CodeError, NotDecodableError, warn
from polarmap.executors import resolve_executor
from polarmap.maps.coded import SharedMapOptions
from polarmap.optional import require_extra
from polarmap.report import Report
from polarmap.worker.pytree import get_layout

with require_extra("polarmap.xr", "xarray", "xarray"):
    import xarray as xr

if TYPE_CHECKING:
    from polarmap.planning.planner import Plan

ROWWISE_PROPERTY = "row by row"  # The property that f acts on each row separately is cached under this name.
# A decoded number counts as 0 if its absolute value is at most ROUNDING_UNITS * machine epsilon *
# amplification * the largest absolute value. Here, `amplification` is the factor by which decoding amplifies
# rounding errors.
ROUNDING_UNITS = 16

XarrayObject = TypeVar("XarrayObject", xr.DataArray, xr.Dataset)
OutputDims = Hashable | Iterable[Hashable] | Mapping[Any, Any]


@overload
def apply(
    f: Callable[[Array], Array],
    obj: XarrayObject,
    dim: Hashable | Iterable[Hashable],
    *,
    output_dims: OutputDims | None = None,
    skipna: bool = False,
    return_report: Literal[False] = False,
    **options: Unpack[SharedMapOptions],
) -> XarrayObject: ...
@overload
def apply(
    f: Callable[[Array], Array],
    obj: XarrayObject,
    dim: Hashable | Iterable[Hashable],
    *,
    output_dims: OutputDims | None = None,
    skipna: bool = False,
    return_report: Literal[True],
    **options: Unpack[SharedMapOptions],
) -> tuple[XarrayObject, Report]: ...
@map_function
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
    retry_delay: float = 0.0,
    progress: Progress = None,
) -> PreparedMap[Any]:
    """Apply a linear function along dimensions of an xarray object, without waiting for slow workers.

    The result is that of `xarray.apply_ufunc(f, obj, input_core_dims=[dim], output_core_dims=[output_dims])`.

    The data is cut into blocks along the other dimensions, and workers apply f to the blocks and to
    additional parity blocks. Late or missing results are decoded from the results that have arrived, as in
    `coded_map`.

    Parameters
    ----------
    f : callable
        The function to apply. It is called with an array of shape (rows, *sizes of `dim`), with one row for
        each position along the other dimensions. It must return an array of shape (rows, ...). Each row of
        the result must be a linear function of the same row of the argument.
    obj : DataArray or Dataset
        The data. Lazy data (from dask or a file) is loaded once, before the map. All variables of a Dataset
        are computed by a single map. Variables without any dimension in `dim` are unchanged.
    dim : name or names
        The dimensions along which f operates. The data is not cut along them.
    output_dims : name, names or mapping from names to coordinates, optional
        The dimensions that replace `dim` in the result, and their coordinates. By default, they are the
        same as `dim` if each row of the result has as many axes, and none if each row is a single number.
    skipna : bool
        Whether to skip NaN. Use it if f computes averages. The result is f of the data with NaN replaced
        by 0, divided by f of a mask (1 where there is data, 0 elsewhere). It is NaN where f of the mask is 0.
    return_report : bool
        Whether to also return the report of the map.
    blocks, tasks, code, degree, schedule, executor, verify, rtol : optional
        As for `coded_map`. The rows are cut into blocks.
    timeout, on_timeout, retries, retry_delay, progress : optional
        As for `coded_map`.

    Returns
    -------
    DataArray or Dataset
        The results, with the names, attributes and coordinates of `obj` that still apply. Dimensions of `obj`
        keep their order, and new dimensions come last.
    Report
        Only with `return_report`, as the second item of a tuple.

    Warns
    -----
    RuntimeWarning
        As for `coded_map`. Also if it cannot be checked that f acts on each row separately, because f raises
        an exception on the driver.

    Raises
    ------
    CodeError
        If f cannot be applied to a dimension or variable, or mixes rows; and as for `coded_map`.
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

    def execute(context: JobContext) -> Any:
        check_function(f)
        options = check_options(verify, rtol, timeout, retries, on_timeout, schedule, retry_delay=retry_delay)
        code_options = apply_plan(CodeOptions(blocks, tasks, code, degree), schedule).check()
        core_dims = _resolve_core_dims(obj, dim)
        output_coords = _resolve_output_coords(obj, core_dims, output_dims)
        variables = _load_variables(_select_variables(obj, core_dims))
        row_blocks = {
            name: _make_row_blocks(variable, core_dims, skipna) for name, variable in variables.items()
        }
        arrays = [array for item in row_blocks.values() for array in item.arrays]
        k = choose_n_blocks(max(map(len, arrays)), code_options, [item.dtype for item in arrays])
        data_blocks = [
            [copy_block_rows(array, -(-len(array) // k), index) for array in arrays] for index in range(k)
        ]

        def apply_to_leaves(leaves: list[Array]) -> list[Array]:
            return [f(leaf) for leaf in leaves]

        with _explain_nan_failures(arrays):
            prepared_map = prepare_coded_map(
                apply_to_leaves, data_blocks, code_options, resolve_executor(executor), options
            )
            result = prepared_map.execute(context)
        _check_result_shapes(data_blocks[0], result[0], core_dims)
        if verify is not False:
            _check_rowwise(f, data_blocks, result)
        joined_results = iter(_concatenate_results(result, arrays))
        results_by_name = {
            name: item.combine_results([next(joined_results) for _ in item.arrays], result.report)
            for name, item in row_blocks.items()
        }
        labelled_result = _build_xarray_result(obj, core_dims, output_coords, results_by_name)
        return (labelled_result, result.report) if return_report else labelled_result

    return PreparedMap(execute)


# --- reading labels ---------------------------------------------------------------------------------


def _resolve_core_dims(obj: Any, dim: Any) -> tuple[Hashable, ...]:
    """Return the names in `dim` as a tuple. Raises CodeError if `obj` lacks any of these dimensions."""
    if not isinstance(obj, (xr.DataArray, xr.Dataset)):
        raise CodeError(
            f"obj must be an xarray DataArray or Dataset, not {type(obj).__name__}: use "
            "polarmap.coded_map for arrays without labels"
        )
    core_dims = _to_name_tuple(dim)
    if not core_dims:
        raise CodeError("dim is empty: pass the dimensions along which f works, as in dim='time'")
    for name in core_dims:
        if name not in obj.dims:
            available = ", ".join(map(repr, obj.dims)) or "none"
            raise CodeError(f"obj has no dimension {name!r}: its dimensions are {available}")
    return core_dims


def _to_name_tuple(name_or_names: Any) -> tuple[Hashable, ...]:
    """Convert a single name, or an iterable of names, to a tuple without duplicates."""
    if isinstance(name_or_names, str) or not isinstance(name_or_names, Iterable):
        return (name_or_names,)
    return tuple(dict.fromkeys(name_or_names))


def _resolve_output_coords(
    obj: xr.DataArray | xr.Dataset, core_dims: Sequence[Hashable], output_dims: Any
) -> dict[Hashable, Any] | None:
    """Convert the argument `output_dims` to a dict that maps new dimensions to their coordinates.

    Dimensions without coordinates map to None. If `output_dims` is None, return None.
    """
    if output_dims is None:
        return None
    pairs = output_dims if isinstance(output_dims, Mapping) else dict.fromkeys(_to_name_tuple(output_dims))
    _check_output_names_unused(obj, core_dims, pairs)
    coords: dict[Hashable, Any] = {}
    for name, coord_values in pairs.items():
        coords[name] = None
        if coord_values is not None:
            if np.ndim(coord_values) != 1:
                raise CodeError(
                    f"output_dims[{name!r}] must have one axis, not {np.ndim(coord_values)}: it is the "
                    "coordinate of a dimension"
                )
            coords[name] = xr.Variable(
                (name,), np.asarray(coord_values), getattr(coord_values, "attrs", None)
            )
    return coords


def _check_output_names_unused(
    obj: xr.DataArray | xr.Dataset, core_dims: Sequence[Hashable], output_names: Iterable[Hashable]
) -> None:
    """Raise CodeError if the name of an output dimension is already used in `obj`.

    The names in `core_dims`, and names of coordinates along these dimensions, may be reused, because the
    result does not contain them.
    """
    reserved_names = {name for name, coord in obj.coords.items() if not {*core_dims} & {*coord.dims}} | (
        {*obj.dims} - {*core_dims}
    )
    for name in output_names:
        if name in reserved_names:
            raise CodeError(
                f"output_dims has the name {name!r}, which is also in obj beside dim={list(core_dims)}: use "
                "another name, or rename it in obj"
            )


def _select_variables(
    obj: xr.DataArray | xr.Dataset, core_dims: Sequence[Hashable]
) -> dict[Hashable, xr.Variable]:
    """Return the variables to which to apply the function, by name: those with a dimension in `core_dims`."""
    names = list(obj.data_vars) if isinstance(obj, xr.Dataset) else [obj.name]
    variables = {name: obj.variables[name] if isinstance(obj, xr.Dataset) else obj.variable for name in names}
    selected = {
        name: variable_with_dims
        for name, variable_with_dims in variables.items()
        if {*core_dims} & {*variable_with_dims.dims}
    }
    if not selected:
        raise CodeError(
            f"no variable of the Dataset has dimension {core_dims[0]!r}, only coordinates have it"
        )
    for name, variable in selected.items():
        label, advice = "obj", "convert it first"
        if isinstance(obj, xr.Dataset):
            label = f"variable {name!r} of obj"
            advice = f"leave it out, as in obj.drop_vars({name!r}), or convert it first"
        _check_variable_mappable(variable, core_dims, label, advice)
    return selected


def _check_variable_mappable(
    variable: xr.Variable, core_dims: Sequence[Hashable], label: str, advice: str
) -> None:
    """Raise CodeError if functions cannot be applied to a variable because of its dimensions or dtype."""
    repeated_dims = [name for name in variable.dims if variable.dims.count(name) > 1]
    if repeated_dims:
        raise CodeError(f"{label} has dimension {repeated_dims[0]!r} twice: rename one of them")
    missing_dims = [name for name in core_dims if name not in variable.dims]
    if missing_dims:
        raise CodeError(f"{label} has no dimension {missing_dims[0]!r}, only {list(variable.dims)}: {advice}")
    empty_dims = [name for name, size in variable.sizes.items() if size == 0]
    if empty_dims:
        raise CodeError(f"{label} has dimension {empty_dims[0]!r} of size 0: there is nothing to map")
    if variable.dtype == bool:
        raise CodeError(f"{label} has dtype bool, but codes need numbers: convert it with .astype(int)")
    if getattr(variable.dtype, "kind", "") not in "iufc" or not isinstance(variable.dtype, np.dtype):
        raise CodeError(f"{label} has dtype {variable.dtype}, but codes need numbers: {advice}")
    check_supported_dtype(variable.dtype, label)


def _load_variables(variables: Mapping[Hashable, xr.Variable]) -> dict[Hashable, xr.Variable]:
    """Load variables into memory. Lazy variables (from dask or files) are all loaded at once."""
    renamed = {
        f"variable {position}": source_variable for position, source_variable in enumerate(variables.values())
    }
    computed = xr.Dataset(renamed).compute()
    loaded = {name: computed.variables[position] for name, position in zip(variables, renamed)}
    for name, variable in loaded.items():
        if type(variable.data) not in (np.ndarray, np.memmap):
            raise CodeError(
                f"variable {name!r} is a {type(variable.data).__name__}, but f gets numpy arrays: use "
                "obj.as_numpy()"
            )
    return loaded


# --- rows --------------------------------------------------------------------------------------


class _RowBlocks(NamedTuple):
    """A variable, converted to an array of rows to which the user's function f is applied.

    Attributes
    ----------
    loop_dims : dict
        The dimensions that are combined into the row axis, with their sizes.
    arrays : list of arrays
        The arrays to which f is applied. Normally, this is only the array of rows. With skipna, there are two
        arrays: the rows with NaN replaced by 0, and the masks of the rows (1 where there is data, 0 where
        there is NaN). A mask that several rows have in common is contained only once.
    mask_indices : array or None
        With skipna, the index of each row's mask in the array of masks; otherwise None.
    """

    loop_dims: dict[Hashable, int]
    arrays: list[Array]
    mask_indices: Array | None

    def combine_results(self, results: list[Array], report: Report) -> Array:
        """Compute the values of the result variable from the results of f for each array in `arrays`.

        With skipna, divide the result for the rows by the result for the masks.
        """
        combined = results[0]
        if self.mask_indices is not None:
            weights = _zero_negligible_weights(results[1], report)[self.mask_indices]
            with np.errstate(divide="ignore", invalid="ignore"):
                combined = np.where(weights == 0, np.nan, combined / weights)
        return combined.reshape((*self.loop_dims.values(), *combined.shape[1:]))


def _make_row_blocks(variable: xr.Variable, core_dims: Sequence[Hashable], skipna: bool) -> _RowBlocks:
    """Convert a variable to rows, one for each position along the dimensions outside `core_dims`."""
    loop_dims = {name: size for name, size in variable.sizes.items() if name not in core_dims}
    rows = variable.transpose(*loop_dims, *core_dims).to_numpy()
    rows = rows.reshape(-1, *rows.shape[len(loop_dims) :])
    if not skipna:
        return _RowBlocks(loop_dims, [rows], None)
    valid_mask = ~np.isnan(rows)
    mask_index_by_bytes: dict[bytes, int] = {}
    packed_masks = np.packbits(valid_mask.reshape(len(valid_mask), -1), axis=1)
    mask_indices = np.array(
        [mask_index_by_bytes.setdefault(row.tobytes(), len(mask_index_by_bytes)) for row in packed_masks]
    )
    masks = valid_mask[np.unique(mask_indices, return_index=True)[1]].astype(rows.dtype)
    return _RowBlocks(loop_dims, [np.where(valid_mask, rows, rows.dtype.type(0)), masks], mask_indices)


def _zero_negligible_weights(weights: Array, report: Report) -> Array:
    """Set decoded weights to 0 if they differ from 0 only by rounding errors.

    A weight is the result of the user's function for a mask, which is 0 at NaN and 1 at all other values.
    Where the weight is exactly 0, the final result is NaN.
    """
    block_rows = -(-len(weights) // report.k)
    decoded_mask = np.isin(np.arange(len(weights)) // block_rows, report.recovered)
    magnitude = np.abs(weights)
    rounding = ROUNDING_UNITS * machine_epsilon(weights.dtype) * report.amplification
    noise_mask = (magnitude <= rounding * magnitude.max(initial=0)).T & decoded_mask
    return np.where(noise_mask.T, weights.dtype.type(0), weights)


@contextmanager
def _explain_nan_failures(arrays: Sequence[Array]) -> Iterator[None]:
    """Add advice to a NotDecodableError raised inside this context if the data contains NaN."""
    try:
        yield
    except NotDecodableError as error:
        if not any(np.isnan(array).any() for array in arrays):
            raise
        raise NotDecodableError(
            f"{error}; the data has NaN: skip them with skipna=True if f is an average, or apply f to "
            "obj.fillna(0)"
        ) from error


def _concatenate_results(result: CodedResult[list[Array]], arrays: Sequence[Array]) -> list[Array]:
    """Join the results of all blocks along the rows, separately for each array to which f was applied."""
    return [
        np.concatenate(block_results)[: len(array)]
        for block_results, array in zip(zip(*result, strict=True), arrays)
    ]


def _check_result_shapes(
    block: Sequence[Array], results: Sequence[Any], core_dims: Sequence[Hashable]
) -> None:
    """Raise CodeError unless the user's function returned an array with as many rows as its argument."""
    for rows, array_result in zip(block, results):
        if not isinstance(array_result, np.ndarray):
            raise CodeError(f"f must return one array, not {type(array_result).__name__}")
        if array_result.shape[:1] != rows.shape[:1]:
            raise CodeError(
                f"f of an array of shape {rows.shape} returned shape {array_result.shape}: it must keep the "
                f"rows (axis 0), and dim={list(core_dims)} are the axes {list(range(1, rows.ndim))}"
            )


def _check_rowwise(
    f: Callable[[Array], Array], data_blocks: list[list[Array]], result: CodedResult[list[Array]]
) -> None:
    """Raise CodeError if f does not act on each row separately.

    To check this, f is applied to the first rows of a block on the driver, and the result is compared with
    the first rows of the result for the whole block.
    """
    n_rows = min(2, max(map(len, data_blocks[0])) - 1)
    layout = get_layout(data_blocks[0])
    if not n_rows or result.report.errors or FunctionProperty(f, ROWWISE_PROPERTY, layout).value:
        return
    pairs = (pair for block, block_result in zip(data_blocks, result) for pair in zip(block, block_result))
    rows, result_array = next(
        (pair for pair in pairs if pair[0][n_rows:].any()), (data_blocks[0][0], result[0][0])
    )
    try:
        separate_result = np.asarray(f(rows[:n_rows].copy()))
    except Exception as error:
        warn(
            f"it could not be verified that f acts on each row separately: on the driver it raised {error!r}"
        )
        return
    has_same_shape = separate_result.shape == result_array[:n_rows].shape
    if not (has_same_shape and _has_same_first_rows(separate_result, result_array)):
        raise CodeError(
            f"f mixes rows: f of {n_rows} rows differs from these rows of f of {len(rows)} rows. Pass all "
            "dimensions along which f works as dim"
        )
    # Create a new `FunctionProperty`, because the call above may have changed the state of f.
    FunctionProperty(f, ROWWISE_PROPERTY, layout).remember_value()


def _has_same_first_rows(separate_result: Array, concatenated_result: Array) -> bool:
    """Return whether an array agrees with the first rows of another, up to rounding errors."""
    max_abs = float(np.abs(concatenated_result[np.isfinite(concatenated_result)]).max(initial=0))
    tolerance = float(np.sqrt(max(machine_epsilon(concatenated_result.dtype), 1e-15))) * max_abs
    return bool(
        np.allclose(
            separate_result,
            concatenated_result[: len(separate_result)],
            rtol=0,
            atol=tolerance,
            equal_nan=True,
        )
    )


# --- restoring labels --------------------------------------------------------------------------------


def _build_xarray_result(
    obj: Any,
    core_dims: Sequence[Hashable],
    output_coords: dict[Hashable, Any] | None,
    results_by_name: Mapping[Hashable, Array],
) -> Any:
    """Build an xarray object from result arrays, with the names, coordinates and attributes of `obj`."""
    variables = obj.variables if isinstance(obj, xr.Dataset) else {obj.name: obj.variable}
    first = next(iter(results_by_name))
    shape = results_by_name[first].shape[len(variables[first].dims) - len(core_dims) :]
    output_coords = _resolve_output_dims(output_coords, core_dims, shape)
    sizes = dict(zip(output_coords, shape))
    retained_dims = {
        name for name in core_dims if output_coords.get(name, ()) is None and sizes[name] == obj.sizes[name]
    }
    retained_coords = obj.coords.to_dataset().drop_dims(set(core_dims) - retained_dims, errors="ignore")
    retained_coords = retained_coords.assign_coords(
        {name: coord for name, coord in output_coords.items() if coord is not None}
    )
    result_variables = {
        name: _make_variable(variables[name], core_dims, output_coords, array)
        for name, array in results_by_name.items()
    }
    if isinstance(obj, xr.DataArray):
        return xr.DataArray(result_variables[first], retained_coords.coords, name=obj.name)
    result_variables = {name: result_variables.get(name, variables[name]) for name in obj.data_vars}
    return retained_coords.assign(result_variables).assign_attrs(obj.attrs)


def _resolve_output_dims(
    output_coords: dict[Hashable, Any] | None, core_dims: Sequence[Hashable], shape: tuple[int, ...]
) -> dict[Hashable, Any]:
    """Return the dimensions of each row of the result, as a dict with their coordinates.

    Raises CodeError if they do not match `shape`, the shape of a row.
    """
    if output_coords is None:
        if len(shape) not in (0, len(core_dims)):
            raise CodeError(
                f"f returned shape {shape} for each row, but dim={list(core_dims)} has {len(core_dims)} "
                f"names: pass names for {len(shape)} axes, as in "
                f"output_dims={['new'] * len(shape)}"
            )
        return dict.fromkeys(core_dims if shape else ())
    if len(output_coords) != len(shape):
        raise CodeError(
            f"f returned shape {shape} for each row, but output_dims has {len(output_coords)} names: pass "
            f"names for {len(shape)} axes"
        )
    for (name, coordinate), size in zip(output_coords.items(), shape):
        if coordinate is not None and coordinate.size != size:
            raise CodeError(
                f"f returned {size} entries along {name!r}, but its coordinate in output_dims has "
                f"{coordinate.size}"
            )
    return output_coords


def _make_variable(
    source_variable: xr.Variable,
    core_dims: Sequence[Hashable],
    output_dims: Iterable[Hashable],
    values: Array,
) -> xr.Variable:
    """Create a result variable with the attributes and dimension order of `source_variable`."""
    names = [name for name in source_variable.dims if name not in core_dims] + list(output_dims)
    order = [name for name in source_variable.dims if name in names]
    order += [name for name in names if name not in source_variable.dims]
    return xr.Variable(names, values, source_variable.attrs).transpose(*order)
