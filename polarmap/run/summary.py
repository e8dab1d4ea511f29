"""What happened during a map, as its report tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np

from polarmap.blocks.base import CodedData
from polarmap.code.decoder import Decoder
from polarmap.code.dtypes import is_exact
from polarmap.code.uncoded import Uncoded
from polarmap.report import Report, TaskReport
from polarmap.run.codeword import Codeword
from polarmap.run.estimates import Estimate
from polarmap.run.first_results import FirstResults
from polarmap.run.tasks import Task, TaskTable

UNCODED = Uncoded(1, backups=1).name


def report_of_coded(
    word: Codeword, tasks: TaskTable, coded: CodedData, estimate: Estimate | None, ended: float
) -> Report:
    """The report of a coded map that was accepted in second `ended`.

    `estimate`: of the results, if some may be estimates.
    """
    assert word.decoder is not None
    errors = () if estimate is None else estimate.errors
    recovered = word.decoder.missing.tolist()
    amplification = bound = 0.0
    if errors:
        recovered = [index for index in recovered if errors[index] == 0]
    else:
        amplification, bound = _errors(word, word.decoder)
    return Report(
        n=coded.n,
        k=coded.code.k,
        code=coded.code.name,
        executor="",
        tasks=_task_reports(word, word.decoder, tasks),
        needed=word.needed,
        recovered=tuple(recovered),
        seconds=ended,
        encode_seconds=0.0,
        decode_seconds=word.decode_seconds,
        surplus_seconds=_waited(word, ended),
        amplification=amplification,
        error_bound=bound,
        residual=word.residual,
        verified=str(word.verification),
        unchecked=_unchecked(word),
        padding=coded.blocks.padding,
        code_reason=coded.code_reason,
        errors=errors if any(errors) else (),
        error_p90=0.0 if estimate is None else estimate.error_p90,
    )


def report_of_uncoded(firsts: FirstResults, tasks: TaskTable, executor: str, seconds: float) -> Report:
    """The report of a map without a code, of which there is an outcome of every task."""
    n = len(tasks)
    return replace(
        blank_report(n, n, n, UNCODED, executor),
        tasks=tuple(
            TaskReport(
                index=index,
                state="used" if index in firsts.arrived else "failed",
                arrived=firsts.arrived.get(index),
                seconds=firsts.outcomes[index].seconds if index in firsts.arrived else None,
                attempts=tasks[index].attempts,
                failures=_failures(tasks[index]),
                launched=tasks[index].launched,
            )
            for index in range(n)
        ),
        seconds=seconds,
        verified="not needed",
        is_final=True,
    )


def blank_report(n: int, k: int, needed: int, code: str, executor: str) -> Report:
    """The report of a map before anything of it has happened."""
    return Report(
        n=n,
        k=k,
        code=code,
        executor=executor,
        tasks=_not_started(n),
        needed=needed,
        recovered=(),
        seconds=0.0,
        encode_seconds=0.0,
        decode_seconds=0.0,
        surplus_seconds=0.0,
        amplification=0.0,
        error_bound=0.0,
        residual=None,
        verified="no",
        is_final=False,
    )


@lru_cache(maxsize=8)
def _not_started(n: int) -> tuple[TaskReport, ...]:
    return tuple(TaskReport(index, "not started", None, None, 0, (), None) for index in range(n))


def report_so_far(blank: Report, tasks: TaskTable, arrived: Mapping[int, float], seconds: float) -> Report:
    """The report of a map that goes on, perhaps on another thread: what may change meanwhile is copied."""
    here, running = dict(arrived), set(tasks.running)
    return replace(
        blank,
        seconds=seconds,
        tasks=tuple(
            TaskReport(
                index=index,
                state="arrived" if index in here else _state_so_far(tasks, running, index),
                arrived=here.get(index),
                seconds=None,
                attempts=tasks[index].attempts,
                failures=_failures(tasks[index]),
                launched=tasks[index].launched,
            )
            for index in range(blank.n)
        ),
    )


def _errors(word: Codeword, decoder: Decoder) -> tuple[float, float]:
    """Amplification and error bound."""
    if not len(decoder.missing):
        return 0.0, 0.0
    amplification = decoder.amplification
    if decoder.exact and not all(map(is_exact, word.precisions)):  # floats decoded beside integers
        amplification = float(np.linalg.norm(decoder.recovery.weights, axis=1).max())
    return amplification, word.error_bound


def _waited(word: Codeword, ended: float) -> float:
    """Seconds from when the results were determined until they were handed out."""
    if word.verification in ("not needed", "no"):
        return 0.0
    return max(0.0, ended - (word.ready_at or 0.0) - word.decode_seconds)


def _unchecked(word: Codeword) -> tuple[int, ...]:
    """Of a map whose decoded results were checked."""
    if word.verification not in ("parity", "local"):
        return ()
    return tuple(sorted(word.verifier.unchecked()))


def _task_reports(word: Codeword, decoder: Decoder, tasks: TaskTable) -> tuple[TaskReport, ...]:
    """Of each task: a result that nothing was decoded from is surplus, unless it is a data block's."""
    used = np.zeros(len(tasks), bool)
    used[: len(decoder.code.systematic)] = True
    if len(decoder.missing):
        used |= decoder.arrived
    reports = []
    for index, is_used in enumerate(used.tolist()):
        task, came = tasks[index], word.arrived.get(index)
        if came is not None:
            state = "used" if is_used else "surplus"
        else:
            state = "abandoned" if index in tasks.running else "failed" if task.submitted else "not started"
        reports.append(
            TaskReport(
                index=index,
                state=state,
                arrived=came,
                seconds=None if came is None else word.seconds[index],
                attempts=len(task.submitted),
                failures=_failures(task) if task.failures else (),
                launched=task.submitted[0] if task.submitted else None,
            )
        )
    return tuple(reports)


def _state_so_far(tasks: TaskTable, running: set[int], index: int) -> str:
    """What has become of a task whose result is not here, of a map that goes on."""
    return "running" if index in running else "failed" if tasks[index].attempts else "not started"


def _failures(task: Task) -> tuple[str, ...]:
    """Each text once; another thread may be noting more."""
    return tuple(dict.fromkeys(str(failure) for failure in tuple(task.failures)))
