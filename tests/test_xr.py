"""Check apply against xarray's own results, including labels, while workers are missing."""

from __future__ import annotations

import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask.array
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import polarmap
from polarmap.blocks.equal import compute_max_nonempty_blocks
from polarmap.codes import SecretSharing
from polarmap.errors import CodeError, NotDecodableError, NotLinearError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor
from polarmap.xr import apply

LOST = ReplayExecutor({1: math.inf, 4: math.inf})
SIX_OF_NINE: dict[str, Any] = {"blocks": 6, "tasks": 9, "executor": LOST}


def mean(rows: np.ndarray) -> np.ndarray:
    """Return the mean over all axes but the first."""
    return rows.mean(axis=tuple(range(1, rows.ndim)))


def anomaly(rows: np.ndarray) -> np.ndarray:
    return rows - rows.mean(axis=-1, keepdims=True)


def field(*shape: int, seed: int = 0) -> xr.DataArray:
    """Return temperatures with a coordinate of each kind."""
    return xr.DataArray(
        280 + 10 * np.random.default_rng(seed).standard_normal(shape),
        {
            "time": ("time", np.datetime64("2001-01-01", "D") + np.arange(shape[0]), {"axis": "T"}),
            "month": ("time", np.arange(shape[0]) // 4),
            "lat": np.linspace(-90, 90, shape[1]),
            "area": (("lat", "lon"), np.ones(shape[1:])),
            "height": 2.0,
        },
        ("time", "lat", "lon"),
        "temperature",
        {"units": "K"},
    )


def gappy(array: xr.DataArray, share: float = 0.2, seed: int = 1) -> xr.DataArray:
    return array.where(np.random.default_rng(seed).random(array.shape) >= share)


def assert_same(actual: Any, expected: Any, rtol: float = 1e-12) -> None:
    """Check dimensions, coordinates, names and attributes; values relative to their variable's largest."""
    assert type(actual) is type(expected)
    xr.testing.assert_equal(actual.coords.to_dataset(), expected.coords.to_dataset())
    assert all(variable.attrs == expected.coords[name].attrs for name, variable in actual.coords.items())
    assert actual.attrs == expected.attrs
    pairs = [(actual, expected)]
    if isinstance(actual, xr.Dataset):
        assert list(actual.data_vars) == list(expected.data_vars)
        pairs = [(actual[name], expected[name]) for name in expected.data_vars]
    for variable, expected_variable in pairs:
        assert (variable.name, variable.dims, variable.dtype) == (
            expected_variable.name,
            expected_variable.dims,
            expected_variable.dtype,
        )
        assert variable.attrs == expected_variable.attrs
        limit = rtol * float(np.abs(expected_variable.fillna(0)).max())
        np.testing.assert_allclose(variable.values, expected_variable.values, rtol=0, atol=limit)


# --- results ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", ["time", "lat", "lon", ("lat", "lon"), ["time", "lon"]])
@pytest.mark.parametrize("skipna", [False, True])
def test_a_mean_equals_that_of_xarray(dim: Any, skipna: bool) -> None:
    obj = gappy(field(12, 5, 7)) if skipna else field(12, 5, 7)
    wanted = obj.mean(dim, keep_attrs=True)
    options = SIX_OF_NINE | {"blocks": min(6, wanted.size)}
    result, report = apply(mean, obj, dim, skipna=skipna, return_report=True, **options)
    assert_same(result, wanted)
    assert {1, 4} & {*report.recovered}


def test_a_result_of_the_same_shape_keeps_all_coordinates_and_the_order_of_dimensions() -> None:
    obj = field(12, 5, 7)
    for dim in obj.dims:
        result = apply(anomaly, obj, dim, **SIX_OF_NINE)
        with xr.set_options(keep_attrs=True):
            assert_same(result, (obj - obj.mean(dim)).transpose(*obj.dims).assign_coords(obj.coords))


def test_several_dimensions_are_the_last_axes_in_their_order() -> None:
    obj, shapes = field(12, 5, 7), list[tuple[int, ...]]()

    def swapped(rows: np.ndarray) -> np.ndarray:
        shapes.append(rows.shape[1:])
        return rows.swapaxes(1, 2)

    options: dict[str, Any] = {"blocks": 5, "tasks": 7, "executor": LOST}
    result = apply(swapped, obj, ("lon", "time"), output_dims=("time", "lon"), **options)
    assert_same(result, obj)
    assert {*shapes} == {(7, 12)}


def test_coordinates_of_a_resized_dimension_are_dropped() -> None:
    obj = field(12, 5, 7)
    result = apply(lambda rows: rows[:, ::2], obj, "time", **SIX_OF_NINE)
    assert_same(result, obj[::2].drop_vars(["time", "month"]))


@pytest.mark.parametrize("coordinate", [np.fft.rfftfreq(12), None])
def test_new_dimensions_come_last_with_their_coordinate(coordinate: np.ndarray | None) -> None:
    obj = field(12, 5, 7)
    result = apply(np.fft.rfft, obj, "time", output_dims={"frequency": coordinate}, **SIX_OF_NINE)
    wanted = xr.apply_ufunc(
        np.fft.rfft, obj, input_core_dims=[["time"]], output_core_dims=[["frequency"]], keep_attrs=True
    )
    assert_same(result, wanted if coordinate is None else wanted.assign_coords(frequency=coordinate))


def test_new_coordinates_replace_those_of_the_same_name_and_keep_their_attributes() -> None:
    obj = field(12, 6, 4)
    weights = np.kron(np.eye(3), [0.5, 0.5])
    lat = xr.DataArray([-60.0, 0.0, 60.0], dims="lat", attrs={"units": "degrees"})
    result = apply(lambda rows: rows @ weights.T, obj, "lat", output_dims={"lat": lat}, **SIX_OF_NINE)
    wanted = obj.coarsen(lat=2).mean(keep_attrs=True).drop_vars("area").assign_coords(lat=lat)
    assert_same(result, wanted)


def test_names_of_coordinates_need_not_be_strings() -> None:
    obj = xr.DataArray(np.random.default_rng(0).standard_normal((12, 5)), dims=(0, "x"))
    assert_same(apply(mean, obj, 0, blocks=3, tasks=5, executor=LOST), obj.mean(0))


def test_a_multiindex_coordinate_is_kept() -> None:
    obj = field(12, 5, 7).drop_vars("area").stack(place=("lat", "lon"))
    result = apply(mean, obj, "time", **SIX_OF_NINE)
    assert_same(result.unstack(), obj.mean("time", keep_attrs=True).unstack())


def test_a_single_row_is_sent_to_several_workers() -> None:
    obj = field(12, 5, 7)[:, 0, 0]
    result = apply(mean, obj, "time", tasks=3, executor=ReplayExecutor({0: math.inf, 1: math.inf}))
    assert_same(result, obj.mean(keep_attrs=True))


# --- datasets ----------------------------------------------------------------------------------


def weather(**further: Any) -> xr.Dataset:
    """Return a dataset of variables with different dimensions, scales and dtypes."""
    heat = field(12, 5, 7)
    rng = np.random.default_rng(3)
    humidity = (("time", "level", "lat", "lon"), 1e-6 * rng.random((12, 3, 5, 7)), {"units": "kg/kg"})
    pressure = (("lat", "time"), 1e5 * rng.random((5, 12)))
    land = (("lat", "lon"), rng.random((5, 7)))
    variables = {"humidity": humidity, "pressure": pressure, "land": land, **further}
    return heat.to_dataset().assign(variables).assign_attrs(title="weather")


def test_each_variable_has_the_accuracy_of_its_own_scale() -> None:
    obj = weather()
    result, report = apply(mean, obj, "time", return_report=True, **SIX_OF_NINE)
    assert_same(result, obj.mean("time", keep_attrs=True))
    assert (report.k, report.n) == (6, 9)
    assert {1, 4} <= {*report.recovered}
    assert result.land.identical(obj.land)


def test_each_variable_has_separate_gaps() -> None:
    obj = weather()
    for seed, name in enumerate(["temperature", "humidity"]):
        obj[name] = gappy(obj[name], seed=seed)
    assert_same(apply(mean, obj, "time", skipna=True, **SIX_OF_NINE), obj.mean("time", keep_attrs=True))


def test_dtypes_are_those_of_f() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (12, 5, 7)).astype("i4")
    obj = weather(
        single=(("time", "lat"), np.random.default_rng(0).random((12, 5), "f4")),
        counts=(("time", "lat", "lon"), counts),
    )
    options: dict[str, Any] = {"blocks": 6, "tasks": 12, "executor": LOST}
    result = apply(lambda rows: rows.sum(axis=-1), obj, "time", **options)
    assert result.counts.dtype.kind == "i"
    assert result.single.dtype == "f4"
    np.testing.assert_array_equal(result.counts, counts.sum(axis=0))
    np.testing.assert_allclose(result.single, obj.single.sum("time"), rtol=1e-5)
    float_names = ["temperature", "humidity", "pressure", "land"]
    assert_same(result[float_names], obj[float_names].sum("time", keep_attrs=True))


# --- gaps --------------------------------------------------------------------------------------


def test_gaps_that_are_the_same_everywhere_cost_one_row() -> None:
    obj, rows = field(12, 5, 7), list[int]()
    obj = obj.where(np.random.default_rng(0).random((5, 7)) > 0.4)

    def counted(block: np.ndarray) -> np.ndarray:
        rows.append(len(block))
        return mean(block)

    options: dict[str, Any] = {"blocks": 3, "executor": ReplayExecutor(), "verify": False}
    result = apply(counted, obj, ["lat", "lon"], skipna=True, **options)
    assert_same(result, obj.mean(["lat", "lon"], keep_attrs=True))
    assert {*rows} == {4, 1}


@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4)),
    dim=st.sampled_from(["time", "lat", "lon", ("lat", "lon"), ("lon", "time")]),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_random_gaps_are_skipped_like_in_xarray(
    sizes: tuple[int, int, int], dim: Any, share: float, seed: int
) -> None:
    obj = gappy(field(*sizes, seed=seed), share, seed)
    rows = math.prod(size for name, size in obj.sizes.items() if name not in dim)
    k = compute_max_nonempty_blocks(rows, min(rows, 3))
    lost = np.random.default_rng(seed).permutation(k + 3)[:2].tolist()
    executor = ReplayExecutor(dict.fromkeys(lost, math.inf))
    result = apply(mean, obj, dim, skipna=True, blocks=k, tasks=k + 3, executor=executor)
    assert_same(result, obj.mean(dim, skipna=True, keep_attrs=True))


def test_results_without_any_data_are_nan() -> None:
    # Results whose weight was decoded must not consist of rounding errors.
    stream = np.random.default_rng(0)
    obj = gappy(field(24, 4, 10), 0.6)
    weights = stream.random((10, 5)) * (stream.random((10, 5)) < 0.3)
    options = SIX_OF_NINE | {"output_dims": "x", "skipna": True}
    result, report = apply(lambda rows: rows @ weights, obj, "lon", return_report=True, **options)
    weight_sums = obj.notnull().values.astype(float) @ weights
    expected = np.where(
        weight_sums == 0, np.nan, obj.fillna(0).values @ weights / np.where(weight_sums == 0, 1, weight_sums)
    )
    assert np.isnan(expected).sum() > 50
    assert len(report.recovered) >= 2
    np.testing.assert_allclose(result.values, expected, rtol=1e-11)


@pytest.mark.filterwarnings("ignore:the data contains NaN or inf:RuntimeWarning")
def test_gaps_that_are_not_skipped_are_kept_and_never_decoded() -> None:
    obj = gappy(field(12, 5, 7), 0.02)
    result = apply(mean, obj, "time", blocks=5, tasks=7, executor=ReplayExecutor())
    assert_same(result, obj.mean("time", skipna=False, keep_attrs=True))
    assert 0 < result.isnull().sum() < result.size
    with pytest.raises(NotDecodableError, match=r"the data has NaN: .* skipna=True .* obj.fillna\(0\)"):
        apply(mean, obj, "time", blocks=5, tasks=7, executor=ReplayExecutor({2: math.inf}))


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "c16", "i2", "u8"])
def test_gaps_in_any_dtype(dtype: str) -> None:
    obj = field(12, 5, 7).astype(dtype)
    obj = obj if obj.dtype.kind in "iu" else gappy(obj)
    options: dict[str, Any] = {"blocks": 5, "tasks": 9, "executor": ReplayExecutor({2: math.inf})}
    result = apply(lambda rows: rows.sum(axis=-1), obj, "time", skipna=True, **options)
    wanted = obj.astype("c16").mean("time", keep_attrs=True)
    tolerance = {"f2": 3e-3, "f4": 1e-5}.get(dtype, 1e-12)
    np.testing.assert_allclose(result.values, wanted.values, rtol=tolerance)
    assert result.dtype == (obj.dtype.newbyteorder("=") if obj.dtype.kind in "fc" else np.dtype("f8"))


# --- executors, options ------------------------------------------------------------------------


def test_with_killed_and_sleeping_processes() -> None:
    faults = {0: Fault("kill"), 3: Fault("sleep", seconds=60)}
    result, report = apply(
        lambda rows: rows.mean(axis=-1),  # Lambdas are pickled by value, so that no worker imports this file.
        weather(),
        "time",
        blocks=6,
        tasks=9,
        executor=FaultyExecutor(None, faults),
        retries=0,
        return_report=True,
    )
    assert_same(result, weather().mean("time", keep_attrs=True))
    assert {0, 3} <= {*report.recovered}


def test_without_failures_results_are_exact_and_without_results_an_error_is_raised() -> None:
    obj = field(12, 5, 7)
    result = apply(anomaly, obj, "time", blocks=5, tasks=7, executor=ReplayExecutor())
    rows = np.ascontiguousarray(obj.values.reshape(12, 35).T)
    plain = np.concatenate([anomaly(block) for block in np.split(rows, 5)])
    assert np.array_equal(result.values.reshape(12, 35).T, plain)
    dead = ReplayExecutor(dict.fromkeys(range(7), math.inf))
    with pytest.raises(NotDecodableError):
        apply(anomaly, obj, "time", blocks=5, tasks=7, executor=dead)


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "on_demand", "blocks": 6, "tasks": 9},
        {"code": SecretSharing(1, noise=10), "tasks": 9, "rtol": 1e-8},
        {"code": polarmap.codes.PolarCode(9, 6)},
        {"code": "rotation", "tasks": 9, "verify": True, "progress": False},
        {},
    ],
)
def test_options_of_coded_map_are_accepted(options: dict[str, Any]) -> None:
    obj = field(12, 8, 7)
    result = apply(mean, obj, "time", executor=LOST, **options)
    assert_same(result, obj.mean("time", keep_attrs=True), 1e-9)


def test_a_polynomial_with_its_degree() -> None:
    obj = field(12, 5, 7)
    result = apply(
        lambda rows: (rows**2).sum(axis=-1), obj, "time", degree=2, blocks=3, tasks=9, executor=LOST
    )
    assert_same(result, (obj**2).sum("time", keep_attrs=True).assign_attrs(obj.attrs), 1e-10)


def test_a_plan_determines_the_number_of_blocks() -> None:
    plan = polarmap.plan(7, polarmap.planning.ShiftedExponential(1.0, 0.1))
    result, report = apply(
        mean, field(12, 5, 7), "time", schedule=plan, executor=ReplayExecutor(), return_report=True
    )
    assert (report.k, report.n) == (plan.k, plan.n)
    assert_same(result, field(12, 5, 7).mean("time", keep_attrs=True))


def test_apply_can_be_submitted() -> None:
    future = polarmap.submit(apply, lambda rows: rows.mean(axis=-1), field(12, 5, 7), "time")
    assert_same(future.result(60), field(12, 5, 7).mean("time", keep_attrs=True))


# --- lazy data ---------------------------------------------------------------------------------


def test_dask_data_is_computed_once_for_all_variables() -> None:
    computed = list[int]()

    def source(block: np.ndarray) -> np.ndarray:
        computed.append(1)
        return block + 1

    shared = dask.array.ones((12, 5, 7), chunks=(12, 5, 7)).map_blocks(source, dtype=float, meta=np.ones(0))
    dims = ("time", "lat", "lon")
    obj = xr.Dataset({"a": (dims, shared), "b": (dims, 2 * shared), "static": (dims[1:], shared[0])})
    result = apply(mean, obj, "time", blocks=6, executor=ReplayExecutor())
    assert len(computed) == 1
    assert np.allclose(result.a, 2)
    assert np.allclose(result.b, 4)
    assert obj.a.chunks is not None
    assert result.static.chunks is not None  # f has no dimension in common with it.


def test_data_of_a_file_is_read_once(tmp_path: Any) -> None:
    weather().drop_vars("time").to_zarr(tmp_path / "weather.zarr", consolidated=False)
    with xr.open_dataset(tmp_path / "weather.zarr", engine="zarr", consolidated=False, chunks=None) as obj:
        result = apply(mean, obj, "time", **SIX_OF_NINE)
        assert not obj.temperature.variable._in_memory
        assert_same(result, obj.mean("time", keep_attrs=True))


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("obj", "dim", "options", "message"),
    [
        (np.ones(3), "time", {}, "DataArray or Dataset, not ndarray: use polarmap.coded_map"),
        (field(4, 3, 2), "tim", {}, "no dimension 'tim': its dimensions are 'time', 'lat', 'lon'"),
        (xr.DataArray(1.0), "time", {}, "no dimension 'time': its dimensions are none"),
        (field(4, 3, 2), [], {}, "dim is empty"),
        (field(4, 3, 2)[:0], "time", {}, "obj has dimension 'time' of size 0"),
        (field(4, 3, 2)[:, :0], "time", {}, "obj has dimension 'lat' of size 0"),
        (field(4, 3, 2).astype(object), "time", {}, "obj has dtype object, .* convert it first"),
        (field(4, 3, 2).astype("g"), "time", {}, "obj has dtype float128: linear codes carry"),
        (field(4, 3, 2) > 280, "time", {}, r"obj has dtype bool, .*astype\(int\)"),
        (
            weather(when=("time", np.zeros(12, "M8[ns]"))),
            "time",
            {},
            r"variable 'when' of obj has dtype datetime64\[ns\], .*obj.drop_vars\('when'\)",
        ),
        (weather(), ["lat", "lon"], {}, r"variable 'pressure' of obj has no dimension 'lon', .*drop_vars"),
        (xr.Dataset(coords={"time": [1]}), "time", {}, "no variable of the Dataset has dimension 'time'"),
        (
            field(4, 3, 2),
            "time",
            {"output_dims": "lat"},
            "output_dims has the name 'lat', which is also in obj",
        ),
        (
            field(4, 3, 2),
            "time",
            {"output_dims": "height"},
            "output_dims has the name 'height', which is also in obj",
        ),
        (
            field(4, 3, 2),
            "time",
            {"output_dims": {"x": np.ones((2, 2))}},
            r"output_dims\['x'\] must have one axis, not 2",
        ),
        (
            field(4, 3, 2),
            "time",
            {"output_dims": "x"},
            r"returned shape \(\) .* has 1 names: pass names for 0",
        ),
        (field(4, 3, 2), "time", {"blocks": 7}, "blocks=7 is more than the 6 rows"),
    ],
)
def test_error_messages_of_wrong_arguments(obj: Any, dim: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CodeError, match=message):
        apply(mean, obj, dim, executor=ReplayExecutor(), **options)


@pytest.mark.parametrize(
    ("f", "options", "message"),
    [
        (5, {}, "f must be callable"),
        (lambda rows: rows.mean(axis=0), {}, r"returned shape \(12,\): it must keep the rows \(axis 0\)"),
        (lambda rows: float(rows.sum()), {}, "f must return one array, not float"),
        (lambda rows: (rows, rows), {}, "f must return one array, not tuple"),
        (lambda rows: rows.reshape(-1, 4, 3), {}, r"output_dims=\['new', 'new'\]"),
        (lambda rows: rows, {"output_dims": {"x": [1, 2]}}, "12 entries along 'x', .* has 2"),
        (lambda rows: rows - rows.mean(axis=0), {}, "f of 2 rows differs from these rows of f of 7"),
        (lambda rows: rows - rows.mean(), {"verify": True}, "f mixes rows"),
    ],
)
def test_functions_that_do_not_act_on_rows_are_rejected(
    f: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CodeError, match=message):
        apply(f, field(12, 5, 7), "time", blocks=5, executor=ReplayExecutor(), **options)


@pytest.mark.filterwarnings("ignore:Duplicate dimension names:UserWarning")
def test_a_duplicate_dimension_is_rejected() -> None:
    with pytest.raises(CodeError, match="obj has dimension 'x' twice"):
        apply(mean, xr.DataArray(np.ones((3, 3)), dims=("x", "x")), "x", executor=ReplayExecutor())


def test_a_nonlinear_function_is_rejected() -> None:
    with pytest.raises(NotLinearError):
        apply(lambda rows: np.abs(rows - 280).sum(axis=-1), field(12, 5, 7), "time", **SIX_OF_NINE)


def test_array_classes_other_than_numpy_are_rejected() -> None:
    class Quantity(np.ndarray):
        """An array class of another library, with a unit that f would not see."""

    obj = xr.DataArray(np.ones((4, 3)).view(Quantity), dims=("x", "y"))
    with pytest.raises(CodeError, match=r"is a Quantity, .*obj.as_numpy\(\)"):
        apply(mean, obj, "x", executor=ReplayExecutor())


def test_an_f_that_fails_on_the_driver_causes_a_warning() -> None:
    main = threading.current_thread()

    def elsewhere(rows: np.ndarray) -> np.ndarray:
        if threading.current_thread() is main:
            raise OSError("no such file")
        return mean(rows)

    with ThreadPoolExecutor(4) as pool:
        with pytest.warns(
            RuntimeWarning, match="acts on each row separately: on the driver it raised .*no such file"
        ):
            apply(elsewhere, field(12, 5, 7), "time", blocks=5, executor=pool)
        apply(elsewhere, field(12, 5, 7), "time", blocks=5, executor=pool, verify=False)


def test_verified_properties_of_f_are_remembered() -> None:
    seen = np.zeros(1)  # The contents of an array do not change the identity of the function.

    def counted(rows: np.ndarray) -> np.ndarray:
        seen[0] += len(rows) == 2
        return mean(rows)

    for _ in range(2):
        apply(counted, field(12, 5, 7), "time", blocks=5, tasks=6, executor=ReplayExecutor())
    assert seen == 1


# --- imports -----------------------------------------------------------------------------------


def test_without_xarray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "polarmap.xr")
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"^polarmap.xr needs xarray: pip install "):
        polarmap.__getattr__("xr")
