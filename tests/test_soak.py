"""Run a short soak with fixed seeds, and check that the soak detects wrong results."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import numpy as np
import pytest
from soak import oracle, watch
from soak.cases import KINDS, KINDS_OF_POOL, KINDS_OF_REPLAY, Named
from soak.draws import Draw
from soak.faults import SHARES, Faults, Pools
from soak.maps import draw_map
from soak.oracle import Finding

import polarmap
from polarmap.errors import NotLinearError

COUNT = {"replay": 110, "threads": 8, "pool": 8, "processes": 2}
# Seeds of open findings: `python -m soak --case SEED` shows each.
FOUND: set[int] = set()


def seeds(executor: str) -> Iterator[int]:
    """Yield the seeds whose case runs on this executor, without open findings."""
    return (seed for seed in count() if Named(seed).executor == executor and seed not in FOUND)


def a_map(executor: str = "replay") -> int:
    """Return the first seed of a map on this executor."""
    return next(seed for seed in seeds(executor) if Named(seed).kind == "map")


def test_a_short_soak_finds_nothing() -> None:
    chosen = [seed for executor, number in COUNT.items() for seed in islice(seeds(executor), number)]
    chosen.append(a_map("localhost"))
    tally = watch.watch(chosen, keep_going=True)
    assert [str(found) for found in tally.findings] == []
    assert sum(tally.counts.values()) == len(chosen)


def test_a_case_is_made_from_its_seed_alone() -> None:
    for seed in range(40):
        assert str(Named(seed).drawn()) == str(Named(seed).drawn())


def test_a_case_can_be_repeated_by_its_number() -> None:
    seed = a_map()
    command = [sys.executable, "-m", "soak", "--case", str(seed)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=watch.TESTS, timeout=100)
    assert run.stdout.startswith(f"case {seed}, a map on replay\n{Named(seed).drawn()}\n"), run.stderr
    assert run.returncode == 0


def test_a_hang_is_detected_and_later_cases_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(watch.LIMIT, "pool", 1e-6)  # The limit is shorter than the start of the workers.
    tally = watch.watch([a_map("threads"), a_map("pool"), a_map("threads")], keep_going=True)
    assert [found.kind for found in tally.findings] == ["hang"]
    assert sum(tally.counts.values()) == 3
    assert f"again: make soak CASE={a_map('pool')}" in str(tally.findings[0])


def run_changed(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> str:
    """Return the verdict on a map without faults whose result is changed."""
    drawn = (draw_map(Draw(seed), "replay") for seed in count())
    case = next(one for one in drawn if one.f.name == "transpose" and one.dtypes == [np.dtype(float)])
    case.faults, right = Faults(), polarmap.coded_map
    monkeypatch.setattr(polarmap, "coded_map", lambda *given, **options: change(right(*given, **options)))
    return case.run(Pools())


def test_a_wrong_number_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(result: Any) -> Any:
        result._results[0] = result._results[0] + 1
        return result

    with pytest.raises(Finding, match=r"result 0 is off by 1"):
        run_changed(monkeypatch, off_by_one)


def test_unexcused_and_foreign_errors_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(result: Any) -> Any:
        raise NotLinearError("not linear")

    def fail(result: Any) -> Any:
        raise KeyError("foreign")

    with pytest.raises(Finding, match="innocent failure"):
        run_changed(monkeypatch, refuse)
    monkeypatch.undo()
    with pytest.raises(KeyError):
        run_changed(monkeypatch, fail)


def test_numbers_are_compared_with_the_allowed_error() -> None:
    wanted = np.array([1.0, 2.0])
    oracle.check_close(wanted + 1e-12, wanted, [1e-11], "it")
    with pytest.raises(Finding, match="allowed 1e-13"):
        oracle.check_close(wanted + 1e-12, wanted, [1e-13], "it")
    with pytest.raises(Finding, match="off by nan"):
        oracle.check_close(np.array([np.nan, 2.0]), wanted, [1.0], "it")
    with pytest.raises(Finding, match="wrong structure"):
        oracle.check_close(wanted.astype("f4"), wanted, [1.0], "it")


def test_every_kind_is_drawn() -> None:
    drawn = [Named(seed) for seed in range(3_000)]
    assert {one.executor for one in drawn} == set(SHARES)
    assert {one.kind for one in drawn if one.executor == "pool"} == set(KINDS_OF_POOL)
    assert {one.kind for one in drawn if one.executor == "replay"} == set(KINDS_OF_REPLAY)
    assert {one.kind for one in drawn if one.executor == "threads"} == set(KINDS)


def test_every_code_is_drawn() -> None:
    codes = {type(draw_map(Draw(seed), "replay").code).__name__ for seed in range(200)}
    secret_sharing = {"SecretSharingCode", "IntegerSecretSharingCode"}
    assert codes == {"RotationCode", "ArikanCode", "LagrangeCode", *secret_sharing}
