"""What happened during a map, as its report tells it."""

from __future__ import annotations

import numpy as np

from polarmap.blocks.base import CodedData
from polarmap.code.dtypes import is_exact
from polarmap.report import Report, TaskReport
from polarmap.run.codeword import Codeword
from polarmap.run.collect import Collected

# From the least to the most that a map's codewords were verified by.
HOW = ["no", "earlier", "local", "parity", "not needed"]


def report_of(
    collected: Collected, coded: CodedData, executor: str, seconds: float, encode_seconds: float
) -> Report:
    """The report of a map that ended well; of several codewords the worst counts."""
    words = collected.words
    recovered = sorted({int(index) for word in words for index in word.decoder.missing})
    amplification = bound = 0.0
    if collected.errors:
        recovered = [index for index in recovered if collected.errors[index] == 0]
    else:
        amplification, bound = (max(figures) for figures in zip(*map(_errors, words)))
    residuals = [word.verifier.residual for word in words if word.verifier.residual is not None]
    return Report(
        n=coded.n,
        k=coded.code.k,
        code=coded.code.name,
        executor=executor,
        tasks=tuple(_task_report(words, index) for index in range(coded.n)),
        needed=max(word.arrivals.needed for word in words),
        recovered=tuple(recovered),
        seconds=seconds,
        encode_seconds=encode_seconds,
        decode_seconds=sum(word.settlement.decode_seconds for word in words),
        surplus_seconds=max(_waited(word, collected.seconds) for word in words),
        amplification=amplification,
        error_bound=bound,
        residual=max(residuals, default=None),
        verified=min((str(word.how) for word in words), key=HOW.index),
        unchecked=tuple(sorted(_unchecked(words))),
        padding=coded.blocks.padding,
        errors=collected.errors if any(collected.errors) else (),
    )


def _errors(word: Codeword) -> tuple[float, float]:
    """Amplification and error bound."""
    decoder, dtypes = word.decoder, word.arrivals.precisions
    if not len(decoder.missing):
        return 0.0, 0.0
    amplification = decoder.amplification
    if decoder.exact and not all(map(is_exact, dtypes)):  # floats decoded beside integers
        amplification = float(np.linalg.norm(decoder.plan.weights, axis=1).max())
    return amplification, word.error_bound


def _waited(word: Codeword, ended: float) -> float:
    """Seconds from when the results were determined until they were handed out."""
    if word.how in ("not needed", "no"):
        return 0.0
    return max(0.0, ended - (word.arrivals.ready_at or 0.0) - word.settlement.decode_seconds)


def _unchecked(words: list[Codeword]) -> set[int]:
    """Of a map whose decoded results were checked: also of those of its codewords that needed no decoding."""
    if min((str(word.how) for word in words), key=HOW.index) not in ("parity", "local"):
        return set()
    return {index for word in words for index in word.verifier.unchecked()}


def _task_report(words: list[Codeword], index: int) -> TaskReport:
    tasks = [word.arrivals.tasks[index] for word in words]
    times = [task.arrived for task in tasks if task.arrived is not None]
    seconds = [task.seconds for task in tasks if task.seconds is not None]
    is_whole = len(times) == len(tasks)
    if not is_whole:
        running, attempts = any(task.running for task in tasks), tasks[0].attempts
        state = "abandoned" if running else "failed" if attempts else "not started"
    else:
        is_data = index < len(words[0].decoder.code.systematic)
        decodes = any(len(word.decoder.missing) and word.decoder.arrived[index] for word in words)
        state = "used" if is_data or decodes else "surplus"
    return TaskReport(
        index=index,
        state=state,
        arrived=max(times) if is_whole else None,
        seconds=max(seconds, default=None) if is_whole else None,
        attempts=tasks[0].attempts,
        failures=tuple(dict.fromkeys(str(failure) for task in tasks for failure in task.failures)),
        launched=tasks[0].launched,
        subtasks=len(times) if len(tasks) > 1 else None,
    )
