"""What happened during one coded map, as data and as text."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from html import escape
from itertools import accumulate
from math import inf, isfinite
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from polarmap.clouds.prices import Cost

MAX_LINES = 10  # of a report as text


class Verification(StrEnum):
    """The ways in which the results of a map were verified."""

    NOT_NEEDED = "not needed"  # no result was decoded
    PARITY = "parity"  # redundant results agree with the others
    LOCAL = "local"  # f on the driver agrees with decoded results
    EARLIER = "earlier"  # an earlier map has verified f
    NO = "no"  # not at all: the caller asked for that, or it was impossible


VERIFICATION_TEXTS: dict[str, str] = {
    Verification.PARITY: "more results than needed agree",
    Verification.LOCAL: "f of a decoded block agrees",
    Verification.EARLIER: "this f, in an earlier map",
}


class TaskState(StrEnum):
    """The states of an attempt, and of a task: that of its result, else of its latest attempt."""

    HELD_BACK = "held back"  # not submitted
    QUEUED = "queued"  # submitted, and no worker is known to have started it
    RUNNING = "running"  # a worker has started it
    ARRIVED = "arrived"  # its result counts
    SURPLUS = "surplus"  # its result arrived and was not needed
    FAILED = "failed"  # it raised, was lost, or its result was rejected
    CANCELLED = "cancelled"  # it was withdrawn before a worker started it
    ABANDONED = "abandoned"  # it was running when its result was no longer needed


@dataclass(frozen=True)
class TaskReport:
    """One task: what it was, what became of it, when.

    Attributes
    ----------
    index
        Position in the codeword; data below k.
    state
        "arrived" (its result was returned or decoded from), "surplus" (its result arrived and was only
        checked), "failed" (it raised, was lost, or its result was rejected), "abandoned" (it was running when
        its result was no longer needed), "cancelled" (no worker had started it by then) or "held back" (it
        was never submitted). In the report of a future that is not done also "queued" (submitted, and no
        worker is known to have started it) and "running".
    arrived
        Seconds after the start of the map, None if it never did.
    seconds
        Seconds that the worker spent on it, None if unknown.
    attempts
        How often it was started.
    failures
        What its failed attempts reported.
    launched
        Seconds after the start of the map when it was first handed out; 0 but for tasks that
        were held back, None if it never was.
    started
        Seconds after the start of the map when a worker began its first attempt, None if none is known to
        have begun. From `launched` to `started` the task was queued.
    host
        Name of the machine whose worker ran the task, with its address if the engine tells machines apart by
        that. None on this machine, and where it is not known.
    """

    index: int
    state: str
    arrived: float | None
    seconds: float | None
    attempts: int
    failures: tuple[str, ...] = ()
    launched: float | None = 0.0
    started: float | None = None
    host: str | None = None


@dataclass(frozen=True)
class Report:
    """What happened during one coded map.

    Attributes
    ----------
    n, k
        Coded tasks and data blocks.
    code, executor
        What coded and what ran it.
    tasks
        One TaskReport for each coded task, by index.
    needed
        How many results had arrived when they were determined.
    recovered
        Data blocks that were decoded rather than received.
    seconds
        From the call to the results; `encode_seconds` and `decode_seconds` are inside it.
    redundancy_wait_seconds
        Extra wait for a result to check against.
    amplification
        Largest factor by which decoding multiplies the relative error of results.
    error_bound
        Of the blocks, relative to the largest number of a leaf: what rounding is amplified to,
        or more where one worker may have deviated by more without showing in the checks. Of products
        whose terms cancel: relative to the largest number where they do not. Integers that f made of floats
        are taken to be rounded. 0 when nothing was decoded, or integers exactly.
    residual
        Largest relative residual of the left-over parity equations, None if none was checked.
    verified
        "not needed" (nothing was decoded), "parity", "local" (f on the driver), "earlier"
        (this function passed before) or "no" (verify=False).
    schedule
        "upfront", or "on_demand": parity tasks were held back until they were needed.
    unchecked
        Results that were handed out, or that decoded blocks are made of, and that no check
        involved ("parity" or "local"): garbage from one of these workers would have passed.
    padding
        Rows of zeros that fill up the last block, where the rows of the data do not divide.
    last_block
        How the result of a block with `padding` came about: "own rows" (its worker evaluated f on its rows
        of data alone), "awaited" (the same, but the map had to wait for that worker, or its task got further
        attempts, because rows of zeros change the result of f), "rows cut off" (f gives one row for each row,
        and those of zeros were cut off), "zeros ignored" (they make no difference to f) or "estimated" (after
        a deadline, where they do make one). Empty without padding.
    errors
        After a deadline, the relative error to expect of each data block: 0.0 where it is exact, else
        the root mean square over its entries in that of the results, or inf where all that arrived was
        equal and so tells nothing of it. Empty if all are exact.
    error_p90
        The same error of all k blocks together, their root mean square: what it stays below in nine of ten
        orders of arrival, if blocks are as alike as random parts of data. 0.0 if all are exact, inf
        while fewer than three results tell of it.
    is_final
        False in the report of a future that is not done: how things are so far, with `needed` the
        number of results that determine the others.
    code_reason
        Of a sparse matrix, why it was coded or why late tasks got copies instead, in a sentence.
    cost
        Estimate at list prices (polarmap.clouds.prices); None where polarmap knows no price. Of workers
        that stay, all that they have cost since the map before: the seconds while they were idle, too.
    n_cores
        Number of cores of this machine, where the tasks ran on it and shared them; None elsewhere, and where
        polarmap does not know.
    evaluated_locally
        Coded blocks on which f was evaluated by this process, to check results, once for each time.
    workers_by_host
        The number of workers that the pool had on each machine when the map ended, by `TaskReport.host`.
        Empty for workers of this machine, and where machines are not known.
    """

    n: int
    k: int
    code: str
    executor: str
    tasks: tuple[TaskReport, ...]
    needed: int
    recovered: tuple[int, ...] = ()
    seconds: float = 0.0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    redundancy_wait_seconds: float = 0.0
    amplification: float = 0.0
    error_bound: float = 0.0
    residual: float | None = None
    verified: str = "no"
    padding: int = 0
    unchecked: tuple[int, ...] = ()
    cost: Cost | None = None
    schedule: str = "upfront"
    errors: tuple[float, ...] = ()
    is_final: bool = True
    code_reason: str = ""
    error_p90: float = 0.0
    last_block: str = ""
    n_cores: int | None = None
    evaluated_locally: tuple[int, ...] = ()
    workers_by_host: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def max_concurrent_tasks(self) -> int:
        """The largest number of tasks that are known to have run at the same time."""
        started_tasks = [task for task in self.tasks if task.started is not None]
        ends = ((self.seconds if task.arrived is None else task.arrived, -1) for task in started_tasks)
        starts = ((task.started or 0.0, 1) for task in started_tasks)
        return max(accumulate(step for _, step in sorted([*starts, *ends])), default=0)

    @property
    def estimated_blocks(self) -> tuple[int, ...]:
        """The data blocks that a deadline left as estimates."""
        return tuple(block_index for block_index, error in enumerate(self.errors) if error > 0)

    def tasks_in_state(self, state: str) -> list[int]:
        """Return the numbers of the tasks in a state, which is one of those of `TaskReport.state`."""
        return [task.index for task in self.tasks if task.state == state]

    @property
    def late_tasks(self) -> tuple[int, ...]:
        """The tasks that ran when the results were determined, or that got a backup.

        A task that still waited for a worker then is not late.
        """
        arrivals = sorted(task.arrived for task in self.tasks if task.arrived is not None)
        determined_at = arrivals[self.needed - 1] if 0 < self.needed <= len(arrivals) else inf
        return tuple(task.index for task in self.tasks if _is_task_late(task, determined_at))

    @property
    def decoding_summary(self) -> str:
        """Which blocks were decoded and how well, in a few words."""
        if not self.recovered:
            return "none"
        error = f"error {self.error_bound:.1g} at most" if self.error_bound else "exact"
        return f"{format_indices(self.recovered)} in {1e3 * self.decode_seconds:.1f} ms, {error}"

    @property
    def verification_summary(self) -> str:
        """What `verified` means, in a few words."""
        return VERIFICATION_TEXTS.get(self.verified, self.verified)

    def to_json(self, indent: int | None = None) -> str:
        """The report as a JSON object whose fields are those above.

        Parameters
        ----------
        indent : int, optional
            Spaces by which nested parts are indented; None: all on one line.

        Returns
        -------
        str
            `tasks` is a list of objects, one per task, `cost` an object or null. Numbers that are not
            finite are null.

        Examples
        --------
        >>> import json, polarmap
        >>> report = polarmap.coded_map(abs, [1.0, 2.0], executor=polarmap.testing.ReplayExecutor()).report
        >>> json.loads(report.to_json())["tasks"][0]["state"]
        'arrived'
        """
        return json.dumps(to_json_value(self), indent=indent)

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """The timeline of the tasks as a matplotlib Figure, also written to `path` (.png, .svg)."""
        from polarmap.plot.timeline import draw_timeline

        return draw_timeline(self, path)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the text, and a small timeline of what has happened."""
        from polarmap.plot.timeline import render_timeline_html

        return render_timeline_html(self, str(self)) if self.is_final else f"<pre>{escape(str(self))}</pre>"

    def __str__(self) -> str:
        n_arrived = sum(task.arrived is not None for task in self.tasks)
        if not self.is_final:
            return "\n".join(
                [
                    f"{n_arrived} of {self.n} results have arrived, {self.needed} are needed, "
                    f"{self.seconds:.2f} s so far ({self.executor}, {self.code})",
                    *self._format_estimate_lines(),
                    *self._format_failure_lines(),
                ]
            )
        arrival_text = f"{self.needed} of {self.n} results were enough, {n_arrived} arrived"
        if self.estimated_blocks:  # they were not
            arrival_text = f"{n_arrived} of {self.n} results arrived in time"
        lines = [
            f"done in {self.seconds:.2f} s: {arrival_text} ({self.executor}, {self.code})",
            f"decoded blocks: {self.decoding_summary}; checked: {self.verification_summary}",
        ]
        lines += self._format_estimate_lines()
        lines += self._format_machine_lines()
        if self.code_reason:
            lines.append(self.code_reason)
        if self.last_block == "awaited":
            lines.append(
                f"block {self.k - 1} could not be decoded, as rows of zeros, of which it has {self.padding}, "
                f"change the result of f: attempts {self.tasks[self.k - 1].attempts}"
            )
        if self.cost is not None:
            lines.append(f"cost at list prices: {self.cost}")
        if self.schedule == "on_demand":
            late_starts = [task.index for task in self.tasks if task.launched]
            lines.append(
                f"tasks started once others were late: {format_indices(late_starts)}; "
                f"held back: {format_indices(self.tasks_in_state('held back'))}"
            )
        if self.unchecked:
            lines.append(f"results that the check does not involve: {format_indices(self.unchecked)}")
        if abandoned := self.tasks_in_state("abandoned"):
            lines.append(f"abandoned tasks, no longer needed: {format_indices(abandoned)}")
        if cancelled := self.tasks_in_state("cancelled"):
            lines.append(f"tasks cancelled before they started: {format_indices(cancelled)}")
        if failed := self.tasks_in_state("failed"):
            lines.append(f"failed tasks: {format_indices(failed)}")
        return "\n".join(lines + self._format_failure_lines()[: MAX_LINES - len(lines)])

    def _format_estimate_lines(self) -> list[str]:
        """Which blocks are estimates, and how good they are, if there are any."""
        if not self.estimated_blocks:
            return []
        max_error = max(self.errors)
        accuracy_text = (
            f"errors up to {max_error:.2g}" if max_error < inf else "by how much they are off is unknown"
        )
        if self.error_p90 < inf:
            accuracy_text += f", of all blocks together {self.error_p90:.2g} at most in nine of ten cases"
        return [f"estimated blocks: {format_indices(self.estimated_blocks)}, {accuracy_text}"]

    def _format_machine_lines(self) -> list[str]:
        """Return how many workers run on how many machines, and whether one machine has too many tasks."""
        n_workers, n_machines = sum(self.workers_by_host.values()), len(self.workers_by_host)
        verb = "runs" if n_workers == 1 else "run"
        workers, machines = format_count(n_workers, "worker"), format_count(n_machines, "machine")
        distribution_text = f"{workers} {verb} on {machines}" if n_machines else ""
        risk_text = format_machine_overload_message([task.host for task in self.tasks], self.n, self.k)
        return [line for line in (distribution_text, risk_text) if line]

    def _format_failure_lines(self) -> list[str]:
        """A line for each of the first tasks that failed."""
        failed = [task for task in self.tasks if task.failures]
        return [
            f"  task {task_report.index}{_format_host_suffix(task_report.host)}: {task_report.failures[-1]}"
            for task_report in failed[:5]
        ]


def _format_host_suffix(host: str | None) -> str:
    return f" on {host}" if host else ""


def format_count(n_items: int, noun: str) -> str:
    """Return a number of things in words.

    >>> format_count(1, "worker"), format_count(2, "worker")
    ('1 worker', '2 workers')
    """
    return f"{n_items} {noun}{'s' * (n_items != 1)}"


def format_machine_overload_message(hosts: Sequence[str | None], n: int, k: int) -> str:
    """Return a sentence if one machine of several runs more tasks than may be missing, and "" otherwise.

    hosts : of the tasks.

    >>> format_machine_overload_message(["a", "a", "b"], 3, 2)
    'one machine runs 2 of 3 tasks; only 1 may be missing (a)'
    """
    counts = Counter(host for host in hosts if host)
    if not n > k or len(counts) < 2:
        return ""
    [(host, max_tasks)] = counts.most_common(1)
    if max_tasks <= n - k:
        return ""
    return f"one machine runs {max_tasks} of {n} tasks; only {n - k} may be missing ({host})"


def _is_task_late(task_report: TaskReport, decodable_at: float) -> bool:
    if task_report.state in ("abandoned", "running"):
        return True
    has_backup = task_report.attempts > 1 and not task_report.failures
    return has_backup or (task_report.arrived is not None and task_report.arrived > decodable_at)


def to_json_value(value: Any) -> Any:
    """A value as JSON has it: records as objects, numbers that are not finite as null.

    >>> to_json_value({"p99": float("inf"), "n": np.int64(3)})
    {'p99': None, 'n': 3}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json_value(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return to_json_value(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): to_json_value(element) for key, element in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json_value(element) for element in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return to_json_value(value.tolist())
    if isinstance(value, float):
        return value if isfinite(value) else None
    return fspath(value) if isinstance(value, PathLike) else value


def format_indices(indices: Sequence[int]) -> str:
    """Some numbers of tasks as text, the first twelve of them."""
    text = ", ".join(map(str, indices[:12]))
    return (text + (f", ... ({len(indices)})" if len(indices) > 12 else "")) or "none"
