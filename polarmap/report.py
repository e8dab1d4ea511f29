"""The report of a map: when each task ran, which results were decoded, how accurate they are, and the cost.

Each map creates a `Report`. Users can print and plot it, write it as JSON, and read its attributes.
"""

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

MAX_LINES = 10  # A printed report has at most this many lines.
# In a code with groups, each group of blocks is decoded separately. Reports give the probability that a group
# cannot be decoded if this fraction of all results is lost.
PLANNED_LOSS_RATE = 0.05


class Verification(StrEnum):
    """The ways in which polarmap can verify that the results of a map are correct."""

    NOT_NEEDED = "not needed"  # No result was decoded, so there was nothing to verify.
    PARITY = "parity"  # More results arrived than were needed, and they agree.
    LOCAL = "local"  # The driver evaluated f on a decoded block, and the results agree.
    EARLIER = "earlier"  # An earlier map with the same function f has verified it.
    NO = "no"  # Nothing was verified, because the caller asked for that or because it was impossible.


VERIFICATION_TEXTS: dict[str, str] = {
    Verification.PARITY: "more results than needed agree",
    Verification.LOCAL: "f of a decoded block agrees",
    Verification.EARLIER: "this f, in an earlier map",
}


class TaskState(StrEnum):
    """The state of a task or of one of its attempts (runs)."""

    HELD_BACK = "held back"  # The task has not been submitted.
    QUEUED = "queued"  # The task was submitted, but as far as is known, no worker has started it.
    RUNNING = "running"  # A worker has started the task.
    ARRIVED = "arrived"  # The result of the task has arrived and is used.
    SURPLUS = "surplus"  # The result of the task arrived, but was not needed.
    FAILED = "failed"  # The task raised an exception, its worker was lost, or its result was rejected.
    CANCELLED = "cancelled"  # The task was cancelled before a worker started it.
    ABANDONED = "abandoned"  # The task was still running when its result was no longer needed.


@dataclass(frozen=True)
class TaskReport:
    """The report on one task of a map: its state, times and failures.

    All points in time are in seconds since the start of the map.

    Attributes
    ----------
    index
        The number of the task. Tasks 0 to k - 1 are data tasks, and all further ones are parity tasks.
    state
        - "arrived": the result was returned or used for decoding.
        - "surplus": the result arrived but was only used to verify other results.
        - "failed": the task raised an exception, its worker was lost, or its result was rejected.
        - "abandoned": the task was still running when its result was no longer needed.
        - "cancelled": the task was cancelled before a worker started it.
        - "held back": the task was never submitted.
        - "queued", "running": only while the map is not done.
    arrived
        When the result arrived. None if it did not arrive.
    seconds
        How long a worker took to compute the result, in seconds. None if unknown.
    attempts
        How many times the task was started. A task that fails or is late may be started again.
    failures
        The failures of the task, as text.
    launched
        When the task was first submitted. This is 0 unless the task was held back at first. None if it was
        never submitted.
    started
        When a worker first started the task. None if unknown. Between `launched` and `started`, the task
        waited for a worker.
    host
        The host name of the worker that ran the task, with its address if the executor identifies machines by
        address. None if the task ran on this machine, or if the machine is unknown.
    failed
        When the last attempt ended, if the task is in the state "failed". None in all other states.
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
    failed: float | None = None

    @property
    def ended(self) -> float | None:
        """The time at which the task ended, in seconds since the start of the map.

        The task ended when its result arrived or, if it failed, when its last attempt ended. None for tasks
        that have not ended in one of these ways.
        """
        return self.failed if self.arrived is None else self.arrived


@dataclass(frozen=True)
class Report:
    """The report on a map (a call of `coded_map` or a similar function).

    Print it to see a summary.

    Attributes
    ----------
    n, k
        The number of tasks, and the number of data blocks.
    code, executor
        The names of the code and the executor.
    tasks
        A TaskReport for each task, by index.
    needed
        How many results had to arrive before all k results could be returned or decoded.
    recovered
        The data blocks whose results were decoded from other results.
    seconds
        The time from the call to the results, including `encode_seconds` and `decode_seconds`.
    redundancy_wait_seconds
        How long the map waited only to verify its results: for one more result, or for a call of the mapped
        function f on the driver.
    amplification
        The largest factor by which decoding multiplies the relative error of results.
    error_bound
        A bound on the error of the decoded blocks, relative to the largest number of an array in a result. It
        covers amplified rounding errors, and errors of a single worker that are too small to be detected. For
        matrix products whose terms cancel, it is relative to the largest number without cancellation.
        Integers that f computes from floats are assumed to be rounded. The bound is 0 if no block was
        decoded, or if integers were decoded exactly.
    residual
        The maximum relative error by which redundant results contradict the others. None if this was not
        checked.
    verified
        How f was verified: "not needed" (no block was decoded), "parity" (more results than needed agree),
        "local" (f was evaluated on the driver), "earlier" (by an earlier map with the same f) or "no".
    schedule
        "upfront", or "on_demand" if parity tasks were held back until they were needed.
    unchecked
        The tasks whose results were used but not verified by a check ("parity" or "local"). A wrong result
        of one of these tasks would not have been detected.
    padding
        The number of zero rows that pad the last data block. 0 if the rows divide evenly into blocks.
    last_block
        How the result of the block with `padding` was obtained:

        - "own rows": its worker evaluated f only on the rows of data.
        - "awaited": as "own rows", but the map had to wait for this worker or retry its task. The result
          could not be decoded, because rows of zeros change the result of f.
        - "rows cut off": f returns one row for each row, and the rows that correspond to zeros were removed.
        - "zeros ignored": rows of zeros do not change the result of f.
        - "estimated": the result was estimated after a deadline, because rows of zeros change it.
        - "": there is no padding.
    errors
        The expected relative error of each data block if a deadline has passed. It is 0.0 for an exact block.
        For an estimated block, it is the root mean square error of the entries relative to the root mean
        square of the results, or inf if the results that arrived are all equal. () if all blocks are exact.
    error_p90
        The 90th percentile, over random orders of arrival, of the relative root mean square error of all k
        blocks together. It assumes that the blocks are as similar as random parts of the data. 0.0 if all
        blocks are exact, and inf if fewer than three results are available for an estimate.
    is_final
        Whether the map is done. If False, `needed` is the number of results needed to determine all k
        results.
    code_reason
        A sentence that says why a sparse matrix was coded, or why late tasks got backups instead. "" for
        other data.
    cost
        The estimated cost at list prices (polarmap.clouds.prices). None if the prices are unknown. The cost
        of persistent workers includes their idle time since the end of the previous map.
    n_cores
        The number of cores of this machine, if the tasks ran on it. None if they ran elsewhere, or if
        unknown.
    evaluated_locally
        The coded blocks on which the driver evaluated f to verify results, one entry per evaluation.
    groups
        The number of groups of blocks that are encoded and decoded independently: 1 for up to 4,096 tasks.
    max_losses_per_group
        The number of lost results that each of several groups survives. 0 for a single group.
    group_failure_probability
        The exact probability that one of several groups has more losses than it survives, if 5 % of all
        results are lost independently. 0.0 for a single group.
    workers_by_host
        How many workers the pool had on each machine when the map ended, by `TaskReport.host`. Empty if the
        workers ran on this machine, or if the machines are unknown.
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
    groups: int = 1
    max_losses_per_group: int = 0
    group_failure_probability: float = 0.0
    workers_by_host: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def max_concurrent_tasks(self) -> int:
        """The maximum number of tasks that ran at the same time, according to the known run times."""
        started_tasks = [task for task in self.tasks if task.started is not None]
        ends = ((self.seconds if task.ended is None else task.ended, -1) for task in started_tasks)
        starts = ((task.started or 0.0, 1) for task in started_tasks)
        return max(accumulate(step for _, step in sorted([*starts, *ends])), default=0)

    @property
    def estimated_blocks(self) -> tuple[int, ...]:
        """The data blocks whose results are only estimates because a deadline passed."""
        return tuple(block_index for block_index, error in enumerate(self.errors) if error > 0)

    def tasks_in_state(self, state: str) -> list[int]:
        """Return the numbers of the tasks in a given state, for example "failed" (see `TaskReport.state`)."""
        return [task.index for task in self.tasks if task.state == state]

    @property
    def late_tasks(self) -> tuple[int, ...]:
        """The tasks that were too slow: the map finished without them, or they were started a second time.

        Tasks that were still waiting for a worker when the map finished do not count as late.
        """
        arrivals = sorted(task.arrived for task in self.tasks if task.arrived is not None)
        determined_at = arrivals[self.needed - 1] if 0 < self.needed <= len(arrivals) else inf
        return tuple(task.index for task in self.tasks if _is_task_late(task, determined_at))

    @property
    def decoding_summary(self) -> str:
        """A short text that says which blocks were decoded, how long it took, and how large errors may be."""
        if not self.recovered:
            return "none"
        error = f"error {self.error_bound:.1g} at most" if self.error_bound else "exact"
        return f"{format_indices(self.recovered)} in {1e3 * self.decode_seconds:.1f} ms, {error}"

    @property
    def verification_summary(self) -> str:
        """A short text that says how the results were verified. It explains the attribute `verified`."""
        return VERIFICATION_TEXTS.get(self.verified, self.verified)

    def to_json(self, indent: int | None = None) -> str:
        """Convert the report to JSON: an object with one field for each attribute.

        Parameters
        ----------
        indent : int, optional
            The number of spaces to indent nested parts. By default, the text is a single line.

        Returns
        -------
        str
            The JSON text. `tasks` is a list with one object per task, and `cost` is an object or null.
            Numbers that are not finite are null.

        Examples
        --------
        >>> import json, polarmap
        >>> report = polarmap.coded_map(abs, [1.0, 2.0], executor=polarmap.testing.ReplayExecutor()).report
        >>> json.loads(report.to_json())["tasks"][0]["state"]
        'arrived'
        """
        return json.dumps(to_json_value(self), indent=indent)

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Plot when each task ran, as a matplotlib Figure.

        If `path` is given, the figure is also saved there, in the format of its suffix (.png, .svg or .pdf).
        """
        from polarmap.plot.timeline import draw_timeline

        return draw_timeline(self, path)

    def save_html(self, path: str | PathLike[str]) -> None:
        """Write the final state of the map as a web page: one file that needs no server and no network.

        The page is that of the live view (`polarmap.dashboard`): a square for each task, the timeline, the
        failures and the cost.

        Parameters
        ----------
        path : str or path
            The file to write. An existing file is replaced.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        from polarmap.live.html_export import save_html
        from polarmap.live.snapshots import make_map_snapshot

        save_html(path, make_map_snapshot(1, "", self, is_running=not self.is_final))

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Return the HTML to show in a notebook: the text, with a small timeline if the map is done."""
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
        if self.estimated_blocks:  # A deadline passed, so some blocks could only be estimated.
            arrival_text = f"{n_arrived} of {self.n} results arrived in time"
        lines = [
            f"done in {self.seconds:.2f} s: {arrival_text} ({self.executor}, {self.code})",
            f"decoded blocks: {self.decoding_summary}; checked: {self.verification_summary}",
        ]
        lines += self._format_estimate_lines()
        lines += self._format_machine_lines()
        if self.groups > 1:
            lines.append(
                f"{self.groups} groups: each survives {self.max_losses_per_group} lost results; if "
                f"{PLANNED_LOSS_RATE:.0%} of all results are lost, a group loses more with probability "
                f"{self.group_failure_probability:.1g}"
            )
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
        """Return a line about the estimated blocks and their errors, or [] if there are none."""
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
        """Return lines that say how many machines were used and whether one of them ran too many tasks."""
        n_workers, n_machines = sum(self.workers_by_host.values()), len(self.workers_by_host)
        verb = "runs" if n_workers == 1 else "run"
        workers, machines = format_count(n_workers, "worker"), format_count(n_machines, "machine")
        distribution_text = f"{workers} {verb} on {machines}" if n_machines else ""
        risk_text = format_machine_overload_message([task.host for task in self.tasks], self.n, self.k)
        return [line for line in (distribution_text, risk_text) if line]

    def _format_failure_lines(self) -> list[str]:
        """Return a line with the last failure of each of the first five tasks that had one."""
        failed = [task for task in self.tasks if task.failures]
        return [
            f"  task {task_report.index}{_format_host_suffix(task_report.host)}: {task_report.failures[-1]}"
            for task_report in failed[:5]
        ]


def _format_host_suffix(host: str | None) -> str:
    return f" on {host}" if host else ""


def format_count(n_items: int, noun: str) -> str:
    """Format a count with its noun in the singular or plural.

    >>> format_count(1, "worker"), format_count(2, "worker")
    ('1 worker', '2 workers')
    """
    return f"{n_items} {noun}{'s' * (n_items != 1)}"


def format_machine_overload_message(hosts: Sequence[str | None], n: int, k: int) -> str:
    """Return a warning if losing one of several machines would make the map fail, else "".

    This is the case if a machine runs more than n - k tasks.

    Parameters
    ----------
    hosts : sequence of str or None
        The host name of each task, or None if unknown.
    n, k : int
        The number of tasks, and the number of data blocks.

    Examples
    --------
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
    """Convert a value to JSON-serializable types.

    Dataclasses and named tuples become dicts, arrays become lists, and NaN and inf become None.

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
    """Format task numbers as text. If there are more than twelve, show only the first few and the count."""
    text = ", ".join(map(str, indices[:12]))
    return (text + (f", ... ({len(indices)})" if len(indices) > 12 else "")) or "none"
