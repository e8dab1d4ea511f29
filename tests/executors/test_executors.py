"""Resolution of the argument `executor=`, which happens once per map."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import polarmap
from polarmap.executors import MissingExecutor, resolve_executor, to_picklable_spec
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor


def test_resolved_executor_is_returned_unchanged() -> None:
    with polarmap.Executor() as calls:
        for choice in (None, ReplayExecutor(), calls, polarmap.Pool(), "localhost", FaultyExecutor()):
            executor = resolve_executor(choice)
            assert resolve_executor(executor) is executor


def test_executor_of_stored_data_replaces_the_default() -> None:
    other = ReplayExecutor()
    stored = SimpleNamespace(coded_blocks=None, executor=other)
    default = resolve_executor(None)
    assert default.choose_for(stored).name == "replay"
    assert default.choose_for(SimpleNamespace(coded_blocks=None, executor=None)) is default
    assert resolve_executor("localhost").choose_for(stored).name == "localhost"
    faulty = resolve_executor(FaultyExecutor(None, {1: Fault("raise")})).choose_for(stored)
    assert (faulty.name, faulty.faults) == ("replay", {1: Fault("raise")})


def test_column_named_executor_is_not_used_as_executor() -> None:
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"executor": np.arange(8.0), "b": np.ones(8)})
    y = polarmap.coded_map(lambda rows: 2.0 * rows, table, blocks=4)
    np.testing.assert_allclose(np.asarray(y.concatenate()), 2.0 * table.to_numpy())


def test_unpicklable_executor_is_pickled_as_its_name() -> None:
    assert repr(to_picklable_spec(ReplayExecutor())) == "<ReplayExecutor, left behind>"
    missing = to_picklable_spec(FaultyExecutor(ReplayExecutor()))
    assert isinstance(missing, MissingExecutor)
    assert to_picklable_spec(missing) is missing
