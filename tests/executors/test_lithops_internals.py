"""Lithops' inside is as we take it to be: what fails here fails with a new version of it."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polarmap.executors.lithops_internals import (
    LostError,
    abandon,
    end,
    forget,
    has_ended,
    impatient_storage,
    keep_monitoring,
    localhost_functions,
    result_of,
    runner_process,
    slots_of,
    storage_settings,
)
from polarmap.executors.private_folder import private_folder

PATIENCE = 60.0


def wait_until_ended(future: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not has_ended(future):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_private_executor_runs_abandons_and_leaves_nothing() -> None:
    functions = localhost_functions(3)
    try:
        assert slots_of(functions) == 3
        assert runner_process(functions) is None
        assert str(private_folder()) in functions.storage.bucket
        good, bad, late = functions.map(work, [{"number": number} for number in range(3)], chunksize=1)
        for future in (good, bad):
            wait_until_ended(future)
        assert result_of(good, functions) == 10
        with pytest.raises(LostError, match=r"ZeroDivisionError: (integer )?division"):
            result_of(bad, functions)
        assert not has_ended(late)
        assert runner_process(functions).poll() is None
        forget(functions, {good})
        assert functions.futures == [bad, late]
        keep_monitoring(functions, [late])
        assert functions.job_monitor.is_alive()
        abandon(functions, [late])
    finally:
        end(functions)
    process = runner_process(functions)
    assert process is None or process.wait(PATIENCE) is not None


def work(number: int) -> int:
    import time as there

    if number == 2:
        there.sleep(600)
    return 10 // (1 - number)


def test_what_lithops_gave_up_has_its_reason() -> None:
    flags = {"ready": False, "success": False, "done": True}
    for error, reason in [
        (TimeoutError("too late"), "TimeoutError: too late"),
        ((RuntimeError, RuntimeError("killed"), None), "killed"),
        (MemoryError("no more"), "no more"),
        (None, "NoneType: None"),
    ]:
        future = SimpleNamespace(**flags, _exception=error)
        assert has_ended(future)
        with pytest.raises(LostError, match=f"^{reason}$"):
            result_of(future, None)


def test_storage_is_that_of_localhost_unless_another_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("lithops: {backend: localhost}\n")
    settings = storage_settings(file)
    assert settings["backend"] == "localhost"
    storage = impatient_storage(settings, seconds=3)
    assert storage.backend == "localhost"
