"""A block cut into pieces, and the results of these."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polarmap.worker.partial_results import evaluate, joined, rows, subtask_order
from polarmap.worker.pytree import Packed, pack, unflatten
from polarmap.worker.run_task import packing


@pytest.mark.parametrize("total", [4, 5, 7, 100])
def test_the_pieces_of_a_block_are_its_rows(total: int) -> None:
    whole = np.arange(total)
    assert np.concatenate([whole[rows(total, 4, one)] for one in range(4)]).tolist() == whole.tolist()


def test_every_subtask_comes_first_on_as_many_tasks() -> None:
    assert sorted(subtask_order(task, 4)[0] for task in range(8)) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(sorted(subtask_order(task, 4)) == [0, 1, 2, 3] for task in range(8))
    assert subtask_order(3, 1) == ()


def test_pieces_are_evaluated_one_by_one_as_they_are_asked_for() -> None:
    seen: list[Any] = []

    def call(block: Any) -> Packed:
        seen.append(block["a"].tolist())
        return pack((block["a"] * 2, block["b"]))

    results = evaluate(call, {"a": np.arange(8.0), "b": np.eye(8)}, (2, 3, 0, 1))
    assert seen == []
    packed, subtasks = next(results)()
    assert seen == [[4.0, 5.0]]
    assert subtasks == (2,)
    [(doubled, identity)] = unflatten(packed.structure, packed.unpack())
    assert doubled.tolist() == [8.0, 10.0]
    np.testing.assert_array_equal(identity, np.eye(8)[4:6])
    assert [one()[1] for one in results] == [(3,), (0,), (1,)]


def test_without_an_order_the_block_is_evaluated_as_it_is() -> None:
    [one] = evaluate(pack, 7, ())
    assert one() == (pack(7), ())


def test_joined_results_are_one_list() -> None:
    one, two = (next(evaluate(packing(np.copy), np.full(1, n), (0,)))() for n in (1.0, 2.0))
    assert joined([one, two])[0] == pack([np.ones(1), np.full(1, 2.0)])
    assert joined([one]) is one
