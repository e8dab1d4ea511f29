"""What Lithops' own tests of its map do, done with hedged_map and Executor.

Lithops takes a tuple or list of the length of the signature for several arguments, and a dict for named
ones: here `star` says so, and a call by name is written out. Functions that return futures, which Lithops
waits for, wait for these themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from polarmap import Executor, Pool, hedged_map

PAIRS = [(1, 1), (2, 2), (3, 3), (4, 4)]
PATIENCE = 60.0

Map = Callable[..., list[Any]]


def by_hedged_map(f: Callable[..., Any], data: Any, star: bool = False) -> list[Any]:
    return list(hedged_map(f, data, star=star, timeout=PATIENCE))


def by_executor(f: Callable[..., Any], data: Any, star: bool = False) -> list[Any]:
    with Executor() as executor:
        columns = zip(*data) if star else [data]
        return list(executor.map(f, *columns, timeout=PATIENCE))


@pytest.fixture(params=[by_hedged_map, by_executor])
def map_(request: pytest.FixtureRequest) -> Iterator[Map]:
    return request.param  # type: ignore[no-any-return]


def total(x: int, y: int) -> int:
    return x + y


def hello(_: Any) -> str:
    return "hello"


def test_tuples_are_several_arguments(map_: Map) -> None:
    assert map_(total, PAIRS, star=True) == [2, 4, 6, 8]


def test_one_worker_does_all() -> None:
    with Pool(workers=1) as pool:
        assert list(hedged_map(total, PAIRS, star=True, executor=pool)) == [2, 4, 6, 8]
    with Executor(workers=1) as executor:
        assert list(executor.map(total, *zip(*PAIRS))) == [2, 4, 6, 8]


@pytest.mark.parametrize("data", [range(2), {0, 1}, dict.fromkeys([None, "a"]).keys()], ids=repr)
def test_ranges_sets_and_other_iterables_are_data(map_: Map, data: Any) -> None:
    assert map_(hello, data) == ["hello", "hello"]
    assert map_(hello, iter(data)) == ["hello", "hello"]


def test_dicts_are_arguments_by_name(map_: Map) -> None:
    assert map_(lambda named: total(**named), [{"x": 2, "y": 8}, {"y": 2, "x": 8}]) == [10, 10]


def test_a_list_is_one_argument(map_: Map) -> None:
    assert map_(" ".join, [["a", "b"], ["c", "d"]]) == ["a b", "c d"]


def test_several_maps_run_on_the_same_workers() -> None:
    with Pool(workers=2) as pool, Executor(pool) as executor:
        first = [executor.submit(total, *pair) for pair in PAIRS[:2]]
        second = executor.map(total, *zip(*PAIRS[2:]))
        third = hedged_map(total, PAIRS, star=True, executor=pool)
        assert [one.result(PATIENCE) for one in first] == [2, 4]
        assert list(second) == [6, 8]
        assert list(third) == [2, 4, 6, 8]


@pytest.mark.parametrize("f", [lambda x: x + 1, partial(lambda x, y: x * y, 2)], ids=["function", "partial"])
def test_calls_have_futures_of_their_own(map_: Map, f: Callable[[int], int]) -> None:
    def inner(count: int) -> list[int]:
        with Executor(workers=2) as executor:
            found = [executor.submit(f, number) for number in range(count)]
            again = executor.map(f, range(count))
            return [one.result(PATIENCE) for one in found] + list(again)

    expected = [f(number) for number in range(3)]
    assert map_(inner, [3, 3]) == [2 * expected, 2 * expected]


def test_a_decorated_function_takes_arguments_of_every_kind(map_: Map) -> None:
    def doubled(f: Callable[..., int]) -> Callable[..., int]:
        def wrapper(*args: Any, **kwargs: Any) -> int:
            return 2 * f(*args, **kwargs)

        return wrapper

    @doubled
    def added(a: int, b: int, c: int = 0, *args: int, d: int, e: int = 5, **kwargs: int) -> int:
        return sum([a, b, c, d, e, *args, *kwargs.values()])

    calls = [((1, 2), {"d": 3}), ((1, 2), {"d": 3, "e": 4}), ((1, 2, 3, 4), {"d": 3, "f": 4})]
    assert map_(lambda call: added(*call[0], **call[1]), calls) == [22, 20, 44]
    with Executor() as executor:
        found = [executor.submit(added, *args, **kwargs) for args, kwargs in calls]
        assert [one.result(PATIENCE) for one in found] == [22, 20, 44]
