"""Reference results for coded_map without its code: the plain map, and a comparison with tolerances."""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from dask_executors import dask_executor

import polarmap
from polarmap.codes import ArrivalTracker, PolarCode
from polarmap.executors.interface import Event, JobSpec, Outcome, Session
from polarmap.executors.replay import ReplaySession
from polarmap.testing import ReplayExecutor

STATES = ("arrived", "surplus", "abandoned", "cancelled", "failed", "held back")
ROUNDINGS = 1024  # Rounding errors, in units of a leaf's largest number, that each of its entries may have.


def frames_of_ours(error: BaseException) -> int:
    """Count the lines of polarmap in a traceback, including its causes and the tracebacks of workers."""
    return "".join(traceback.format_exception(error)).count(f'File "{Path(polarmap.__file__).parent}')


def cut(data: np.ndarray, k: int) -> list[np.ndarray]:
    """Return k equal blocks of an array, the last padded with rows of zeros, ready for encoding."""
    rows = -(-len(data) // k)
    padding = np.zeros((rows * k - len(data), *data.shape[1:]), data.dtype)
    return list(np.concatenate([data, padding]).reshape(k, rows, *data.shape[1:]))


def cut_rows(data: np.ndarray, k: int) -> list[np.ndarray]:
    """Return the blocks that f receives: ceil(rows / k) rows each, and the last may be shorter."""
    rows = -(-len(data) // k)
    return [data[start : start + rows] for start in range(0, len(data), rows)]


def plain_map(f: Callable[[Any], Any], data: Any, k: int) -> list[Any]:
    """Return [f(block) for block in blocks]."""
    blocks = cut_rows(data, k) if isinstance(data, np.ndarray) else data
    return [f(block) for block in blocks]


def assert_same(results: Iterable[Any], expected: Iterable[Any], rtol: float = 0.0) -> None:
    """Check for equal structure, types, shapes and dtypes, equal integers, and floats within `rtol`.

    Errors are relative to the largest value that any block has at that position. Entries that are mere
    rounding errors of much larger neighbours are not compared.
    """
    results, expected = list(results), list(expected)
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected):
        assert shape_of(result) == shape_of(wanted)
    for places in zip(*map(leaves, expected), *map(leaves, results)):
        wanted, actual = places[: len(expected)], places[len(expected) :]
        size = max(np.size(one) for one in wanted)  # The last blocks may be shorter.
        assert_close(np.stack(padded(actual, size)), np.stack(padded(wanted, size)), rtol)


def padded(arrays: Iterable[Any], size: int) -> list[np.ndarray]:
    """Return flat arrays padded with zeros to a common size."""
    return [np.pad(np.ravel(one), (0, size - np.size(one))) for one in arrays]


def assert_close(results: np.ndarray, expected: np.ndarray, rtol: float) -> None:
    if expected.dtype.kind not in "fc" or rtol == 0:
        np.testing.assert_array_equal(results, expected)
        return
    largest = np.abs(expected).max(axis=0).astype(float)
    noise = min(ROUNDINGS * np.finfo(expected.dtype).eps, rtol) * float(largest.max(initial=0))
    error = np.abs(results.astype(np.complex128) - expected.astype(np.complex128))
    assert (error <= rtol * largest + noise).all(), f"off by {(error / (largest + noise)).max():.2g}"


def leaves(tree: Any) -> list[Any]:
    children = tree.values() if isinstance(tree, dict) else tree
    if isinstance(tree, (dict, tuple, list)):
        return [leaf for child in children for leaf in leaves(child)]
    return [tree]


def shape_of(tree: Any) -> Any:
    """Return a tree with each leaf replaced by its type, dtype and shape."""
    if isinstance(tree, dict):
        return dict, {key: shape_of(child) for key, child in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree), [shape_of(child) for child in tree]
    array = np.asarray(tree)
    return type(tree), array.dtype, array.shape


def arriving(arrivals: Iterable[int], n: int, start: float = 1.0, step: float = 0.1) -> ReplayExecutor:
    """Return an executor on which tasks arrive in this order on a virtual clock; other tasks never report."""
    seconds = dict.fromkeys(range(n), math.inf)
    return ReplayExecutor(seconds | {task: start + step * turn for turn, task in enumerate(arrivals)})


def arrivals(code: PolarCode, count: int, stream: np.random.Generator, exact: bool = False) -> list[int]:
    """Return a random order of `count` tasks that decodes well, with up to two data tasks missing."""
    while True:
        order = stream.permutation(code.n)[:count].tolist()
        decoder = ArrivalTracker(code, modular=exact, max_amplification=50)
        for index in order:
            decoder.add(index)
        if decoder.is_ready and len(decoder.missing_indices) >= min(2, code.n - count):
            return order


def states(report: Any) -> Mapping[str, list[int]]:
    """Return the tasks in every state that occurs."""
    by_state = {state: report.tasks_in_state(state) for state in STATES}
    return {state: indices for state, indices in by_state.items() if indices}


def printed(value: Any) -> str:
    """Return the repr of a value without addresses, so that test ids are equal in all processes."""
    return re.sub(r" at 0x\w+", "", repr(value))


def process_pool(workers: int, **environment: str | None) -> ProcessPoolExecutor:
    """Return a pool of processes that are not forked from this one, which would be unsafe with threads.

    Parameters
    ----------
    environment : str or None
        Variables to set, or to remove if None, in the processes.
    """
    context = multiprocessing.get_context("forkserver")
    return ProcessPoolExecutor(
        workers, context, set_environment if environment else None, (environment,) * bool(environment)
    )


@contextmanager
def executor_of_kind(kind: str, workers: int = 4) -> Iterator[Any]:
    """Yield the value of `coded_map(executor=)` for a kind of workers on this machine."""
    if kind == "dask":
        with dask_executor(workers) as one:
            yield one
    elif kind in ("threads", "processes"):
        with (ThreadPoolExecutor if kind == "threads" else process_pool)(workers) as pool:
            yield pool
    else:
        yield {"default": None, "localhost": "localhost", "replay": ReplayExecutor()}[kind]


def set_environment(environment: Mapping[str, str | None]) -> None:
    """Set or remove environment variables of this process."""
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def ends(events: Iterable[Event]) -> list[Outcome]:
    """Return the outcomes among the events of a run."""
    return [event for event in events if isinstance(event, Outcome)]


def first_ends(run: Session, count: int, seconds: float = 60.0) -> list[Outcome]:
    """Return the given number of outcomes as soon as a run has reported them."""
    outcomes: list[Outcome] = []
    deadline = run.now() + seconds
    while len(outcomes) < count:
        assert run.now() < deadline
        outcomes += ends(run.wait(0.5))
    return outcomes


class AlteringReplay(ReplayExecutor):
    """A replay executor that alters each outcome before it is reported."""

    def altered(self, outcome: Outcome) -> Outcome:
        """Return the outcome that is reported instead."""
        raise NotImplementedError

    def open(self, job_spec: JobSpec) -> ReplaySession:
        return AlteringRun(self._arrival_seconds, job_spec, self.altered)


class AlteringRun(ReplaySession):
    def __init__(
        self, seconds: Mapping[int, float], payload: JobSpec, altered: Callable[[Outcome], Outcome]
    ) -> None:
        super().__init__(seconds, payload)
        self._altered = altered

    def wait(self, timeout: float) -> list[Event]:
        events = super().wait(timeout)
        return [self._altered(event) if isinstance(event, Outcome) else event for event in events]
