"""Tests of the last block of an array whose rows do not divide evenly: its result is f of its rows alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coded_maps import faulty, losing
from plain import assert_same, process_pool

import polarmap
from polarmap import coded_map
from polarmap.arrays import Stored
from polarmap.codes import SecretSharing
from polarmap.driver.local_evaluation import LocalEvaluation
from polarmap.errors import CodedTimeoutError, CodeError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

STREAM = np.random.default_rng(0)
DATA = STREAM.standard_normal((59, 3)) + 5  # 15 blocks of 4 rows, except that the last has 3
SIZES = {"blocks": 15, "tasks": 20, "timeout": 1000.0}  # The timeout is in virtual seconds.
LAST = 14


@pytest.fixture(autouse=True, scope="module")
def _local_f_ends_within_one_poll() -> Iterator[None]:
    """Make f on the driver end within one poll, since the virtual clocks ignore a busy machine."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("polarmap.driver.local_evaluation.EVALUATION_POLL_SECONDS", 60.0)
        yield


def plain(f: Callable[[Any], Any], data: Any, k: int) -> list[Any]:
    """Return the expected results: f of each block of ceil(rows / k) rows. The last block may be shorter."""
    rows = -(-len(data) // k)
    return [f(data[start : start + rows].copy()) for start in range(0, len(data), rows)]


def mean(block: np.ndarray) -> np.ndarray:
    return block.mean(axis=0)


def centred(block: np.ndarray) -> np.ndarray:
    return block - block.mean(axis=0)


def transposed(block: np.ndarray) -> np.ndarray:
    return 2 * block.T


def twice(block: np.ndarray) -> np.ndarray:
    return 2 * block


def total(block: np.ndarray) -> np.ndarray:
    return block.sum(axis=0)


def gram(block: np.ndarray) -> np.ndarray:
    return np.vstack([block.sum(axis=0), -block.sum(axis=0)])


def several(block: np.ndarray) -> dict[str, Any]:
    return {"rows": 2 * block, "mean": (block.mean(axis=0), [block.sum()]), "total": block.sum(axis=0)}


def refusing_zeros(block: np.ndarray) -> np.ndarray:
    if not block.any(axis=1).all():
        raise ValueError("a row of zeros")
    return 2 * block


MIXING = [mean, centred, transposed, several]
DECODABLE = [twice, total, gram]


# --- without a loss, results equal a plain map bit for bit -------------------------------------------------


@pytest.mark.filterwarnings("error:.*padding", "error:.*rows of zeros")
@pytest.mark.parametrize(
    ("f", "data", "options"),
    [
        (mean, STREAM.standard_normal(569) + 5, {}),
        (np.median, STREAM.standard_normal(1009) + 5, {}),
        (mean, STREAM.standard_normal((25, 2)), {"blocks": 25}),
        (mean, STREAM.integers(0, 9, (29, 2)), {"blocks": 10}),
        (mean, STREAM.standard_normal((29, 2)).astype("f4"), {"blocks": 10}),
        (several, DATA, SIZES),
        # f returns as many numbers as a block has rows.
        (lambda block: block.sum(axis=0), np.arange(33.0).reshape(11, 3), {"blocks": 4}),
        (lambda block: block / block.sum(axis=1, keepdims=True), DATA, SIZES),  # NaN for rows of zeros
        (refusing_zeros, DATA, SIZES),
        (lambda block: block[block.any(axis=1)], DATA, SIZES),  # drops rows of zeros
        (lambda block: len(block), DATA, SIZES),
        (lambda block: block.max(axis=0), -abs(DATA), SIZES),
        (twice, DATA, SIZES),
    ],
)
def test_a_map_without_losses_equals_a_plain_map(
    f: Callable[[Any], Any], data: np.ndarray, options: dict[str, Any]
) -> None:
    result = coded_map(f, data, executor=losing(), **options | {"verify": False})
    assert_same(result, plain(f, data, len(result)))
    assert result.report.padding == -(-len(data) // len(result)) * len(result) - len(data)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_a_matrix_keeps_its_class() -> None:
    data = np.matrix(STREAM.standard_normal((29, 2)))
    assert_same(coded_map(mean, data, blocks=10, executor=losing()), plain(mean, data, 10))


def test_nested_results_may_have_another_structure_without_padding() -> None:
    f = lambda block: {len(block): block.sum(axis=0)}  # noqa: E731
    result = coded_map(f, DATA, **SIZES, executor=losing(3))
    assert [list(block) for block in result] == [[4]] * 14 + [[3]]
    assert_same(result[14:], plain(f, DATA, 15)[14:])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore:.*NaN or inf")
def test_padding_is_cut_off_where_the_data_is_not_finite(bad: float) -> None:
    data = DATA.copy()
    data[:4] = bad  # These are the rows on which the driver tries f.
    result = coded_map(lambda block: 5 - 2 * block, data, **SIZES, executor=ReplayExecutor())
    np.testing.assert_array_equal(result.concatenate(), 5 - 2 * data)
    assert [len(block) for block in result] == [4] * 14 + [3]


# --- evaluating f without padding --------------------------------------------------------------------


def test_f_is_evaluated_on_a_few_rows_and_without_padding_only_until_it_is_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class FinishedRun(LocalEvaluation):
        """An evaluation that ends before the map continues, since the map would not wait for it."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            assert self.wait_for_result_arrays(60.0) is not None

    monkeypatch.setattr("polarmap.driver.padding.LocalEvaluation", FinishedRun)

    def f(block: np.ndarray) -> np.ndarray:
        place = "worker" if threading.current_thread() is threading.main_thread() else "here"
        print(place, len(block))
        return block * 2

    for data in (DATA, DATA[:59] + 1, DATA[:59] - 1):
        coded_map(f, data, **SIZES, executor=losing(), verify=False)
        lines = capsys.readouterr().out.splitlines()
        here = [line for line in lines if line.startswith("here")]
        on_rows = [line for line in lines if line == "worker 3"]
        assert (here, on_rows) == (
            (["here 2", "here 4", "here 4"], ["worker 3"]) if data is DATA else ([], [])
        )


def test_f_that_mixes_rows_is_evaluated_without_padding_every_time() -> None:
    for data in (np.zeros_like(DATA), DATA, DATA + 1):  # Zeros show nothing about f.
        result = coded_map(centred, data, **SIZES, executor=losing(), verify=False)
        assert_same(result, plain(centred, data, 15))


def test_rows_that_cancel_do_not_hide_that_f_mixes_them() -> None:
    def f(block: np.ndarray) -> np.ndarray:
        return block - block.mean(axis=0)

    data = np.tile([[1.0], [-1.0]], (29, 1))
    for rows in (data, np.arange(58.0).reshape(58, 1)):
        result = coded_map(f, rows, blocks=15, tasks=20, executor=losing(), verify=False)
        assert_same(result, plain(f, rows, 15))


ROW_SELECTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "first two rows": lambda block: block[:2],
    "all but ten rows": lambda block: block[10:],
    "every other row": lambda block: block[::2],
    "last row": lambda block: block[-1:],
    "third row": lambda block: block[2:3].sum(axis=0),
    "without axes of length 1": lambda block: np.squeeze(2 * block[:, :1]),
    "total": total,
    "twice": twice,
}


@pytest.mark.parametrize("name", ROW_SELECTIONS)
def test_a_lost_result_of_a_short_block_has_the_rows_that_f_selects_or_is_refused(name: str) -> None:
    f = ROW_SELECTIONS[name]
    is_decoded = []
    # The last block has 3 of 3 rows, 2 of 4, 3 of 4, 1 of 4, 8 of 31, and 1 of 31. The maps share what is
    # known of f.
    for n_rows, k in ((9, 3), (10, 3), (11, 3), (13, 4), (101, 4), (94, 4), (11, 3)):
        data = np.arange(1.0, n_rows + 1)[:, None] * [1.0, 2.0]
        options = {"blocks": k, "tasks": 2 * k, "timeout": 1000.0}
        try:
            result = coded_map(f, data, executor=losing(k - 1), **options)
        except CodedTimeoutError:
            is_decoded.append(False)
            continue
        assert_same(result[:-1], plain(f, data, k)[:-1])
        expected = plain(f, data, k)[-1]
        assert np.shape(result[-1]) == np.shape(expected)
        np.testing.assert_allclose(result[-1], expected, atol=1e-9)
        is_decoded.append(True)
    assert is_decoded[0]  # No padding.
    assert all(is_decoded) or name not in ("third row", "total", "twice")


# --- other ways to call a map -------------------------------------------------------------------


def test_masked_blocks_are_decoded_or_refused() -> None:
    for f in (twice, total):
        result = coded_map(f, DATA, blocks=4, code=SecretSharing(), executor=losing(1))
        assert_same(result, plain(f, DATA, 4), 1e-7)
    for f in (mean, centred):
        with pytest.raises(CodeError, match="no worker gets a block of the data as it is"):
            coded_map(f, DATA, blocks=4, code=SecretSharing(), executor=losing(1))


@pytest.mark.parametrize("lost", [(), (LAST,), (0, LAST)])
def test_stored_results_are_right_or_refused(tmp_path: Path, lost: tuple[int, ...]) -> None:
    for number, f in enumerate((twice, total)):
        out = Stored(f"y{number}", storage=str(tmp_path))
        result = coded_map(f, DATA, **SIZES, out=out, executor=losing(*lost))
        assert_same(list(result), plain(f, DATA, 15), 1e-11)
    with pytest.raises(CodeError, match="results that stay in storage are blocks of equal size"):
        coded_map(mean, DATA, **SIZES, out=Stored("z", storage=str(tmp_path)), executor=losing(*lost))


@pytest.mark.parametrize("lost", [(), (0, LAST)])
def test_a_stored_array_is_mapped_like_an_array_in_memory(tmp_path: Path, lost: tuple[int, ...]) -> None:
    array = polarmap.encode(DATA, blocks=15, tasks=20, name="a", storage=str(tmp_path))
    executor = faulty({task: Fault("kill") for task in lost})
    for f in (mean, twice):
        assert_same(coded_map(f, array, executor=executor), plain(f, DATA, 15), 1e-11)


@pytest.mark.parametrize("lost", [(), (0,), (LAST,), (3, LAST)])
def test_padding_rows_of_a_stored_result_need_not_be_zeros(tmp_path: Path, lost: tuple[int, ...]) -> None:
    stored = coded_map(
        lambda block: block + 7, DATA, **SIZES, out=Stored("y", str(tmp_path)), executor=losing()
    )
    executor = faulty({task: Fault("kill") for task in lost})
    for f in (total, twice, mean):
        result = coded_map(f, stored, executor=executor)
        assert_same(result, plain(f, DATA + 7, 15), 1e-11)


def test_polynomials_of_a_last_block_are_those_of_its_rows() -> None:
    def f(block: np.ndarray) -> np.ndarray:
        return (block**2).mean(axis=0)

    for faults in ({}, {0: Fault("kill"), 3: Fault("kill")}):
        result = coded_map(f, DATA, blocks=4, degree=2, executor=faulty(faults))
        assert_same(result, plain(f, DATA, 4), 1e-8)


@pytest.mark.parametrize("lost", [(), (0,), (3,)])
def test_sparse_rows(lost: tuple[int, ...]) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.random_array((59, 40), density=0.2, rng=np.random.default_rng(0), format="csr")

    def f(block: Any) -> np.ndarray:
        return np.asarray(block.mean(axis=0))

    executor = faulty({task: Fault("kill") for task in lost})
    for g in (f, lambda block: block @ np.ones(40)):
        result = coded_map(g, matrix, blocks=4, tasks=6, code="rotation", executor=executor)
        assert_same(result, [g(matrix[i : i + 15]) for i in range(0, 59, 15)], 1e-11)


@pytest.mark.parametrize("kind", ["default", "new interpreters", "threads", "processes", "key"])
@pytest.mark.parametrize("is_lost", [False, True])
def test_padding_on_every_kind_of_local_workers(kind: str, is_lost: bool) -> None:
    faults = {LAST: Fault("raise" if kind == "threads" else "kill"), 2: Fault("raise")} if is_lost else {}
    options: dict[str, Any] = {"blocks": 15, "tasks": 20}
    pool: Any = None
    if kind == "threads":
        pool = ThreadPoolExecutor(4)
    elif kind == "processes":
        pool, faults = process_pool(2), {task: Fault("raise") for task in faults}
    elif kind == "new interpreters":
        pool = polarmap.Pool(workers=2, fork=False)
    elif kind == "key":
        options["key"] = bytes(range(32))
    try:
        executor = FaultyExecutor(pool, faults) if faults else pool
        for f in (mean, several):
            assert_same(coded_map(f, DATA, executor=executor, **options), plain(f, DATA, 15), 1e-11)
    finally:
        if pool is not None:
            getattr(pool, "shutdown", getattr(pool, "close", None))()
