"""One codeword: what is not needed is not made, and nothing of it outlives its map."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from polarmap import PolarCode, ReplayExecutor, coded_map
from polarmap.errors import NotLinearError
from polarmap.executors.replay import ReplayRun
from polarmap.run import codeword
from polarmap.run.trusted import TRUSTED
from polarmap.run.verify import Verifier

DATA = np.random.default_rng(0).standard_normal((24, 5))
OPTIONS = {"blocks": 6, "workers": 8}


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_where_nothing_is_missing_nothing_is_checked_or_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    TRUSTED.clear()
    coded_map(np.negative, DATA, **OPTIONS, executor=ReplayExecutor({0: math.inf}))  # it is known from here
    monkeypatch.setattr(PolarCode, "recovery", lambda *_: pytest.fail("made"))
    monkeypatch.setattr(codeword, "Acceptance", lambda *_: pytest.fail("made"))
    result = coded_map(np.negative, DATA, **OPTIONS, executor=ReplayExecutor({6: 9.0, 7: 9.0}))
    np.testing.assert_array_equal(result.concatenate(), -DATA)
    assert (result.report.verified, result.report.seconds) == ("not needed", 1.0)


def test_whether_checks_mix_blocks_is_asked_only_while_nothing_is_known_of_f(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    TRUSTED.clear()
    asked = list[object]()
    is_mixing = Verifier.is_mixing.fget
    assert is_mixing is not None
    monkeypatch.setattr(Verifier, "is_mixing", property(lambda one: asked.append(one) or is_mixing(one)))
    # Integers need as many arrivals as their pattern says: a few are over, to be checked against.
    order = np.random.default_rng(0).permutation(64).tolist()
    executor = ReplayExecutor({task: 1.0 + turn / 10 for turn, task in enumerate(order)})
    whole, options = np.arange(144).reshape(48, 3), {"blocks": 48, "workers": 64, "executor": executor}
    assert coded_map(np.negative, whole, **options).report.verified == "parity"
    assert asked
    asked.clear()
    assert coded_map(np.negative, whole, **options).report.verified == "parity"
    assert not asked


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("surplus", [0, 1])
def test_the_data_is_gone_when_its_map_is_over_though_results_were_checked(surplus: int) -> None:
    TRUSTED.clear()
    data = DATA.copy()
    there = weakref.ref(data)
    lost = ReplayExecutor(dict.fromkeys(range(2 - surplus), math.inf))
    result = coded_map(np.negative, data, **OPTIONS, executor=lost)
    assert result.report.verified == ("parity" if surplus else "local")
    del data
    assert there() is None


def test_results_that_contradict_each_other_are_looked_at_again_when_another_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop looks every 5 s, whatever happens; it did every quarter of a second."""
    looks = list[float]()
    wait = ReplayRun.wait
    monkeypatch.setattr(ReplayRun, "wait", lambda run, timeout: looks.append(timeout) or wait(run, timeout))
    lost = ReplayExecutor({0: math.inf, 1: 1000.0})
    with pytest.raises(NotLinearError):
        coded_map(np.square, DATA, blocks=6, workers=9, executor=lost, timeout=500)
    assert len(looks) < 150
