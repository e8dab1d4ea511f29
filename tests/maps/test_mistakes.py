"""Wrong arguments of public functions: each call soon raises a PolarmapError or returns a result."""

from __future__ import annotations

import functools
import inspect
import math
import traceback
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import zarr
from plain import frames_of_ours

import polarmap
from polarmap import CodedGradient, CodedOperator, planning
from polarmap.arrays import RawObjects, Stored, ZarrObjects
from polarmap.cli import config
from polarmap.clouds.limits import BACKENDS
from polarmap.codes import (
    ArrivalTracker,
    IntegerSecretSharingCode,
    LagrangeCode,
    PolarCode,
    SecretSharingCode,
)
from polarmap.errors import CodeError, ExecutorError, PolarmapError
from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "a word": lambda: "x",
    "bytes": lambda: b"x",
    "-1": lambda: -1,
    "0": lambda: 0,
    "1.5": lambda: 1.5,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "1j": lambda: 1j,
    "True": lambda: True,
    "a large number": lambda: 10**30,
    "[]": list,
    "['x']": lambda: ["x"],
    "{}": dict,
    "{'x': 1}": lambda: {"x": 1},
    "an object": object,
    "an array": lambda: np.array([1, 2]),
    "a matrix of floats": lambda: np.eye(3),
    "an array of words": lambda: np.array(["a", "b"]),
    "an array of objects": lambda: np.array([None, {}]),
    "a scalar": lambda: np.float32(0.5),
    "a function": lambda: lambda: None,
    "a class": lambda: int,
    "a set": lambda: {1},
}
ROWS = np.arange(24.0).reshape(8, 3)
DISTRIBUTION = planning.ShiftedExponential(1.0, 0.5)
SEEN = [1.0, 1.2, 1.5, 2.0]


class Call(NamedTuple):
    """A public function, valid arguments for it, and the parameters that accept any value."""

    function: Callable[..., Any]
    good: dict[str, Any]
    free: tuple[str, ...] = ()

    def __call__(self, **wrong: Any) -> None:
        """Call the function with some arguments replaced, on a new executor."""
        fresh = {"executor": ReplayExecutor()} if "executor" in self.good else {}
        self.function(**self.good | fresh | wrong)


def total(block: Any) -> Any:
    return block.sum(axis=0)


REPLAY = {"executor": ReplayExecutor()}


def coded_operator(A: Any = ROWS, **options: Any) -> None:
    with CodedOperator(A, **{"executor": ReplayExecutor()} | options) as operator:
        operator @ np.ones(operator.shape[1])


def operand(x: Any) -> Any:
    with CodedOperator(ROWS, executor=ReplayExecutor()) as operator:
        return operator._matvec(x)


def coded_gradient_class(f: Any, x: Any = (1.0, 2.0), **options: Any) -> None:
    CodedGradient(f, executor=ReplayExecutor(), **options)(x)


def map_with_fault(kind: Any = "raise", seconds: Any = 0.0, attempts: Any = 1) -> None:
    executor = FaultyExecutor(ReplayExecutor(), {0: Fault(kind, seconds, attempts)})
    polarmap.coded_map(total, ROWS, blocks=4, tasks=6, executor=executor)


def map_with_run_times(seconds: Any) -> None:
    polarmap.coded_map(total, ROWS, blocks=4, tasks=6, executor=ReplayExecutor(seconds), timeout=50)


def map_with_run_time_of(task: Any, seconds: Any) -> None:
    if isinstance(task, Hashable):
        map_with_run_times({task: seconds})


def map_with_faults(executor: Any, faults: Any) -> None:
    polarmap.coded_map(total, ROWS, blocks=4, tasks=6, executor=FaultyExecutor(executor, faults))


def make_pool(
    executor: Any = None,
    workers: Any = 2,
    idle_timeout: Any = 60.0,
    memory_limit: Any = 10**6,
    threads_per_worker: Any = 1,
    dashboard: Any = False,
) -> None:
    options = {"memory_limit": memory_limit, "threads_per_worker": threads_per_worker}
    options["dashboard"] = dashboard
    polarmap.Pool(executor, workers, idle_timeout=idle_timeout, **options).close()


def open_dashboard(port: Any = 0) -> None:
    with polarmap.dashboard(port):
        pass


def executor_of_calls(executor: Any = None, workers: Any = 2, backups: Any = 2, retries: Any = 1) -> None:
    polarmap.Executor(executor, workers, backups=backups, retries=retries).shutdown()


def decode(blocks: Any) -> Any:
    return PolarCode(6, 4).decode(blocks)


def decode_at(index: Any, block: Any) -> None:
    if isinstance(index, Hashable):  # other values cannot be keys of a dict
        blocks = {1: np.ones(2), 2: np.ones(2), 3: np.ones(2)}
        PolarCode(6, 4).decode(blocks | {index: block})


def polar(n: Any = 6, k: Any = 4, **options: Any) -> None:
    code = PolarCode(n, k, **options)
    code.encode(np.ones((code.k, 2)) if code.kernel == "rotation" else np.ones((code.k, 2), int))


def evaluation(n: Any = 9, k: Any = 3, degree: Any = 2, points: Any = "auto") -> None:
    LagrangeCode(n, k, degree, points).encode_parity(np.ones((3, 2)))


def secret(n: Any = 7, k: Any = 4, n_colluders: Any = 1, noise: Any = 100.0) -> None:
    SecretSharingCode(n, k, n_colluders, noise).encode_parity(np.ones((5, 2)))


def secret_integers(n: Any = 8, k: Any = 3, n_colluders: Any = 1) -> None:
    IntegerSecretSharingCode(n, k, n_colluders).encode_parity(np.ones((4, 2), int))


def shared_secretly(n_colluders: Any = 1, noise: Any = 100.0) -> None:
    code = polarmap.codes.SecretSharing(n_colluders, noise)
    polarmap.coded_map(total, ROWS, code=code, executor=ReplayExecutor())


def submit_and_wait(f: Any, data: Any, **options: Any) -> None:
    polarmap.submit(polarmap.coded_map, f, data, **options).result(50)


def submit_map_function(map_function: Any) -> None:
    polarmap.submit(map_function, total, ROWS, executor=ReplayExecutor()).result(50)


def map_with_stored_result(name: Any, storage: Any = None) -> None:
    polarmap.coded_map(total, ROWS, blocks=4, out=Stored(name, storage), executor=ReplayExecutor())


def repair_and_check(executor: Any) -> None:
    """Repair an array and check it, both on `executor`."""
    coded = polarmap.encode(ROWS, name="r", storage="repaired", blocks=4, tasks=6, overwrite=True)
    coded.store.delete([coded.block_segments(5)[0].key])
    coded.repair(executor=executor)
    assert coded.check(executor=executor).ok


def raw_objects(keys: Any = ("raw",), shape: Any = (2, 3), dtype: Any = "f8", rows: Any = 2) -> None:
    Path("raws").mkdir(exist_ok=True)
    Path("raws/raw").write_bytes(bytes(48))
    data = RawObjects(keys, shape, dtype, rows)
    polarmap.encode(data, name="r", storage="raws", blocks=2, overwrite=True)


def zarr_objects(prefix: Any) -> None:
    zarr.create_array("zarrs/z", shape=(4, 2), chunks=(2, 2), dtype="f8", compressors=None, overwrite=True)
    polarmap.encode(ZarrObjects(prefix), name="z", storage="zarrs", overwrite=True)


def tracker(code: Any, modular: Any, max_amplification: Any, index: Any) -> None:
    ArrivalTracker(code, modular=modular, max_amplification=max_amplification).add(index)


def consuming(estimates: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(estimates)
    def call(*arguments: Any, **options: Any) -> None:
        list(estimates(*arguments, **options))

    return call


CALLS: dict[str, Call] = {
    "coded_map": Call(
        polarmap.coded_map, {"f": total, "data": ROWS, "blocks": 4, "tasks": 6} | REPLAY, ("progress",)
    ),
    "coded_map, stored": Call(polarmap.coded_map, {"f": total, "data": ROWS, "out": Stored("s")} | REPLAY),
    "submit": Call(
        submit_and_wait, {"f": total, "data": ROWS, "blocks": 4, "tasks": 6} | REPLAY, ("progress",)
    ),
    "submit, a map function": Call(submit_map_function, {"map_function": polarmap.hedged_map}),
    "hedged_map": Call(polarmap.hedged_map, {"f": total, "data": ROWS} | REPLAY),
    "coded_sum": Call(polarmap.coded_sum, {"f": total, "parts": ROWS, "tasks": 4} | REPLAY),
    "coded_matmul": Call(polarmap.coded_matmul, {"A": ROWS, "B": ROWS.T} | REPLAY),
    "coded_matmul, grid": Call(
        polarmap.coded_matmul,
        {"A": ROWS, "B": ROWS.T, "method": "grid", "tasks": (4, 4)} | REPLAY,
    ),
    "coded_gram": Call(polarmap.coded_gram, {"A": ROWS, "blocks": 3} | REPLAY),
    "sketched_lstsq": Call(consuming(polarmap.linalg.sketched_lstsq), {"A": ROWS, "b": np.ones(8)} | REPLAY),
    "sketched_gram": Call(consuming(polarmap.linalg.sketched_gram), {"A": ROWS} | REPLAY),
    "coded_gradient": Call(polarmap.coded_gradient, {"f": np.sum, "x": [1.0, 2.0, 3.0]} | REPLAY),
    "CodedGradient": Call(coded_gradient_class, {"f": np.sum}),
    "CodedOperator": Call(coded_operator, {}),
    "CodedOperator @": Call(operand, {"x": np.ones(3)}),
    "encode": Call(polarmap.encode, {"A": ROWS, "name": "e", "blocks": 4, "storage": "folder"}),
    "CodedArray.repair": Call(repair_and_check, REPLAY),
    "open_coded": Call(polarmap.open_coded, {"name": "e", "storage": "folder"}),
    "list_coded": Call(polarmap.arrays.list_coded, {"storage": "folder"}),
    "plan": Call(polarmap.plan, {"k": 4, "run_times": SEEN, "max_workers": 6, "n_trials": 10}),
    "plan, on demand": Call(
        polarmap.plan,
        {"k": 4, "run_times": DISTRIBUTION, "max_workers": 6, "schedule": "auto", "n_trials": 10},
    ),
    "PolarCode": Call(polar, {}),
    "PolarCode, integers": Call(polar, {"kernel": "arikan"}),
    "PolarCode.decode": Call(decode, {"blocks": {i: np.ones(2) for i in range(4)}}),
    "PolarCode.decode, a block": Call(decode_at, {"index": 5, "block": np.ones(2)}),
    "PolarCode.encode": Call(PolarCode(6, 4).encode, {"blocks": np.ones((4, 2))}),
    "PolarCode.is_decodable": Call(PolarCode(6, 4).is_decodable, {"arrived_mask": np.ones(6, bool)}),
    "LagrangeCode": Call(evaluation, {}),
    "LagrangeCode.summarize_amplification": Call(
        LagrangeCode(9, 3, 2).summarize_amplification, {"n_erasures": 1}
    ),
    "SecretSharingCode": Call(secret, {}),
    "IntegerSecretSharingCode": Call(secret_integers, {}),
    "SecretSharing": Call(shared_secretly, {}),
    "Stored": Call(map_with_stored_result, {"name": "s"}),
    "ArrivalTracker": Call(
        tracker, {"code": PolarCode(6, 4), "modular": False, "max_amplification": math.inf, "index": 0}
    ),
    "Fault": Call(map_with_fault, {}),
    "Pool": Call(make_pool, {}),
    "Executor": Call(executor_of_calls, {}),
    "dashboard": Call(open_dashboard, {}),
    "shutdown": Call(polarmap.shutdown, {}),
    "FaultyExecutor": Call(map_with_faults, {"executor": ReplayExecutor(), "faults": {0: Fault("raise")}}),
    "ReplayExecutor": Call(map_with_run_times, {"seconds": {0: 2.0}}),
    "ReplayExecutor, a task": Call(map_with_run_time_of, {"task": 0, "seconds": 2.0}),
    "RawObjects": Call(raw_objects, {}),
    "ZarrObjects": Call(zarr_objects, {"prefix": "z"}),
    "completion_time": Call(
        planning.completion_time,
        {"n": 6, "k": 4, "scheme": "rotation", "run_times": DISTRIBUTION, "n_trials": 10},
    ),
    "completion_time, on demand": Call(
        planning.completion_time,
        {"n": 6, "k": 4, "scheme": "on_demand", "run_times": DISTRIBUTION, "n_trials": 10},
    ),
    "completion_time, small blocks": Call(
        planning.completion_time,
        {"n": 6, "k": 4, "scheme": "small_blocks", "run_times": DISTRIBUTION, "n_trials": 10},
    ),
    "completion_time, sequential": Call(
        planning.completion_time,
        {"n": 6, "k": 4, "scheme": "sequential", "run_times": DISTRIBUTION, "n_trials": 10},
    ),
    "ShiftedExponential": Call(planning.ShiftedExponential, {"shift": 1.0, "scale": 1.0}),
    "ShiftedExponential.fit": Call(planning.ShiftedExponential.fit, {"times": SEEN}),
    "Pareto": Call(planning.Pareto, {"scale": 1.0, "shape": 2.0}),
    "Pareto.fit": Call(planning.Pareto.fit, {"times": SEEN}),
    "Scaled": Call(planning.Scaled, {"run_times": DISTRIBUTION}),
    "FailureProne": Call(planning.FailureProne, {"run_times": DISTRIBUTION, "probability": 0.1}),
    "Mixture": Call(planning.Mixture, {"components": [DISTRIBUTION, DISTRIBUTION], "weights": [0.5, 0.5]}),
    "with_stragglers": Call(
        planning.with_stragglers, {"run_times": DISTRIBUTION, "fraction": 0.1, "factor": 5.0}
    ),
    "with_cold_starts": Call(
        planning.with_cold_starts, {"run_times": DISTRIBUTION, "fraction": 0.1, "delay": 5.0}
    ),
    "Empirical": Call(planning.Empirical, {"times": SEEN}),
}
RESULTS = {
    *["Audit", "CodedArray", "CodedProduct", "CodedResult", "CodedSum", "GradientResult", "Plan", "Report"],
    *["CodedFuture", "SketchEstimate", "StoredResult", "TaskReport"],
}


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLARMAP_STORE", str(tmp_path / "default"))


def parameters() -> list[Any]:
    return [
        pytest.param(call, name, id=f"{label}({name}=)")
        for label, call in CALLS.items()
        for name, parameter in inspect.signature(call.function).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and name not in call.free
    ]


@pytest.mark.parametrize(("call", "name"), parameters())
def test_wrong_argument_raises_a_polarmap_error(call: Call, name: str) -> None:
    raw = {}
    for label, make in WRONG.items():
        if name == "executor" and label == "None":
            continue  # executor=None would start real processes
        if name == "on_result" and callable(make()):
            continue  # a callable is a valid callback, and its exceptions are raised unchanged
        try:
            call(**{name: make()})
        except PolarmapError as error:
            if frames_of_ours(error) > 2:  # the frames of the public call and of the check that raises
                raw[label] = "".join(traceback.format_exception(error))
        except Exception as error:
            if not is_of_f(error):
                raw[label] = f"{type(error).__name__}: {error}"
    assert raw == {}


def is_of_f(error: Exception) -> bool:
    return any(note.endswith(" raised this") for note in getattr(error, "__notes__", ()))


@pytest.mark.parametrize("label", CALLS)
def test_unchanged_arguments_are_valid(label: str) -> None:
    if label == "open_coded":
        polarmap.encode(ROWS, name="e", blocks=4, storage="folder")
    CALLS[label]()


def test_every_public_name_is_tested() -> None:
    named = {label.partition(",")[0].partition(".")[0].partition(" ")[0] for label in CALLS}
    assert set(polarmap.__all__) - RESULTS - {"errors", "planning"} <= named


# --- executors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("executor", "words"),
    [
        (ThreadPoolExecutor, r"executor=ThreadPoolExecutor is a class: .*, ThreadPoolExecutor\(...\)"),
        (
            "threads",
            r"neither 'localhost' nor a file: pass a pool, as .*ThreadPoolExecutor\(",
        ),
        ("processes", r"concurrent.futures.ProcessPoolExecutor\(8\)"),
        ("aws_lambda", "`polarmap config show aws_lambda` prints"),
        ("k8s", "`polarmap config show k8s` prints"),
        ("no.yaml", "the Lithops configuration .* does not exist"),
        (Path("no"), "executor='no' is neither 'localhost' nor a file"),
        (b"localhost", "is no path that Lithops takes"),
        (np.array(["localhost", "x"]), "is not an executor: pass None or 'localhost'"),
        (3, "executor=3 is not an executor: pass None or 'localhost'"),
    ],
)
def test_error_for_an_invalid_executor_says_what_to_pass(executor: Any, words: str) -> None:
    for choice in (executor, FaultyExecutor(executor, {})):
        with pytest.raises(ExecutorError, match=words):
            polarmap.coded_map(total, ROWS, executor=choice)
        with pytest.raises(ExecutorError, match=words):
            CodedOperator(ROWS, executor=choice)


def test_every_suggested_backend_has_a_configuration() -> None:
    assert set(BACKENDS) <= set(config.list_backends())


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (
            {0: Fault("slep")},
            "the kind of a Fault must be one of sleep, raise, exit, kill, garbage, not 'slep'",
        ),
        ({0: Fault("sleep", -1)}, "seconds of a Fault must be a number of at least 0, not -1"),
        ({0: Fault("sleep")}, "a Fault that sleeps needs its seconds"),
        ({0: Fault("kill", attempts=1.5)}, "attempts of a Fault must be an integer of at least 0, not 1.5"),  # type: ignore[arg-type]
        ({"3": Fault("kill")}, "faults must map task indices to Fault objects, not '3'"),
        ({3: "kill"}, "to Fault objects, not 3 to 'kill'"),
        ({-1: Fault("kill")}, "faults must map task indices to Fault objects"),
        ([Fault("kill")], "faults must be a mapping from task to Fault, not"),
    ],
)
def test_fault_that_affects_no_task_is_refused(faults: Any, words: str) -> None:
    with pytest.raises(CodeError, match=words):
        FaultyExecutor(ReplayExecutor(), faults)
