"""Calls and persistent workers on real Dask clusters, whose processes are closed or killed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import dask
import distributed
import numpy as np
import pytest
import threadpoolctl
from dask_executors import dask_executor
from plain import first_ends
from pool_processes import PATIENCE, A, X, check, program, runs, until, workers_of
from stored_calls import job_reading

import polarmap
from polarmap import Pool
from polarmap.blocks.uneven import UncodedBlocks
from polarmap.errors import CodedTimeoutError, ExecutorError
from polarmap.executors import persistent_executor, resolve_executor
from polarmap.executors.dask import DaskEngine
from polarmap.executors.interface import JobSpec
from polarmap.executors.pickling import pickle_function_with_buffers as pickled
from polarmap.executors.worker_listener import list_local_addresses
from polarmap.worker.locations import BucketLocation, FolderLocation

OPTIONS = {"dashboard_address": ":0", "memory_limit": 0, "threads_per_worker": 4}
BEGAN: SimpleQueue[int] = SimpleQueue()  # the numbers of the calls that have started in this process
RELEASE = threading.Event()
CLOSED = "its client was closed, or it was shut down"
BLOCKS = UncodedBlocks([[A]] * 4, ("array",))


# --- single calls, on threads of this process --------------------------------------------------


@pytest.fixture
def executor() -> Iterator[Any]:
    """Yield an executor with two Dask workers, and let all calls return at the end."""
    RELEASE.clear()
    unset = dask.config.set(scheduler=None)  # A client that is closed early leaves it set.
    with unset, dask_executor(2) as executor:
        yield executor
        RELEASE.set()
    while not BEGAN.empty():
        BEGAN.get()


def begins(call: int) -> None:
    BEGAN.put(call)


def waits(call: int) -> bool:
    BEGAN.put(call)
    return RELEASE.wait(PATIENCE)


def test_equal_calls_run_separately(executor: Any) -> None:
    calls = DaskEngine(executor)
    for future in [calls.submit(begins, 1) for _ in range(5)]:
        assert future.result(PATIENCE) is None
    assert [BEGAN.get(timeout=PATIENCE) for _ in range(5)] == [1] * 5
    with pytest.raises(ZeroDivisionError):
        calls.submit(divmod, 1, 0).result(PATIENCE)


@pytest.mark.parametrize(
    "close", [lambda executor: executor.shutdown(wait=False), lambda executor: executor._client.close()]
)
def test_every_future_ends_when_the_client_is_closed(executor: Any, close: Any) -> None:
    with closing(resolve_executor(executor).open(JobSpec(waits, BLOCKS))) as run:
        run.submit([(task, 0) for task in range(4)])
        for _ in range(2):
            BEGAN.get(timeout=PATIENCE)
        close(executor)
        run.submit([(0, 1)])
        with pytest.raises(ExecutorError, match=f"^Dask runs no tasks: {CLOSED}$"):
            first_ends(run, 5)
    RELEASE.set()


def test_cancelled_call_does_not_start(executor: Any) -> None:
    calls = DaskEngine(executor)
    running = [calls.submit(waits, number) for number in range(2)]
    assert all(name.startswith("polarmap-task-") for name in executor._client.futures)
    [worker] = executor._client.cluster.workers.values()
    waiting = calls.submit(begins, 2)
    assert until(lambda: len(worker.state.tasks) == 3)
    assert waiting.cancel()
    assert until(lambda: len(worker.state.tasks) == 2)
    RELEASE.set()
    assert [future.result(PATIENCE) for future in running] == [True, True]
    assert calls.submit(int).result(PATIENCE) == 0  # runs after the cancelled call would have run
    assert {BEGAN.get(timeout=PATIENCE) for _ in range(2)} == {0, 1}
    assert BEGAN.empty()


def test_call_is_lost_if_the_client_closes_during_submit(
    executor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = executor._client.submit

    def closes(*call: Any, **options: Any) -> Any:
        dask_future = submit(*call, **options)
        executor.shutdown(wait=False)
        return dask_future

    monkeypatch.setattr(executor._client, "submit", closes)
    with closing(resolve_executor(executor).open(JobSpec(waits, BLOCKS))) as run:
        run.submit([(0, 0)])
        with pytest.raises(ExecutorError, match=f"^Dask runs no tasks: {CLOSED}$"):
            first_ends(run, 1)


# --- results that are sent slowly ---------------------------------------------------------------


class SlowSender:
    """A cluster of two workers. One of them sends no result before `release()` is called.

    Attributes
    ----------
    slow, fast : Executor
        The Dask executors that run calls on the slow and on the fast worker.
    asked : SimpleQueue of str
        The keys of the results that were requested from the slow worker.
    """

    def __init__(self, cluster: Any, client: Any) -> None:
        slow, fast = cluster.workers.values()
        self.slow = client.get_executor(workers=[slow.address])
        self.fast = client.get_executor(workers=[fast.address])
        self.cluster, self.asked = cluster, SimpleQueue[str]()
        self._gate, self._send = asyncio.Event(), slow.handlers["get_data"]
        slow.handlers["get_data"] = self._get_data

    async def _get_data(self, comm: Any, keys: Any, **options: Any) -> Any:
        for key in keys:
            self.asked.put(str(key))
        await self._gate.wait()
        return await self._send(comm, keys=keys, **options)

    def release(self) -> None:
        self.cluster.loop.add_callback(self._gate.set)


@pytest.fixture(params=[False, True])
def sender(request: pytest.FixtureRequest) -> Iterator[SlowSender]:
    """Yield a SlowSender. The parameter says whether the client fetches results directly from workers."""
    sizes: dict[str, Any] = OPTIONS | {"n_workers": 2, "processes": False}
    with (
        distributed.LocalCluster(**sizes) as cluster,
        distributed.Client(cluster, set_as_default=False, direct_to_workers=request.param) as client,
    ):
        slow_sender = SlowSender(cluster, client)
        yield slow_sender
        slow_sender.release()


def test_slow_results_delay_no_other_results(sender: SlowSender) -> None:
    # Dask fetches at most five groups of results at a time. A group consists of results that were requested
    # together. Six slow results must not occupy all of these places.
    calls, late = DaskEngine(sender.slow), []
    for number in range(6):
        late.append(calls.submit(abs, -number))
        assert sender.asked.get(timeout=PATIENCE)
    assert DaskEngine(sender.fast).submit(abs, -7).result(PATIENCE) == 7
    data = DaskEngine(sender.fast)
    assert data.fetch_values(data.submit_call(divmod, 7, 2, n_outputs=2)) == [3, 1]
    assert not any(future.done() for future in late)
    sender.release()
    assert [future.result(PATIENCE) for future in late] == list(range(6))


def test_result_of_a_cancelled_call_causes_no_warnings(
    sender: SlowSender, caplog: pytest.LogCaptureFixture
) -> None:
    call = DaskEngine(sender.slow).submit(abs, -3)
    key, tasks = sender.asked.get(timeout=PATIENCE), sender.cluster.scheduler.tasks
    assert call.cancel()
    # This call shows that the scheduler has processed the cancellation.
    assert DaskEngine(sender.fast).submit(int).result(PATIENCE) == 0
    assert key in tasks
    sender.release()
    assert until(lambda: key not in tasks)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# --- persistent workers -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        distributed.LocalCluster(n_workers=2, processes=True, **OPTIONS) as cluster,
        cluster.get_client() as client,
    ):
        yield client


@pytest.fixture
def pool(client: Any) -> Iterator[Pool]:
    with Pool(client) as pool:
        yield pool


def test_cluster_can_run_other_tasks_during_and_after_maps(client: Any) -> None:
    for schedule in ("upfront", "on_demand"):
        with Pool(client.get_executor()) as pool:
            result = check(pool, schedule=schedule)
            assert result.report.executor == "persistent workers on Dask (TCP)"
            assert client.submit(lambda: 5, pure=False).result(PATIENCE) == 5
            assert workers_of(pool) <= set(client.run(os.getpid).values())
        assert client.submit(lambda: 5, pure=False).result(PATIENCE) == 5
    assert until(lambda: not any(client.processing().values()))


def test_modules_of_polarmap_are_not_sent_to_workers_that_have_it(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(
        persistent_executor, "pickle_function_with_buffers", lambda *of: sent.append(pickled(*of)) or sent[-1]
    )
    with polarmap.CodedOperator(A, blocks=6, tasks=8, executor=pool) as operator:
        np.testing.assert_allclose(operator @ X, A @ X)
    assert sent
    assert max(message_sent.n_bytes for message_sent in sent) < 500


def test_closing_a_pool_restores_the_thread_limit_despite_a_hanging_task(tmp_path: Path) -> None:
    x, gate, corner = X, tmp_path / "open", float(A[0, 0])

    def blas_threads() -> set[int]:
        return {
            library["num_threads"]
            for library in threadpoolctl.threadpool_info()
            if library["user_api"] == "blas"
        }

    def f(block: Any) -> Any:
        while block[0, 0] == corner and not gate.exists():
            time.sleep(0.01)
        return block @ x

    with threadpoolctl.threadpool_limits(3), dask_executor(8) as executor:
        with Pool(executor) as pool:
            check(pool, f, verify=False)
            assert blas_threads() == {1}
        assert until(lambda: blas_threads() == {3})
        gate.touch()


def test_killed_dask_worker_is_named_and_replaced(client: Any, pool: Pool, tmp_path: Path) -> None:
    check(pool)
    addresses = {process: address for address, process in client.run(os.getpid).items()}
    x, mark = X, tmp_path / "killed"

    def is_gone(process: str) -> bool:
        try:
            return (Path("/proc") / process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True

    def dies_once(block: Any) -> Any:
        try:
            with open(mark, "x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            while not (process := mark.read_text()) or not is_gone(process):
                time.sleep(0.01)
            return block @ x
        os.kill(os.getpid(), signal.SIGKILL)

    # A plain map needs every result, so it cannot finish before it notices that the worker was killed.
    result = polarmap.hedged_map(dies_once, np.split(A, 6), executor=pool, retries=3)
    np.testing.assert_allclose(np.concatenate(list(result)), A @ X)
    victim = int(mark.read_text())
    assert f" at {addresses[victim]})" in str(result.report)
    assert until(lambda: not runs(victim))
    check(pool)
    client.wait_for_workers(2)  # the following tests need both workers


def test_closed_client_raises_one_clear_error_if_no_workers_run() -> None:
    with distributed.LocalCluster(n_workers=1, processes=False, **OPTIONS) as cluster:
        client = cluster.get_client()
        with Pool(client.get_executor()) as unused, Pool(client.get_executor()) as used:
            check(used)
            client.close()
            with pytest.raises(ExecutorError, match="has no workers"):
                check(unused)
            with contextlib.suppress(ExecutorError):
                check(used)


@pytest.mark.parametrize("all_die", [False, True])
def test_map_waits_for_a_cluster_without_workers(all_die: bool) -> None:
    sizes: dict[str, Any] = OPTIONS | {"n_workers": int(all_die), "processes": False}
    with (
        distributed.LocalCluster(**sizes) as cluster,
        cluster.get_client() as client,
        Pool(client, workers=8) as pool,
        ThreadPoolExecutor(1) as threads,
    ):
        if all_die:
            check(pool)
            cluster.scale(0)
            assert until(lambda: not client.nthreads())
        running = threads.submit(check, pool, verify=False)
        tasks = cluster.scheduler.tasks
        assert until(lambda: any("worker" in str(task) for task in tasks))
        cluster.scale(1)
        running.result(PATIENCE)


def test_closing_a_pool_ends_its_tasks_for_any_current_client() -> None:
    sizes: dict[str, Any] = OPTIONS | {"n_workers": 1, "processes": False}
    with (
        distributed.LocalCluster(**sizes) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        with Pool(client.get_executor(pure=False), workers=2) as pool:
            check(pool)
            resources = pool._executor._resources
            # A worker that has not connected before its pool is closed would end with an error.
            assert resources is not None and until(lambda: len(resources.worker_pool) == 2)
            site: Any = resources._provider
            tasks = list(site._futures.values())
        assert tasks
        assert all(task.status == "finished" for task in tasks)


def test_killed_driver_leaves_no_tasks_on_the_cluster(client: Any) -> None:
    driver = program(
        """
        import distributed
        client = distributed.Client(sys.argv[1])
        pool = polarmap.Pool(client.get_executor())
        polarmap.hedged_map(lambda block: block, [np.ones(3)] * 8, executor=pool)
        print("ready", flush=True)
        time.sleep(600)
        """,
        client.scheduler.address,
    )
    with driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        driver.kill()
        driver.wait(PATIENCE)

    def workers() -> int:
        import threading

        return sum("serve_tasks" in str(thread.name) for thread in threading.enumerate())

    assert until(lambda: not any(client.run(workers).values()), 10.0)
    with Pool(client.get_executor()) as pool:
        check(pool)


def test_workers_that_cannot_connect_raise_one_error_with_the_addresses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    message = r"the driver does not answer .* at no\.such\.host\.invalid:18735"
    with dask_executor(2) as executor, Pool(executor, listen="no.such.host.invalid:18735") as pool:
        with pytest.raises(ExecutorError, match=message):
            check(pool)
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_error_names_the_address_if_no_worker_connects(client: Any) -> None:
    message = r"no worker of Dask has connected .* at 198\.51\.100\.1:18735\. .*listen=.*executor=client"
    with Pool(client, listen="198.51.100.1:18735") as pool, pytest.raises(CodedTimeoutError, match=message):
        check(pool, timeout=0.5)


def test_workers_first_try_the_address_that_the_client_uses_for_its_scheduler() -> None:
    host, sizes = list_local_addresses()[0], OPTIONS | {"n_workers": 1, "processes": False}
    with (
        distributed.LocalCluster(**sizes, host=host, protocol="tcp://") as cluster,
        distributed.Client(cluster.scheduler_address, set_as_default=False) as client,
        closing(DaskEngine(client)) as site,
    ):
        site.discover_machines()
        assert site.driver_host == host


def test_result_of_a_task_may_be_lost_with_its_worker(client: Any) -> None:
    class Gone:
        status = "finished"

        def result(self, timeout: float) -> str:
            raise TimeoutError

    site = DaskEngine(client)
    for may_ask in (True, False):
        site._futures = {3: Gone()}
        assert site.collect_exited_workers(may_ask) == {3: "finished"}
    site.close()


def test_report_of_a_map_on_dask_tasks_names_machines(client: Any) -> None:
    report = check(client).report
    returned = [task for task in report.tasks if task.arrived is not None]
    assert {task.host for task in returned} == {socket.gethostname()}
    assert report.workers_by_host == {}


def test_pool_that_does_not_listen_runs_maps_as_dask_tasks(client: Any) -> None:
    with Pool(client, listen=False) as pool:
        assert check(pool).report.executor == pool.name == "Dask"
    with pytest.raises(ExecutorError, match="closed"):
        check(pool)


def hang(block: Any) -> Any:
    while True:
        time.sleep(0.05)


@pytest.mark.parametrize("keeps", [True, False])
def test_death_of_the_scheduler_soon_raises_one_clear_error(
    keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Futures of Dask wait half a minute for a new scheduler. The map must fail sooner.
    monkeypatch.setattr("polarmap.executors.dask.SCHEDULER_TIMEOUT", 0.5)
    with (
        distributed.LocalCluster(n_workers=1, processes=True, **OPTIONS) as cluster,
        distributed.Client(cluster.scheduler_address, set_as_default=False) as client,
        Pool(client) if keeps else contextlib.nullcontext(client) as executor,
        ThreadPoolExecutor(1) as threads,
    ):
        running = threads.submit(polarmap.hedged_map, hang, [A] * 2, executor=executor)
        assert until(lambda: any(client.processing().values()))
        cluster.close()
        with pytest.raises(ExecutorError, match=r"^Dask (starts|runs) no \w+: its scheduler is gone"):
            running.result(10.0)
        if keeps:
            with pytest.raises(ExecutorError, match="its scheduler is"), Pool(client) as other:
                check(other)


def test_tasks_of_a_pool_have_names_in_the_dashboard(client: Any, pool: Pool) -> None:
    check(pool)
    names = [str(name) for names in client.processing().values() for name in names]
    assert names
    assert all(name.startswith("polarmap-worker-") for name in names)


def test_storage_other_than_a_folder_is_refused(client: Any) -> None:
    site = DaskEngine(client.get_executor())
    site.discover_machines()
    site.reach.check_job_storage_access(job_reading(None))
    site.reach.check_job_storage_access(job_reading(FolderLocation("/data")))
    with pytest.raises(ExecutorError):
        site.reach.check_job_storage_access(job_reading(BucketLocation("b", "aws_s3")))
    assert site.max_workers == 8
    assert site.collect_module_sources(b"") == {}
    site.close()


# --- machines ----------------------------------------------------------------------------------


class Machines:
    """A Dask scheduler and worker processes with different IP addresses on this machine."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "scheduler.json"
        self.processes = dict[str, subprocess.Popen[bytes]]()
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        assert until(self.file.exists)

    def _start(self, kind: str, *options: str, host: str = "scheduler") -> None:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", str(self.file)]
        command += ["--no-dashboard", *options]
        self.processes[host] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start(self, host: str) -> None:
        options = ["--nthreads", "4", "--no-nanny", "--memory-limit", "0", "--local-directory"]
        self._start("worker", *options, str(self.file.parent), "--host", host, host=host)

    def kill(self, host: str) -> None:
        self.processes[host].kill()
        self.processes[host].wait(PATIENCE)

    def close(self) -> None:
        for host in list(self.processes):
            self.kill(host)


def spread(pool: Pool) -> dict[str, int]:
    """Return the number of workers on each machine by address."""
    return {host.rpartition("(")[2].rstrip(")"): count for host, count in pool.workers_by_host.items()}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a machine has one address of its own")
def test_workers_are_spread_over_machines_that_leave_and_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polarmap.executors.dask.WORKER_LIST_INTERVAL", 0.5)
    hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    with closing(Machines(tmp_path)) as machines:
        for host in hosts:
            machines.start(host)
        with (
            distributed.Client(scheduler_file=str(machines.file), set_as_default=False) as client,
            Pool(client, workers=12) as pool,
        ):
            client.wait_for_workers(3, PATIENCE)
            report = check(pool, tasks=12).report
            assert until(lambda: spread(pool) == dict.fromkeys(hosts, 4))
            report = check(pool, tasks=12).report
            assert max(Counter(task.host for task in report.tasks).values()) == 4
            machines.kill(hosts[2])
            check(pool, tasks=12)
            assert until(lambda: spread(pool) == dict.fromkeys(hosts[:2], 6))
            machines.start(hosts[2])
            assert until(lambda: spread(pool) == dict.fromkeys(hosts, 4))
            assert "12 workers run on 3 machines" in str(check(pool, tasks=12).report)
