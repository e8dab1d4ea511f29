"""Types of data and results: every map keeps them, or raises a clear error that names the type."""

from __future__ import annotations

import array
import decimal
import math
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest

from polarmap import coded_map, coded_sum, encode, hedged_map
from polarmap.arrays import Stored
from polarmap.blocks.array_like import load_block_array
from polarmap.errors import CodeError
from polarmap.testing import ReplayExecutor
from polarmap.worker.pytree import flatten, pack_tree, unflatten, unpack_leaves

pytestmark = pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
TURN = np.arange(9.0).reshape(3, 3).view(np.matrix)
MATRIX = np.random.default_rng(0).standard_normal((12, 3)).view(np.matrix)
RECORDS = np.zeros(12, [("when", "M8[s]"), ("at", "f4", (2,)), ("name", "U3")])
RECORDS["at"] = np.arange(24).reshape(12, 2)
RECORDS["name"] = "abc"


def late() -> ReplayExecutor:
    return ReplayExecutor({0: math.inf})


# --- matrices ----------------------------------------------------------------------------------


def square(block: np.matrix) -> np.matrix:
    """Return block * TURN, which is a matrix product for matrices and an elementwise product for arrays."""
    return block * TURN


def test_f_sees_matrices_and_returns_them_from_a_coded_map() -> None:
    result = coded_map(square, MATRIX, blocks=4, tasks=6, executor=late())
    assert result.report.recovered == (0,)
    assert all(type(block) is np.matrix for block in result)
    joined = result.concatenate()
    assert type(joined) is np.matrix
    np.testing.assert_allclose(np.asarray(joined), np.asarray(MATRIX) @ np.asarray(TURN), atol=1e-12)


def test_a_sequence_of_matrices() -> None:
    blocks = [MATRIX[:6], MATRIX[6:]]
    result = coded_map(square, blocks, tasks=3, executor=late())
    assert type(result[0]) is np.matrix
    np.testing.assert_allclose(result[0], square(blocks[0]), atol=1e-12)


def test_matrices_in_a_hedged_map_and_in_a_sum() -> None:
    hedged = hedged_map(square, MATRIX, blocks=5, executor=ReplayExecutor())
    assert type(hedged[0]) is type(hedged.concatenate()) is np.matrix
    np.testing.assert_array_equal(hedged.concatenate(), square(MATRIX))
    total = coded_sum(lambda part: part.T * part, MATRIX, tasks=4, executor=late()).value
    assert type(total) is np.matrix
    np.testing.assert_allclose(total, MATRIX.T * MATRIX)


def test_matrix_cannot_be_stored(tmp_path: Any) -> None:
    with pytest.raises(CodeError, match=r"numpy.asarray\(A\)"):
        encode(MATRIX, name="a", storage=tmp_path)
    coded = encode(np.asarray(MATRIX), blocks=3, name="a", storage=tmp_path)
    with pytest.raises(TypeError, match=r"return it as a numpy\.ndarray"):
        coded_map(lambda block: block.view(np.matrix), coded, out=Stored("b"), executor=ReplayExecutor())


# --- records -----------------------------------------------------------------------------------


def test_a_hedged_map_keeps_the_names_of_fields() -> None:
    result = hedged_map(lambda block: block[block["at"][:, 0] > 4], RECORDS, executor=ReplayExecutor())
    joined = result.concatenate()
    assert joined.dtype == RECORDS.dtype
    assert (joined == RECORDS[RECORDS["at"][:, 0] > 4]).all()
    scalars = hedged_map(lambda block: block[0], RECORDS, executor=ReplayExecutor())
    assert [scalar["at"].tolist() for scalar in scalars] == RECORDS["at"].tolist()


@pytest.mark.parametrize("align", [False, True])
def test_fields_with_gaps_between_them_survive_packing(align: bool) -> None:
    dtype = np.dtype({"names": ["a", "b"], "formats": ["i1", ">f8"], "offsets": [3, 16], "itemsize": 32})
    for data_type in (dtype, np.dtype([("a", "i1"), ("b", "f8")], align=align), np.dtype([])):
        assert unpack_leaves(*pack_tree(np.zeros(3, data_type))[1:])[0].dtype == data_type


def test_records_and_text_cannot_be_summed() -> None:
    assert coded_sum(lambda part: part["at"].sum(), RECORDS, tasks=4, executor=late()).value == 276
    for f in (lambda part: part, lambda part: part["name"], lambda part: part["when"]):
        with pytest.raises(TypeError, match=r"f returned dtype .*, which cannot be added up: return numbers"):
            coded_sum(f, RECORDS, tasks=4, executor=ReplayExecutor())


# --- strings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "a", "a\0", "\0", "\0\0b\0", "é\N{SNOWMAN}\0", "\ud800"])
def test_strings_keep_trailing_zero_characters(text: str) -> None:
    for value in (text, text.encode("utf-8", "surrogatepass")):
        result = hedged_map(lambda part: part, [value, value], executor=ReplayExecutor())
        assert list(result) == [value, value]
        packed = pack_tree(value)
        assert unflatten(packed.structure, unpack_leaves(*packed[1:])) == value


# --- containers --------------------------------------------------------------------------------


class Point(NamedTuple):
    x: Any
    y: Any


class Scaled(Point):
    def __new__(cls, x: Any) -> Scaled:
        return super().__new__(cls, 2 * x, x)


class Rows(list):  # type: ignore[type-arg]
    pass


class Options(dict):  # type: ignore[type-arg]
    pass


class Attributes(dict):  # type: ignore[type-arg]
    def __init__(self, **options: Any) -> None:
        super().__init__(options)


@pytest.mark.parametrize(
    "tree",
    [
        OrderedDict(b=1.0, a=np.ones(2)),
        Point(1.0, (2.0, [3.0])),
        Scaled(3.0),
        Rows([1.0, 2.0]),
        Options(a=1.0),
        {"a": OrderedDict(c=Rows([1.0]))},
    ],
    ids=repr,
)
def test_containers_keep_their_types(tree: Any) -> None:
    results = [coded_map(lambda block: block, [tree, tree], executor=late())]
    if not isinstance(tree, Scaled):  # pickle cannot restore this class
        results.append(hedged_map(lambda block: block, [tree, tree], executor=ReplayExecutor()))
    for result in results:
        assert [type(block) for block in result] == [type(tree)] * 2
        assert str(result[1]) == str(tree)
    total = coded_sum(lambda part: tree, [1.0, 2.0], executor=ReplayExecutor()).value
    assert type(total) is type(tree)


def with_note() -> Any:
    rows = Rows([1.0])
    rows.note = "lost on the way"
    return rows


def endless() -> Any:
    rows: list[Any] = []
    rows.append(rows)
    return rows


class Frame:
    """A class with the attributes by which polarmap recognizes a DataFrame or a Series."""

    shape = (2,)
    dtype = np.dtype(float)

    def __getitem__(self, index: Any) -> Any:
        return np.ones(2)[index]

    def __array__(self, *_: Any, **__: Any) -> Any:
        return np.ones(2)

    def to_numpy(self) -> Any:
        return np.ones(2)


class Tensor(Frame):
    """A class with the attributes by which polarmap recognizes a tensor: its dtype is not numpy's."""

    dtype = object()  # type: ignore[assignment]
    to_numpy = property()  # type: ignore[assignment]

    def __len__(self) -> int:
        return 2


class Celsius(float):
    pass


class Quantity(np.ndarray):
    pass


NO_RESULTS: dict[str, tuple[Any, str]] = {
    "defaultdict": (lambda: defaultdict(int, a=1), r"a collections.defaultdict: use dict\("),
    "Counter": (lambda: Counter("abca"), r"a collections.Counter: use dict\("),
    "own __init__": (lambda: Attributes(a=1.0), r"Attributes: use dict\("),
    "attributes": (with_note, r"Rows: use list\("),
    "range": (lambda: range(3), r"a range: use list\("),
    "deque": (lambda: deque([1.0]), r"a collections.deque: use list\("),
    "array.array": (lambda: array.array("d", [1.0]), "an array.array: use "),
    "set": (lambda: {1.0}, r"a set: use list\("),
    "generator": (lambda: (number for number in [1.0]), r"a generator: use list\("),
    "None": (lambda: None, "None: use arrays, numbers"),
    "Decimal": (lambda: decimal.Decimal(1), "a decimal.Decimal: use arrays, numbers"),
    "DataFrame": (Frame, r"Frame: use its .to_numpy\(\)"),
    "tensor": (Tensor, r"Tensor: use numpy.asarray\("),
    "number of another class": (lambda: Celsius(3), "Celsius: use arrays, numbers"),
    "array of another class": (lambda: np.ones(2).view(Quantity), r"Quantity: use numpy.asarray\("),
    "recarray": (lambda: np.rec.array([(1,)], [("x", "i4")]), r"recarray: use numpy.asarray\("),
    "masked": (lambda: np.ma.masked_less([1.0, 2.0], 2), r"a masked array.*\.filled\(\)"),
    "in a dict in a list": (lambda: [{"a": deque()}], "a list with a dict with a collections.deque: use"),
    "long integer": (lambda: 2**70, r"an integer of 71 bits, numpy's have 64: use float\("),
    "endless": (endless, "nested without end"),
    "lock": (threading.Lock, "lock: use arrays, numbers"),
    "array of objects": (
        lambda: np.array([1, "a", None]),
        r"dtype object(: it must be an array|, which cannot be added up)",
    ),
}


READ_AS_DATA = ("masked", "endless", "DataFrame", "tensor", "array of objects")


@pytest.mark.parametrize("name", NO_RESULTS)
def test_unsupported_result_types_are_refused_by_name(name: str) -> None:
    make, words = NO_RESULTS[name]
    for run in (coded_map, coded_sum):
        with pytest.raises(TypeError, match=f"{words}.*(\n.*)*f fails everywhere"):
            run(lambda block: make(), np.ones((6, 2)), executor=ReplayExecutor())


@pytest.mark.parametrize("name", [name for name in NO_RESULTS if name not in READ_AS_DATA])
def test_unsupported_data_types_are_refused_by_name(name: str) -> None:
    make, words = NO_RESULTS[name]
    for run in (coded_map, coded_sum):
        with pytest.raises(CodeError, match=f"it holds .*{words}"):
            run(lambda block: 1.0, [make(), make()], executor=ReplayExecutor())


@pytest.mark.parametrize("name", ["generator", "lock"])
def test_unpicklable_values_are_named(name: str) -> None:
    make, words = NO_RESULTS[name]
    kind = words.partition(":")[0]
    with pytest.raises(
        CodeError, match=f"item 1 of data, .*{kind}, cannot be sent to workers: TypeError: cannot"
    ):
        hedged_map(lambda item: None, [1, make()], executor=ReplayExecutor())
    with pytest.raises(TypeError, match=f"f returned .*{kind} that cannot be pickled: cannot pickle"):
        hedged_map(lambda item: make(), [1], executor=ReplayExecutor(), retries=0)


def test_array_subclasses_are_refused(tmp_path: Any) -> None:
    data = np.ones((4, 2)).view(Quantity)
    for run in (coded_map, hedged_map, coded_sum):
        with pytest.raises(CodeError, match=r"data is a Quantity, .*: use numpy.asarray\(data\)"):
            run(np.sum, data, executor=ReplayExecutor())
    with pytest.raises(CodeError, match=r"A is a Quantity, .*: use numpy.asarray\(A\)"):
        encode(data, name="a", storage=tmp_path)


def test_remote_arrays_may_be_parts_of_blocks() -> None:
    class Elsewhere:
        shape, dtype, chunks = (2,), np.dtype("f4"), (1,)

        def __getitem__(self, index: Any) -> Any:
            return np.ones(2, "f4")[index]

        def __array__(self, *_: Any, **__: Any) -> Any:
            return np.ones(2, "f4")

    leaves, structure = flatten({"a": Elsewhere()}, load_block_array)
    assert leaves[0].dtype == "f4"
    assert structure[2] == (("array",),)
    with ThreadPoolExecutor(2) as pool:
        result = coded_map(lambda block: block["a"], [{"a": Elsewhere()}] * 3, executor=pool)
    assert type(result[0]) is np.ndarray
