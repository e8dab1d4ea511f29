"""Hedged maps over values of many types, on every kind of executor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mapped_functions import twin
from own_class import Own

from polarmap import hedged_map
from polarmap.testing import Fault, FaultyExecutor
from polarmap.types import CodedResult


def everything() -> list[Any]:
    import pandas as pd
    import scipy.sparse

    frame = pd.DataFrame({"a": np.arange(3000.0), "b": "x"})
    matrix = scipy.sparse.random_array((80, 80), density=0.1, format="csr", rng=0)
    return [None, "text", 2**100, {1, 2}, {(1, None): [Path("b")]}, frame, matrix, Own([None]), len]


def assert_everything(result: CodedResult) -> None:
    assert len(result) == len(everything())
    for (value, nothing), wanted in zip(result, everything()):
        assert nothing is None
        assert type(value) is type(wanted)
        if hasattr(wanted, "equals"):
            assert value.equals(wanted)
        elif hasattr(wanted, "nnz"):
            assert (value != wanted).nnz == 0
        else:
            assert value == wanted


def test_values_of_any_type_are_returned_unchanged(executor: Any) -> None:
    # Three blocks keep the test fast: Lithops starts one process per block, which may have to import pandas.
    assert_everything(hedged_map(twin, everything(), blocks=3, executor=executor, timeout=60))


def test_values_of_any_type_survive_failing_and_sleeping_workers() -> None:
    faults = {1: Fault("kill"), 3: Fault("raise"), 6: Fault("sleep", 60)}
    result = hedged_map(twin, iter(everything()), executor=FaultyExecutor(None, faults), timeout=60)
    assert_everything(result)
    assert result.report.tasks[6].attempts >= 2
    assert result.report.tasks[6].state == "arrived"


@pytest.mark.parametrize("executor", ["threads", "processes"], indirect=True)
def test_f_may_modify_its_argument(executor: Any) -> None:
    def doubled(item: Any) -> Any:
        item[-1][:] *= 2
        return item[-1]

    items = [(None, np.full(size, 1.0)) for size in (3, 20_000)]
    # The second map must not read cached blocks that f modified in the first one.
    for _ in range(2):
        result = hedged_map(doubled, items, executor=executor, timeout=60)
        assert [set(block.tolist()) for block in result] == [{2.0}] * 2
    assert all(array.min() == 1.0 for _, array in items)
    result[0][:] = 5.0  # results are writable on the driver
