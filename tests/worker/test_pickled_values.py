"""Tests that any value is restored from a block, with arrays that do not share memory."""

from __future__ import annotations

import collections
import importlib.util
import pickle
import sys
from collections import OrderedDict, defaultdict, deque
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from own_class import Own

from polarmap.worker.pickled_values import pickle_to_array, unpickle_array
from polarmap.worker.pytree import PackedTree, pack_tree, unpack_leaves
from polarmap.worker.task_functions import make_call_task


class Point(NamedTuple):
    x: Any
    y: Any


class Named(list):  # type: ignore[type-arg]
    name = "none"


class Celsius(float):
    pass


def unpickle_result(packed: PackedTree) -> Any:
    """Return the value that the driver unpickles from a packed result."""
    return unpickle_array(unpack_leaves(packed.layout, packed.data)[0])


def round_trip(value: Any) -> Any:
    """Return a value after it was sent to a worker as a block and back as a result."""
    packed = pack_tree(
        make_call_task(lambda same: same, unpickle_blocks=True)(make_read_only_copy(pickle_to_array(value)))
    )
    return unpickle_result(packed)


def make_read_only_copy(block: np.ndarray) -> np.ndarray:
    """Return a read-only, unaligned copy of a block, like a block in the cache of a worker."""
    moved = np.empty(len(block) + 3, np.uint8)[3:]
    moved[:] = block
    moved.flags.writeable = False
    return moved


def assert_same(actual: Any, value: Any) -> None:
    assert type(actual) is type(value)
    if isinstance(value, np.ma.MaskedArray):
        np.testing.assert_array_equal(actual.mask, value.mask)
        actual, value = np.asarray(actual.filled(0)), np.asarray(value.filled(0))
    if isinstance(value, dict):
        assert [type(key) for key in actual] == [type(key) for key in value]
        assert list(actual) == list(value)
        assert_same(list(actual.values()), list(value.values()))
    elif isinstance(value, (list, tuple)):
        assert len(actual) == len(value)
        for actual_item, item in zip(actual, value):
            assert_same(actual_item, item)
    elif isinstance(value, (np.ndarray, np.generic)):
        assert (actual.dtype, actual.shape) == (value.dtype, value.shape)
        if value.dtype.hasobject or value.dtype.char in "gG":  # Long doubles contain six bytes of padding.
            np.testing.assert_array_equal(actual, value)
        else:
            assert actual.tobytes() == value.tobytes()
    elif isinstance(value, (pd.DataFrame, pd.Series)):
        assert actual.equals(value)
    elif scipy.sparse.issparse(value):
        assert actual.dtype == value.dtype and (actual != value).nnz == 0
    elif isinstance(value, BaseException):
        assert actual.args == value.args
    else:
        assert actual == value or (actual != actual and value != value)


# NumPy itself loses the byte order of times in a pickle.
DTYPES = st.one_of(hnp.scalar_dtypes(), hnp.array_dtypes(max_size=2)).filter(
    lambda dtype: ">M" not in str(dtype.descr) and ">m" not in str(dtype.descr)
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.builds(Path, st.sampled_from(["a", "a/b", "/tmp"])),
    st.sets(st.integers(), max_size=3),
    st.builds(np.float32, st.floats(width=32)),
    st.builds(np.str_, st.text("abc", max_size=3)),
    hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0)),
    hnp.arrays(object, 2, elements=st.one_of(st.none(), st.integers(), st.text(max_size=3))),
    st.decimals(allow_nan=False),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=2), st.integers(), st.none()), inner, max_size=3),
        st.builds(Point, inner, inner),
    ),
    max_leaves=6,
)


@settings(derandomize=True)
@given(VALUES)
def test_any_value_is_restored_unchanged(value: Any) -> None:
    assert_same(round_trip(value), value)


@st.composite
def shared_values(draw: Any) -> Any:
    """Draw a nested value in which objects can occur several times and which can contain itself."""
    objects: list[Any] = [1.5, "a", np.arange(3.0), [1], (2, [3]), {"b": [4]}]
    for _ in range(draw(st.integers(1, 6))):
        parts = draw(st.lists(st.sampled_from(range(len(objects))), max_size=3))
        inside = [objects[index] for index in parts]
        kinds: list[Any] = [list, tuple, lambda parts: dict(zip("abc", parts))]
        objects.append(draw(st.sampled_from(kinds))(inside))
    value = objects[-1]
    if draw(st.booleans()) and isinstance(value, list):
        value.append(draw(st.sampled_from([value, objects[3]])))
    return value


def number_parts(value: Any) -> list[Any]:
    """Return the parts of a value in traversal order, containers and arrays numbered by first occurrence."""
    first: dict[int, int] = {}
    order: list[Any] = []
    unseen = [value]
    while unseen:
        part = unseen.pop()
        if not isinstance(part, (list, tuple, dict, np.ndarray)) or (isinstance(part, tuple) and not part):
            order.append(part)
            continue
        is_new = id(part) not in first
        order.append((type(part), first.setdefault(id(part), len(first)), len(part)))
        if is_new and not isinstance(part, np.ndarray):
            unseen.extend(part.values() if isinstance(part, dict) else part)
    return order


@settings(derandomize=True, deadline=None)
@given(shared_values())
def test_shared_objects_are_restored_as_one_object(value: Any) -> None:
    assert number_parts(round_trip(value)) == number_parts(pickle.loads(pickle.dumps(value)))


def note(text: str) -> Named:
    named = Named([1, 2])
    named.name = text
    return named


FRAME = pd.DataFrame({"a": np.arange(5000.0), "b": [None, "x"] * 2500}, index=pd.Index(range(5000), name="i"))


@pytest.mark.parametrize(
    "value",
    [
        FRAME,
        FRAME["b"],
        FRAME.iloc[:0],
        scipy.sparse.random_array((300, 300), density=0.1, format="csr", rng=0),
        scipy.sparse.eye(3, format="coo"),
        np.ma.masked_less(np.arange(2000.0), 5),
        np.matrix(np.eye(30)),
        np.rec.array([(1, 2.0)], [("x", "i4"), ("y", "f8")]),
        np.array([("a", 1)], [("name", "U3"), ("at", ">i4")]),
        np.asfortranarray(np.ones((70, 50))),
        np.arange(10_000)[::2],
        np.timedelta64(3, "s"),
        np.array(None, object),
        np.array(["a"], np.dtypes.StringDType() if hasattr(np.dtypes, "StringDType") else object),
        np.void(b"abc"),
        np.longdouble(1) / 3,
        Celsius(3.5),
        ValueError("no", 3),
        OrderedDict(b=None, a=1),
        defaultdict(list, a=[1]),
        collections.Counter("abca"),
        deque([1, 2], maxlen=2),
        {frozenset({1}): {(1, "a"): None}},
        {(1, "a"): 1, b"k": 3, 1 + 2j: 4, np.int64(7): 5, Point(1, 2): 6},
        Point(None, [Point(1, np.zeros(3))]),
        note("mine"),
        range(3),
        slice(1, None),
        PurePosixPath("a"),
        int,
        np.sum,
        len,
        ...,
        [0.5] * 100_000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_of_libraries_are_restored_unchanged(value: Any) -> None:
    assert_same(round_trip(value), value)


def test_a_memory_map_is_restored_as_a_memory_map(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "a", np.float64, "w+", shape=(2000,))
    mapped[:] = np.arange(2000)
    actual = round_trip(mapped)
    assert type(actual) is np.memmap
    np.testing.assert_array_equal(actual, mapped)


def test_local_classes_and_functions_are_restored() -> None:
    local = collections.namedtuple("local", "a b")  # type: ignore[misc]

    class Inside:
        pass

    assert_same(round_trip(local(1, None)), local(1, None))
    assert type(round_trip(Inside())) is Inside
    factor = 3
    assert round_trip(lambda x: factor * x)(2) == 6
    assert round_trip(Own([1, None])) == Own([1, None])


@pytest.mark.parametrize("size", [1, 5000])
def test_restored_arrays_are_writable_and_not_shared(size: int) -> None:
    value = {"raw": np.zeros(size), "beside": (None, np.zeros(size), pd.Series(np.zeros(size)))}
    for actual in (
        round_trip(value),
        unpickle_array(pickle_to_array(value)),
        unpickle_array(make_read_only_copy(pickle_to_array(value))),
    ):
        for array in (actual["raw"], actual["beside"][1]):
            assert array.flags.aligned
            array[:] = 1
        actual["beside"][2].iloc[0] = 1
    assert not value["raw"].any() and not value["beside"][1].any()


def test_a_writable_block_is_not_copied() -> None:
    block = pickle_to_array([None, np.zeros(10_000)])
    assert np.shares_memory(unpickle_array(block)[1], block)


def test_a_block_is_one_array_of_bytes_for_any_value() -> None:
    for value in (None, [np.zeros(10_000)] * 3, FRAME):
        block = pickle_to_array(value)
        assert block.dtype == np.uint8 and block.ndim == 1
    assert len(pickle_to_array([np.zeros(10_000), np.ones(10_000)])) < 161_000


def test_importable_values_are_sent_without_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    spec = importlib.util.find_spec("polarmap.worker.pickled_values")
    anew = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(anew)
    assert anew.dumps is pickle.dumps
    assert_same(unpickle_array(anew.pickle_to_array({Path("a"): None})), {Path("a"): None})
