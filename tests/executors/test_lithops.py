"""A FunctionExecutor of the caller, and a configuration, as executors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from memory_storage import DictStorage

from polarmap.blocks.uneven import PartBlocks
from polarmap.code.uncoded import Uncoded
from polarmap.errors import ExecutorError
from polarmap.executors import lithops
from polarmap.executors.base import Payload
from polarmap.executors.lithops import LithopsExecutor, YamlExecutor
from polarmap.worker.parts import Place
from polarmap.worker.stored_output import OutputSpec

CONFIG = {"lithops": {"backend": "aws_lambda", "storage": "memory"}, "aws_lambda": {"runtime_memory": 2048}}


def functions(backend: str = "aws_lambda") -> Any:
    return SimpleNamespace(backend=backend, config=CONFIG, storage=DictStorage(), futures=[])


def payload(output: Place | None = None) -> Payload:
    blocks = PartBlocks([[np.zeros(2)]], ("array",), Uncoded(1))
    return Payload(np.copy, blocks, output=output and OutputSpec(output, "y", 5))


def test_it_is_named_after_its_backend_and_knows_its_workers() -> None:
    executor = LithopsExecutor(functions())
    assert executor.name == "lithops/aws_lambda"
    assert executor.worker is not None
    assert executor.worker.memory == 2048


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Place("driver", "memory of this process"), "workers cannot reach: use a thread pool"),
        (Place("folder", "/data"), "workers on aws_lambda cannot reach: use storage= of that backend"),
        (
            Place("bucket", "b", "aws_s3"),
            "in aws_s3 bucket 'b', but this executor stores in memory",
        ),
    ],
)
def test_storage_that_its_workers_cannot_reach_is_refused(place: Place, message: str) -> None:
    with pytest.raises(ExecutorError, match=message):
        LithopsExecutor(functions()).open(payload(place))


def test_what_its_workers_reach_is_taken_and_nothing_is_left() -> None:
    given = functions("localhost")
    for place in (None, Place("bucket", "b", "memory"), Place("folder", "/data")):
        LithopsExecutor(given).open(payload(place)).close()
    assert given.storage.objects == {}


def test_a_configuration_is_opened_for_a_map_and_ended_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "here.yaml"
    file.write_text("lithops: {backend: localhost, storage: localhost}\nlocalhost: {version: 1}\n")
    opened, ended = [], []

    def open_functions(path: Any) -> Any:
        opened.append(functions())
        opened[-1].executor_id = "x"
        return opened[-1]

    monkeypatch.setattr(lithops, "open_functions", open_functions)
    monkeypatch.setattr(lithops, "end", ended.append)
    executor = YamlExecutor(file)
    assert (executor.name, opened) == ("lithops/localhost", [])
    executor.open(payload()).close()
    with pytest.raises(ExecutorError):
        executor.open(payload(Place("folder", "/data")))
    assert len(opened) == 2
    assert ended == opened
