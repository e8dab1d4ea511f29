"""Check the words in which views describe programs, maps, fits, workers and failures."""

from __future__ import annotations

from dataclasses import replace

from polarmap.live.descriptions import (
    describe_hidden_failures,
    describe_map,
    describe_workers,
    format_dollars,
    format_executor_line,
    format_failure,
    format_map_line,
    format_map_start,
    format_map_title,
    format_program_line,
    format_worker_columns,
    list_map_facts,
    list_program_facts,
    select_executors,
    select_maps,
)
from polarmap.live.snapshots import (
    ExecutorSnapshot,
    FailureSnapshot,
    IterationSnapshot,
    MapSnapshot,
    ProgramSnapshot,
    WorkerSnapshot,
)

RUNNING = MapSnapshot(
    *(3, "negative", "rotation code", "processes", 8, 6, 6, 1, 1.0, True, "aRqfhscx"),
    results_per_second=1.0,
    cost_dollars=0.00123,
    n_failed_tasks=2,
)


def program_of(*maps: MapSnapshot) -> ProgramSnapshot:
    return ProgramSnapshot(7, "fit.py", "node-1", 0.0, maps=maps)


# --- maps --------------------------------------------------------------------------------------


def test_a_map_is_named_by_its_number_and_function() -> None:
    assert format_map_title(RUNNING) == "map 3: negative"
    assert format_map_start(RUNNING) == "map 3, negative: 8 tasks, 6 needed"
    assert format_map_line(RUNNING) == "map 3, negative: 6 needed, 1 arrived"


def test_the_name_of_a_map_is_left_out_if_it_is_unknown() -> None:
    nameless = replace(RUNNING, name="\n")
    assert format_map_title(nameless) == "map 3"
    assert format_map_start(nameless) == "map 3: 8 tasks, 6 needed"
    assert format_map_line(nameless) == "map 3: 6 needed, 1 arrived"


def test_facts_of_a_running_map_are_its_time_throughput_and_cost() -> None:
    assert list_map_facts(RUNNING) == ["1.00 s elapsed", "1 results/s", "$0.0012 so far"]
    finished = replace(RUNNING, is_running=False, sufficed_at=0.9, cost_dollars=None)
    assert list_map_facts(finished) == ["results sufficed after 0.90 s", "1 results/s"]


def test_a_screen_reader_gets_the_title_counts_and_facts() -> None:
    assert describe_map(replace(RUNNING, states="aaRq", n=4)) == (
        "map 3: negative. 4 tasks: 2 arrived, 1 running, 1 queued, 1 late. "
        "1.00 s elapsed, 1 results/s, $0.0012 so far."
    )


def test_a_failure_is_one_line() -> None:
    failure = FailureSnapshot(3, "ValueError: bad\nrow", "node-7")
    assert format_failure(failure) == "task 3 on node-7: ValueError: bad row"
    assert format_failure(replace(failure, host="")) == "task 3: ValueError: bad row"


def test_hidden_failures_are_counted() -> None:
    assert describe_hidden_failures(RUNNING, 0) == "2 more tasks have failed"
    assert describe_hidden_failures(RUNNING, 2) == ""


def test_small_and_large_amounts_have_two_significant_digits() -> None:
    assert [format_dollars(amount) for amount in (0.00123, 0.1, 0.5, 12.3)] == [
        *("$0.0012", "$0.10", "$0.50", "$12.30")
    ]


# --- workers and programs ----------------------------------------------------------------------


def test_workers_are_counted_by_state() -> None:
    idle = WorkerSnapshot("pool", 0, None, "", "idle", None, 1.0)
    working = replace(idle, state="working", task=1)
    assert describe_workers([working, idle, working]) == "3 workers: 2 working, 1 idle"
    assert describe_workers([idle]) == "1 worker: 1 idle"
    assert describe_workers([]) == ""


def test_unknown_values_of_a_worker_are_dashes() -> None:
    worker = WorkerSnapshot("pool", 0, 4711, "node-7", "abandoned", 1, 0.8, 120_000_000, 1.5)
    assert format_worker_columns(worker) == (
        "0: 4711",
        "node-7",
        "task 1 abandoned, 0.80 s",
        "120 MB",
        "1.50 s CPU",
    )
    unknown = WorkerSnapshot("pool", 1, None, "", "idle", None, 3.0)
    assert format_worker_columns(unknown) == ("1: —", "here", "idle, 3.00 s", "—", "—")


def test_the_map_of_a_task_is_named_if_it_is_known() -> None:
    worker = WorkerSnapshot("pool", 0, 4711, "", "abandoned", 1, 0.8, job="map 3")
    assert format_worker_columns(worker)[2] == "task 1 of map 3 abandoned, 0.80 s"
    assert format_worker_columns(replace(worker, state="working", job=""))[2] == "task 1, 0.80 s"


def test_calls_are_counted_in_one_line() -> None:
    calls = ExecutorSnapshot("Executor 1", "processes", 2000, 120, 4, 1)
    assert format_executor_line(calls) == "Executor 1: 120 of 2,000 calls done, 4 running, 1 failed"
    done = ExecutorSnapshot("Executor 2", "processes", 3, 3, 0, 0)
    assert format_executor_line(done) == "Executor 2: 3 of 3 calls done"
    program = replace(program_of(), executors=(done, calls, done))
    assert select_executors(program, 2) == (calls,)
    assert select_executors(replace(program, executors=(done, done)), 2) == (done,)
    assert format_program_line(replace(program_of(RUNNING), executors=(calls,))) == (
        "map 3, negative: 6 needed, 1 arrived; Executor 1: 120 of 2,000 calls done, 4 running, 1 failed"
    )


def test_facts_of_a_program_count_its_maps() -> None:
    program = replace(program_of(RUNNING), n_finished_maps=2)
    assert list_program_facts(program) == ["1 running", "2 finished"]
    assert list_program_facts(replace(program, results_per_second=1500.0))[-1] == "1,500 results/s"


def test_a_program_is_described_by_its_fit_or_maps() -> None:
    fit = IterationSnapshot("Lasso", 3, 0.5, 1e-3, 0.0123, 12, 0.1, False)
    finished = replace(RUNNING, is_running=False)
    assert (
        format_program_line(program_of(RUNNING, RUNNING)).count("map 3, negative: 6 needed, 1 arrived") == 2
    )
    assert format_program_line(replace(program_of(RUNNING), iterations=(fit,))).startswith("map 3")
    running_fit = replace(fit, is_running=True)
    assert format_program_line(replace(program_of(finished), iterations=(running_fit,))).startswith("Lasso")
    assert format_program_line(replace(program_of(), iterations=(fit,))).startswith("Lasso")
    assert format_program_line(program_of()) == "no map has started"


def test_running_maps_are_selected_or_else_the_latest() -> None:
    finished = [replace(RUNNING, map_id=number, is_running=False) for number in (1, 2)]
    running = [replace(RUNNING, map_id=number) for number in (3, 4, 5)]
    assert select_maps(program_of(*finished, *running), 2) == tuple(running[1:])
    assert select_maps(program_of(*finished), 2) == (finished[1],)
