"""Tests that trees of arrays are flattened, packed into bytes and restored."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from plain import assert_same

from polarmap.worker.pytree import (
    PackedTree,
    describe_type,
    flatten,
    get_layout,
    pack_tree,
    unflatten,
    unpack_leaves,
)


class Point(NamedTuple):
    x: Any
    y: Any


NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.builds(np.float32, st.floats(width=32, allow_nan=False)),
    st.builds(np.uint8, st.integers(0, 255)),
)
DTYPES = st.one_of(
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)),
    hnp.boolean_dtypes(),
)
ARRAYS = hnp.arrays(
    DTYPES, hnp.array_shapes(min_dims=0, min_side=0, max_side=3), elements={"allow_nan": False}
)
KEYS = st.one_of(st.text(max_size=3), st.integers())
TREES = st.recursive(
    NUMBERS | ARRAYS,
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.dictionaries(KEYS, children, max_size=3),
        st.builds(Point, children, children),
    ),
    max_leaves=8,
)


@settings(derandomize=True)
@given(TREES)
def test_unpack_inverts_pack_also_after_pickling(tree: Any) -> None:
    leaves, structure = flatten(tree)
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves)
    packed = PackedTree(*pickle.loads(pickle.dumps(tuple(pack_tree(tree)))))
    assert packed.structure == structure
    assert_same([unflatten(packed.structure, unpack_leaves(*packed[1:]))], [tree])


def test_leaves_come_from_left_to_right() -> None:
    leaves, _ = flatten({"b": (1, [2, 3]), "a": 4})
    assert [int(leaf) for leaf in leaves] == [1, 2, 3, 4]


def test_unpacked_leaves_are_writable_but_do_not_change_bytes_objects() -> None:
    _, layout, data = pack_tree((np.arange(3), 1.0))
    received = bytearray(data)
    for where in (data, received):
        for leaf in unpack_leaves(layout, where):
            leaf[...] = 7
    assert data == pack_tree((np.arange(3), 1.0)).data
    assert received == pack_tree((np.full(3, 7), 7.0)).data
    assert not unpack_leaves(layout, data, writable=False)[0].flags.writeable


def test_bytes_that_are_too_few_or_too_many_are_not_unpacked() -> None:
    _, layout, data = pack_tree((np.arange(3), 1.0))
    for wrong in (data[:-1], data + b"x", b""):
        with pytest.raises(ValueError):  # noqa: PT011
            unpack_leaves(layout, wrong)


@pytest.mark.parametrize("layout", ["C", "F"])
def test_pack_stores_in_c_order(layout: Any) -> None:
    matrix = np.asarray(np.arange(6).reshape(2, 3), order=layout)
    assert unpack_leaves(*pack_tree(matrix)[1:])[0].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (np.array([1, None]), "dtype object: it must be an array of numbers or a number"),
        (np.ma.masked_less(np.arange(3), 1), "masked array"),
    ],
)
def test_invalid_leaves_are_refused(leaf: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        pack_tree({"a": leaf})


def test_leaves_are_freed_with_the_tree() -> None:
    # Reference counting frees the leaves, because a referenced leaf keeps mapped data in memory.
    gc.disable()
    try:
        leaves = [np.zeros(3), np.ones(2)]
        references = [weakref.ref(leaf) for leaf in leaves]
        tree = unflatten(flatten({"a": leaves[0], "b": [leaves[1]]})[1], leaves)
        assert tree["a"] is leaves[0]
        del tree, leaves
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


def test_a_layout_has_simple_dtypes_as_strings() -> None:
    records = np.dtype([("x", "i4")])
    assert get_layout([np.zeros(2), np.zeros(3, records)]) == (("<f8", (2,)), (records, (3,)))


def test_errors_name_the_type_of_a_value() -> None:
    assert [describe_type(None), describe_type(OrderedDict()), describe_type((1, 2))] == [
        "None",
        "a collections.OrderedDict",
        "a tuple",
    ]
