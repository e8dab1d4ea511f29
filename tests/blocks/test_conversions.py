"""Tests of tables, tensors and paths as data. The oracles are the conversions of NumPy and pandas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pandas as pd
import polars as pl
import pytest

from polarmap import CodedOperator, coded_map, coded_matmul, coded_sum, encode, hedged_map
from polarmap.blocks.array_like import as_array_like
from polarmap.errors import CodeError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

LOST = FaultyExecutor(ReplayExecutor(), {1: Fault("raise", attempts=9)})
COLUMNS = {"a": np.arange(12.0), "b": np.arange(12, dtype="f4")[::-1], "c": np.arange(12, dtype="i4") ** 2}
MATRIX = np.stack([column.astype(float) for column in COLUMNS.values()], axis=1)
FRAMES = [pd.DataFrame(COLUMNS, index=np.arange(12)[::-1]), pl.DataFrame(COLUMNS)]


class Tensor:
    """A tensor that supports only DLPack, with a given device and dtype."""

    def __init__(
        self, array: Any, device: int = 1, dtype: str = "torch.float64", requires_grad: bool = False
    ):
        self._array, self._device, self.dtype, self.requires_grad = array, device, dtype, requires_grad
        self.shape, self.device = array.shape, {1: "cpu", 2: "cuda:0"}[device]

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("a tensor is read as a whole")

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device, 0

    def __dlpack__(self, **options: Any) -> Any:
        if self.dtype == "torch.bfloat16":
            raise BufferError("no such dtype")
        return self._array.__dlpack__(**options)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Got unsupported ScalarType BFloat16")


@pytest.mark.parametrize("frame", FRAMES, ids=["pandas", "polars"])
def test_frames_are_accepted_like_arrays(frame: Any, tmp_path: Path) -> None:
    doubled = coded_map(lambda block: 2 * block, frame, blocks=4, executor=LOST)
    np.testing.assert_allclose(doubled.concatenate(), 2 * MATRIX)
    assert doubled[0].dtype == np.float64
    halves = coded_map(lambda block: block / 2, [frame[:6], frame[6:]], executor=ReplayExecutor())
    np.testing.assert_allclose(halves.concatenate(), MATRIX / 2)
    total = coded_sum(lambda part: part.sum(axis=0), frame, tasks=4, tolerate=1, executor=LOST)
    np.testing.assert_allclose(total.value, MATRIX.sum(axis=0))
    coded = encode(frame, blocks=3, name="frame", storage=tmp_path)
    np.testing.assert_array_equal(np.asarray(coded), MATRIX)
    with CodedOperator(frame, blocks=3, executor=LOST) as operator:
        np.testing.assert_allclose(operator @ np.ones(3), MATRIX.sum(axis=1))
    np.testing.assert_allclose(coded_matmul(frame, np.ones((3, 2)), executor=LOST).array[:, 0], MATRIX.sum(1))


def test_the_dtype_is_that_of_the_columns() -> None:
    for dtype in ("f4", "i8", "u1"):
        for kind in (pd.DataFrame, pl.DataFrame):
            assert as_array_like(kind({"a": np.zeros(3, dtype), "b": np.ones(3, dtype)})).dtype == dtype
    assert as_array_like(pd.DataFrame({"a": pd.array([1, 2], "Int64"), "b": [1, 2]})).dtype == "i8"
    floats = pd.DataFrame(np.arange(6.0).reshape(3, 2))
    assert np.shares_memory(as_array_like(floats), floats.to_numpy())


@pytest.mark.parametrize("kind", [pd.Series, pl.Series])
def test_a_series_is_a_vector(kind: Any) -> None:
    array = as_array_like(kind([1.5, 2.5]))
    assert array.tolist() == [1.5, 2.5]


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            ["x", "y"],
            r"column 'bad' of data has dtype \w+, which is not numeric: drop it with data",
        ),
        ([True, False], r"column 'bad' of data has dtype \w+, which is not numeric: convert it with \."),
        (np.zeros(2, "M8[ms]"), r"column 'bad' of data has dtype (datetime64|Datetime)"),
    ],
)
def test_the_error_for_non_numeric_columns_names_them(kind: Any, values: Any, words: str) -> None:
    for run in (coded_map, coded_sum):
        with pytest.raises(CodeError, match=words):
            run(np.sum, kind({"good": [1, 2], "bad": values}), executor=ReplayExecutor())


@pytest.mark.parametrize("frame", FRAMES, ids=["pandas", "polars"])
@pytest.mark.parametrize("f", [lambda block: block["b"], lambda block: block.b])
def test_accessing_a_column_of_a_block_raises_an_explanation(frame: Any, f: Any) -> None:
    with pytest.raises((AttributeError, IndexError)) as caught:
        coded_map(f, frame, blocks=4, executor=ReplayExecutor())
    assert "f receives blocks of a DataFrame as numpy arrays" in caught.value.__notes__[-1]
    assert "block[:, 0] is column 'a'" in caught.value.__notes__[-1]
    with pytest.raises((AttributeError, IndexError)) as caught:
        coded_map(f, MATRIX, blocks=4, executor=ReplayExecutor())
    assert not [note for note in caught.value.__notes__ if "blocks of a" in note]


def test_missing_values_are_nan_and_errors_name_uncomputed_data() -> None:
    for frame in (pd.DataFrame({"b": pd.array([1, None], "Int64")}), pl.DataFrame({"b": [1, None]})):
        np.testing.assert_array_equal(as_array_like(frame), [[1.0], [np.nan]])
    with pytest.raises(CodeError, match=r"not computed yet: use A.collect\(\)"):
        as_array_like(pl.LazyFrame({"a": [1]}), "A")
    with pytest.raises(CodeError, match="without columns"):
        as_array_like(pd.DataFrame(index=range(3)))


@pytest.mark.parametrize("frame", FRAMES, ids=["pandas", "polars"])
def test_a_hedged_map_cuts_a_frame_into_frames(frame: Any) -> None:
    result = hedged_map(lambda rows: rows, frame, blocks=5, executor=ReplayExecutor())
    assert all(type(part) is type(frame) for part in result)
    joined = pd.concat(list(result)) if isinstance(frame, pd.DataFrame) else pl.concat(list(result))
    assert joined.equals(frame)
    with pytest.raises(CodeError, match=r"star=True .* data is a table: use data.iter"):
        hedged_map(max, frame, star=True, executor=ReplayExecutor())


def test_tensors_are_read_without_a_copy() -> None:
    array = np.arange(24.0).reshape(8, 3)
    for tensor in (Tensor(array), array_api_strict.asarray(array, copy=False)):
        assert np.shares_memory(as_array_like(tensor), array)
        actual = coded_map(lambda block: block + 1, tensor, blocks=4, executor=LOST)
        np.testing.assert_allclose(actual.concatenate(), array + 1)
        nested = coded_map(lambda block: block["x"], [{"x": tensor}] * 3, executor=ReplayExecutor())
        np.testing.assert_array_equal(nested[2], array)
        assert type(hedged_map(lambda rows: rows, tensor, executor=ReplayExecutor())[0]) is np.ndarray


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (Tensor(np.ones(4), device=2), r"Tensor on device cuda:0: copy it .*data.cpu\(\)"),
        (Tensor(np.ones(4), dtype="torch.bfloat16"), r"of dtype torch.bfloat16 on device cpu.*'float32'\)"),
        (Tensor(np.ones(4), requires_grad=True), r"requires gradients.*: use data.detach\(\)"),
    ],
)
def test_errors_name_tensors_that_cannot_be_encoded(tensor: Any, words: str) -> None:
    for run in (coded_map, hedged_map, coded_sum):
        with pytest.raises(CodeError, match=words):
            run(np.sum, tensor, executor=ReplayExecutor())
