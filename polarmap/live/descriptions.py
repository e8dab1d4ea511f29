"""Describe programs, maps, fits, calls, workers and failures in the words that all text views share.

The functions turn snapshots into short texts without layout or colours. The views place these texts:
snapshots -> descriptions -> terminal, SVG, plain lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from polarmap.live.snapshots import (
    ExecutorSnapshot,
    FailureSnapshot,
    IterationSnapshot,
    MapSnapshot,
    ProgramSnapshot,
    WorkerSnapshot,
)
from polarmap.live.task_groups import count_tasks_by_state

# --- characters and numbers --------------------------------------------------------------------


def make_printable(text: str) -> str:
    r"""Replace line breaks and control characters by spaces, so that terminals and XML accept the text.

    >>> make_printable("no \x1b[31mroute\n")
    'no  [31mroute'
    """
    return "".join(character if character.isprintable() else " " for character in text).strip()


def format_seconds(seconds: float) -> str:
    """Format a duration, such as "0.31 s", "12.4 s" or "3 min 05 s".

    >>> [format_seconds(seconds) for seconds in (0.314, 12.44, 185.2, 7500.0)]
    ['0.31 s', '12.4 s', '3 min 05 s', '2 h 05 min']
    """
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return (
        f"{minutes} min {seconds % 60:02.0f} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def format_dollars(dollars: float) -> str:
    """Format an amount with two significant digits, such as "$0.0012" or "$12.30"."""
    return f"${dollars:.2f}" if dollars >= 0.1 or not dollars else f"${dollars:.2g}"


# --- maps --------------------------------------------------------------------------------------


def format_map_title(snapshot: MapSnapshot) -> str:
    """Return the title of a map, such as "map 3: negative"."""
    name = make_printable(snapshot.name)
    return f"map {snapshot.map_id}: {name}" if name else f"map {snapshot.map_id}"


def format_map_start(snapshot: MapSnapshot) -> str:
    """Describe a map that has just started in one line, such as "map 3, negative: 32 tasks, 24 needed"."""
    return f"{_format_map_name(snapshot)}: {snapshot.n} tasks, {snapshot.needed} needed"


def format_map_line(snapshot: MapSnapshot) -> str:
    """Describe a map in one line, such as "map 3, negative: 24 needed, 24 arrived, done in 0.31 s"."""
    return f"{_format_map_name(snapshot)}: {snapshot.status_text}"


def _format_map_name(snapshot: MapSnapshot) -> str:
    """Return the number of a map and the name of its function if it is known, such as "map 3, negative"."""
    name = make_printable(snapshot.name)
    return f"map {snapshot.map_id}, {name}" if name else f"map {snapshot.map_id}"


def describe_map(snapshot: MapSnapshot) -> str:
    """Describe a map in sentences for screen readers.

    The sentences contain the title of the map, the number of tasks in each state, and the texts from
    `list_map_facts`.
    """
    counts = ", ".join(f"{count} {state}" for state, count in count_tasks_by_state(snapshot).items())
    facts = ", ".join(list_map_facts(snapshot))
    return f"{format_map_title(snapshot)}. {snapshot.n} tasks: {counts}. {facts}."


def list_map_facts(snapshot: MapSnapshot) -> list[str]:
    """Return short texts on a map, such as ["12.4 s elapsed", "31 results/s", "$0.0012 so far"].

    For a finished map, the first text says after how many seconds enough results had arrived to compute all
    others. Facts in the status text of the map are not repeated.
    """
    facts = []
    if snapshot.is_running:
        facts.append(f"{format_seconds(snapshot.elapsed_seconds)} elapsed")
    elif snapshot.sufficed_at is not None:
        facts.append(f"results sufficed after {format_seconds(snapshot.sufficed_at)}")
    facts.append(f"{snapshot.results_per_second:,.4g} results/s")
    if snapshot.cost_dollars is not None:
        so_far = " so far" if snapshot.is_running else ""
        facts.append(f"{format_dollars(snapshot.cost_dollars)}{so_far}")
    return facts


def format_failure(failure: FailureSnapshot) -> str:
    """Describe the failure of a task in one line, such as "task 3 on node-7: ValueError: bad row"."""
    place = f" on {make_printable(failure.host)}" if failure.host else ""
    return f"task {failure.task}{place}: {make_printable(failure.message)}"


def describe_hidden_failures(snapshot: MapSnapshot, n_shown: int) -> str:
    """Describe how many failed tasks a view does not show, such as "2 more tasks have failed".

    Return "" if the view shows all of them. It shows the failures of `n_shown` tasks.
    """
    n_hidden = snapshot.n_failed_tasks - n_shown
    return f"{n_hidden} more {'task has' if n_hidden == 1 else 'tasks have'} failed" if n_hidden > 0 else ""


# --- fits, calls and workers -------------------------------------------------------------------


def format_iteration_line(iteration: IterationSnapshot) -> str:
    """Describe a fit in one line: "Lasso: step 12, objective 0.31, 5.2 ms per step, 24 products".

    The number of products counts the matrix-vector products that coded maps have computed for the fit.
    """
    parts = [f"{make_printable(iteration.name)}: step {iteration.n_steps}"]
    if iteration.objective is not None:
        parts.append(f"objective {iteration.objective:.6g}")
    if iteration.gradient_norm is not None:
        parts.append(f"optimality {iteration.gradient_norm:.1e}")
    if iteration.seconds_per_step is not None:
        parts.append(f"{1e3 * iteration.seconds_per_step:.3g} ms per step")
    parts.append(f"{iteration.n_products} products")
    if not iteration.is_running:
        parts.append(f"done in {format_seconds(iteration.elapsed_seconds)}")
    return ", ".join(parts)


def format_executor_line(executor: ExecutorSnapshot) -> str:
    """Count an executor's calls in one line: "Executor 1: 120 of 200 calls done, 4 running, 1 failed"."""
    parts = [f"{executor.name}: {executor.n_done:,} of {executor.n_calls:,} calls done"]
    counts = {"running": executor.n_running, "failed": executor.n_failed}
    return ", ".join([*parts, *(f"{count:,} {state}" for state, count in counts.items() if count)])


def describe_workers(workers: Sequence[WorkerSnapshot]) -> str:
    """Count workers by state, as in "4 workers: 3 working, 1 idle"."""
    counts = Counter(worker.state for worker in workers)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items(), reverse=True))
    return f"{len(workers)} {'worker' if len(workers) == 1 else 'workers'}: {states}" if workers else ""


def format_worker_columns(worker: WorkerSnapshot) -> tuple[str, str, str, str, str]:
    """Return the columns of a table of workers: process, machine, task, memory and processor time.

    The third column also contains the time since the worker started its task or became idle. Unknown values
    are shown as dashes.
    """
    job_text = f" of {worker.job}" if worker.job else ""
    task = worker.state if worker.task is None else f"task {worker.task}{job_text}"
    if worker.state == "abandoned" and worker.task is not None:
        task += " abandoned"
    return (
        f"{worker.worker_id}: {'—' if worker.pid is None else worker.pid}",
        make_printable(worker.host) or "here",
        f"{task}, {format_seconds(worker.state_seconds)}",
        "—" if worker.memory_bytes is None else f"{worker.memory_bytes / 1e6:,.0f} MB",
        "—" if worker.cpu_seconds is None else f"{format_seconds(worker.cpu_seconds)} CPU",
    )


# --- programs ----------------------------------------------------------------------------------


def format_program_title(snapshot: ProgramSnapshot) -> str:
    """Name a program, its process and its machine, as in "fit.py (process 7 on node-1)"."""
    return f"{make_printable(snapshot.name)} (process {snapshot.pid} on {make_printable(snapshot.host)})"


def list_program_facts(snapshot: ProgramSnapshot) -> list[str]:
    """Return short texts on a program, such as ["1 running", "3 finished", "31 results/s"].

    The first two texts are numbers of maps.
    """
    n_running = sum(one_map.is_running for one_map in snapshot.maps)
    facts = [f"{n_running} running", f"{snapshot.n_finished_maps} finished"]
    if snapshot.results_per_second:
        facts.append(f"{snapshot.results_per_second:,.4g} results/s")
    return facts


def format_program_line(snapshot: ProgramSnapshot) -> str:
    """Describe in one line what a program is doing.

    The line describes the running fit. If no fit is running, the line describes the running maps and calls,
    or the latest ones.
    """
    running_iterations = [iteration for iteration in snapshot.iterations if iteration.is_running]
    if running_iterations:
        return format_iteration_line(running_iterations[-1])
    lines = [*map(format_map_line, select_maps(snapshot, 4))]
    lines += map(format_executor_line, select_executors(snapshot, 4))
    if lines:
        return "; ".join(lines)
    if snapshot.iterations:
        return format_iteration_line(snapshot.iterations[-1])
    return describe_workers(snapshot.workers) or "no map has started"


def select_maps(snapshot: ProgramSnapshot, max_maps: int) -> tuple[MapSnapshot, ...]:
    """Return the maps that a view shows: the latest running maps, at most `max_maps`, oldest first.

    If no map is running, return the latest finished map.
    """
    running_maps = tuple(one_map for one_map in snapshot.maps if one_map.is_running)
    return running_maps[-max_maps:] or snapshot.maps[-1:]


def select_executors(snapshot: ProgramSnapshot, max_executors: int) -> tuple[ExecutorSnapshot, ...]:
    """Return the executors that a view shows: the latest executors with unfinished calls, oldest first.

    At most `max_executors` are returned. If all calls are finished, return the latest executor.
    """
    running = tuple(executor for executor in snapshot.executors if executor.is_running)
    return running[-max_executors:] or snapshot.executors[-1:]
