"""Tests of the program of a worker, in this process and in an interpreter with only Lithops and NumPy."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from memory_storage import DictStorage

import polarmap
from polarmap.blocks.uneven import UncodedBlocks
from polarmap.executors.interface import JobSpec, Outcome
from polarmap.executors.pickling import pickle_worker_code_by_value
from polarmap.testing import Fault, FaultyExecutor
from polarmap.worker.encryption import Encryption
from polarmap.worker.lithops_tasks import make_lithops_task
from polarmap.worker.locations import BucketLocation
from polarmap.worker.messages import Message, MessageKind
from polarmap.worker.pytree import pack_tree, unpack_leaves
from polarmap.worker.segments import Segment
from polarmap.worker.task_execution import (
    SAMPLE_SIZE,
    TaskIO,
    compute_result,
    corrupt_result,
    run_task,
    sample_evenly,
    store_result,
)
from polarmap.worker.task_records import OutputSpec, TaskRequest

ABSENT = ("polarmap", "scipy", "numba", "boto3", "sklearn", "distributed", "matplotlib")


class MemoryIO(TaskIO):
    """A connection to a driver in the same process, which supplies f and the block."""

    def __init__(self, f: Callable[[Any], Any], block: Any) -> None:
        super().__init__(DictStorage())
        self._f, self._block = f, block
        self.cancelled_from = 99  # the number of the poll from which the task counts as cancelled
        self._asked = 0

    def load_inputs(self, request: TaskRequest) -> tuple[Callable[[Any], Any], Any]:
        if isinstance(self._block, Exception):
            raise self._block
        return self._f, self._block

    def is_cancelled(self) -> bool:
        self._asked += 1
        return self._asked >= self.cancelled_from

    @property
    def objects(self) -> dict[str, bytes]:
        return {key: data for (_, key), data in self.storage.objects.items()}


TICKET = TaskRequest(3, 1, None, None, None)
STORING = TICKET._replace(output=OutputSpec(BucketLocation("b"), "p", max_segment_items=4))


def decode_outcome(message: Message | None, encryption: Encryption | None = None) -> Outcome:
    """Return the outcome that a driver derives from a reply."""
    assert message is not None
    assert (message.kind, message.attempt_key) == (MessageKind.TASK_REPLY, (-1, 3, 1))
    payload = JobSpec(np.negative, UncodedBlocks([], ("array",)), encryption=encryption)
    return payload.decode_reply(3, 1, message.header, message.data)


def failure(message: Message | None, encryption: Encryption | None = None) -> str:
    return str(decode_outcome(message, encryption).failure)


def test_all_exceptions_are_reported() -> None:
    lock = threading.Lock()  # A dict with this key cannot be pickled.
    for io, kind in (
        (MemoryIO(np.negative, "text"), "UFuncTypeError: ufunc 'negative'"),
        (MemoryIO(np.negative, OSError("text")), "OSError: text"),
        (MemoryIO(lambda block: {(lock,): 1}, 1), "TypeError: cannot pickle"),
    ):
        assert failure(run_task(TICKET, io)).startswith(kind)
    assert failure(run_task(TICKET._replace(fault=Fault("raise")), io)) == "RuntimeError: injected fault"


def test_with_a_key_replies_are_encrypted() -> None:
    encryption = Encryption.create(bytes(range(32)))
    ticket = TICKET._replace(encryption=tuple(encryption))
    reply = run_task(ticket, MemoryIO(np.negative, np.arange(8.0)))
    assert reply is not None
    assert reply.header == b""
    assert not any(value.tobytes() in reply.data for value in -np.arange(1.0, 8.0))
    np.testing.assert_array_equal(decode_outcome(reply, encryption).leaves[0], -np.arange(8.0))
    raised = run_task(ticket, MemoryIO(np.negative, OSError("a secret")))
    assert "secret" not in repr(raised)
    assert failure(raised, encryption) == "OSError: a secret"


@pytest.mark.parametrize("question", [1, 2])
def test_a_cancelled_task_leaves_no_objects(question: int) -> None:
    io = MemoryIO(np.negative, np.arange(6.0))
    io.cancelled_from = question
    assert run_task(STORING, io) is None
    assert io.objects == {}


# --- on a bare interpreter ---------------------------------------------------------------------


def find_requirements(*names: str) -> set[str]:
    """Return the names of distributions and of all their installed requirements, without extras."""
    required: set[str] = set()
    todo = list(names)
    while todo:
        name = re.sub("[-_.]+", "-", todo.pop()).lower()
        if name in required:
            continue
        required.add(name)
        for line in importlib.metadata.requires(name) or []:
            if "extra ==" not in line and is_installed(project := re.split(r"[^\w.-]", line)[0]):
                todo.append(project)
    return required


def is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.fixture(scope="module")
def bare_interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create an interpreter with only Lithops, NumPy and their requirements, and return its path."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in find_requirements("lithops", "numpy"):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "/")}:
            if top != "__pycache__" and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    return folder / "bin" / "python"


def test_a_worker_with_lithops_and_numpy_only(
    bare_interpreter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The variable would let the worker import packages of the client.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    config = tmp_path / "bare.yaml"
    config.write_text(
        "lithops: {backend: localhost, storage: localhost, monitoring_interval: 0.02}\n"
        f"localhost: {{version: 1, runtime: {bare_interpreter}, worker_processes: 4}}\n"
    )
    A = np.random.default_rng(0).standard_normal((120, 40))
    X = np.random.default_rng(1).standard_normal((40, 30))

    def f(block: np.ndarray) -> np.ndarray:
        import importlib.util
        import sys as there

        seen = [name for name in absent if name in there.modules or importlib.util.find_spec(name)]
        # pytest rewrites assert statements, and Lithops would then search pytest for modules to send.
        if seen:
            raise RuntimeError(f"this worker can import {seen}")
        return block @ X

    absent = ABSENT
    faults = {0: Fault("sleep", 600), 1: Fault("kill", attempts=9)}
    y = polarmap.coded_map(
        f, A, blocks=2, tasks=4, executor=FaultyExecutor(config, faults), timeout=100, verify=False
    )
    np.testing.assert_allclose(y.concatenate(), A @ X, rtol=1e-10, atol=1e-10)
    assert y.report.recovered == (0, 1)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # pytest has threads.
@pytest.mark.parametrize("end", ["returns", "raises", "exits"])
def test_a_child_forked_by_f_ends_when_it_leaves_f(end: str, tmp_path: Path) -> None:
    children: list[int] = []

    def f(block: Any) -> Any:
        child = os.fork()
        if child:
            children.append(child)
            return 2 * block
        if end == "raises":
            raise KeyError
        if end == "exits":
            sys.exit(7)
        return 3 * block

    before = os.getpid()
    outcome = decode_outcome(run_task(TICKET, MemoryIO(f, np.ones(2))))
    (tmp_path / str(os.getpid())).touch()  # Each process that gets here has returned a reply.
    assert os.getpid() == before
    assert os.waitpid(children[0], 0)[1] == 0
    np.testing.assert_array_equal(outcome.leaves[0], 2 * np.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == [str(before)]


def test_a_pickled_task_imports_only_numpy(bare_interpreter: Path, tmp_path: Path) -> None:
    # The pickled task includes its modules, and is loaded where polarmap is not installed.
    with pickle_worker_code_by_value():
        pickled = cloudpickle.dumps(make_lithops_task(abs, ("array",)))  # This f is pickled by name.
    (tmp_path / "task").write_bytes(pickled)
    code = (
        "import json, pickle, sys\n"
        "import cloudpickle\n"
        "before = set(sys.modules)\n"
        f"task = pickle.load(open({str(tmp_path / 'task')!r}, 'rb'))\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    run = subprocess.run([bare_interpreter, "-I", "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in json.loads(run.stdout) if name not in sys.stdlib_module_names}
    assert loaded <= {"numpy"}
    assert len(pickled) < 100_000  # The task is sent once per map.


# --- faults ---


def test_a_sleep_fault_delays_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert compute_result(abs, -1, Fault("sleep", 0.2)) == pack_tree(1)
    assert slept == [0.2]


def test_a_raise_fault_replaces_the_result() -> None:
    calls: list[object] = []
    with pytest.raises(RuntimeError, match="injected fault"):
        compute_result(calls.append, 1, Fault("raise"))
    assert calls == []


def test_a_corrupted_result_keeps_its_layout() -> None:
    wrong, right = compute_result(np.arange, 5, Fault("garbage")), pack_tree(np.arange(5))
    assert (wrong.structure, wrong.layout) == (right.structure, right.layout)
    assert all(
        wrong_byte != right_byte for wrong_byte, right_byte in zip(bytes(wrong.data), bytes(right.data))
    )
    assert corrupt_result(corrupt_result(right)) == right


# --- results that stay in storage ---


OUTPUT = OutputSpec(BucketLocation("f"), "p", max_segment_items=300)


def stored(result: Any, output: OutputSpec = OUTPUT) -> tuple[Any, tuple[Segment, ...], dict[str, bytes]]:
    io = MemoryIO(np.copy, None)
    packed, parts = store_result(pack_tree(result), TaskRequest(3, 1, None, None, output), output, io)
    return packed, parts, io.objects


def test_a_stored_result_is_split_into_segments_and_a_sample_is_sent() -> None:
    result = np.arange(1000.0).reshape(10, 100)
    packed, parts, objects = stored(result)
    assert [(part.key, part.offset) for part in parts] == [
        ("p/3-1/0", 8 * start) for start in (0, 300, 600, 900)
    ]
    assert {key: bytes(data) for key, data in objects.items()} == {"p/3-1/0": result.tobytes()}
    pieces = [objects[part.key][part.offset : part.offset + part.size] for part in parts]
    assert b"".join(pieces) == result.tobytes()
    assert packed.structure == ("sample", (10, 100), ("array",))
    np.testing.assert_array_equal(unpack_leaves(*packed[1:])[0], sample_evenly(result))
    assert unpack_leaves(*packed[1:])[0].size == SAMPLE_SIZE


def test_several_arrays_share_the_sample_but_no_segment() -> None:
    _, parts, objects = stored([np.zeros(3), np.zeros(400, "i4")], OUTPUT._replace(n_arrays=2))
    assert [part.size for part in parts] == [24, 1200, 400]
    assert {key: len(data) for key, data in objects.items()} == {"p/3-1/0": 24, "p/3-1/1": 1600}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ((np.zeros(2), np.zeros(2)), "f returned 2"),
        ([np.zeros(2)], "f returned it in a list"),
        (np.zeros((1, 1)).view(np.matrix), "return it as a numpy.ndarray"),
    ],
)
def test_a_stored_result_that_is_not_an_array_is_refused(result: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        stored(result)
