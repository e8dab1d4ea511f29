"""What Lithops' own tests of its map do, done with hedged_map and Executor: calls that map themselves.

Functions that return futures, which Lithops waits for, wait for these themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from polarmap import Executor, Pool, hedged_map

PAIRS = [(1, 1), (2, 2), (3, 3), (4, 4)]
PATIENCE = 60.0

Map = Callable[..., list[Any]]


def by_hedged_map(f: Callable[..., Any], data: Any) -> list[Any]:
    return list(hedged_map(f, data, timeout=PATIENCE))


def by_executor(f: Callable[..., Any], data: Any) -> list[Any]:
    with Executor() as executor:
        return list(executor.map(f, data, timeout=PATIENCE))


@pytest.fixture(params=[by_hedged_map, by_executor])
def map_(request: pytest.FixtureRequest) -> Map:
    return request.param  # type: ignore[no-any-return]


def total(x: int, y: int) -> int:
    return x + y


def test_several_maps_run_on_the_same_workers_of_which_there_may_be_one() -> None:
    for workers in (1, 2):
        with Pool(workers=workers) as pool, Executor(pool) as executor:
            first = [executor.submit(total, *pair) for pair in PAIRS[:2]]
            second = executor.map(total, *zip(*PAIRS[2:]))
            third = hedged_map(total, PAIRS, star=True, executor=pool)
            assert [one.result(PATIENCE) for one in first] == [2, 4]
            assert list(second) == [6, 8]
            assert list(third) == [2, 4, 6, 8]


def test_calls_map_themselves(map_: Map) -> None:
    def inner(count: int) -> list[int]:
        return list(hedged_map(int, range(count), timeout=PATIENCE))

    assert map_(inner, range(1, 4)) == [[0], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize("f", [lambda x: x + 1, partial(lambda x, y: x * y, 2)], ids=["function", "partial"])
def test_calls_have_futures_of_their_own(map_: Map, f: Callable[[int], int]) -> None:
    def inner(count: int) -> list[int]:
        with Executor(workers=2) as executor:
            found = [executor.submit(f, number) for number in range(count)]
            again = executor.map(f, range(count))
            return [one.result(PATIENCE) for one in found] + list(again)

    expected = [f(number) for number in range(3)]
    assert map_(inner, [3, 3]) == [2 * expected, 2 * expected]
