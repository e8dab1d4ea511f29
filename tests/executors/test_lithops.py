"""Sessions and workers on Lithops, with fake futures in memory and with real processes on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_functions import HERE, Functions, Future
from memory_storage import DictStorage
from plain import ends, first_ends
from pool_processes import python_in, until
from servers import BUCKET, SECRET, S3Server
from stored_calls import job_reading

import polarmap
from polarmap.blocks.uneven import UncodedBlocks
from polarmap.clouds.limits import WorkerSpec
from polarmap.errors import ExecutorError
from polarmap.executors import lithops_invocations
from polarmap.executors.interface import AttemptStarted, JobSpec, Outcome
from polarmap.executors.lithops import (
    LOCAL_WORKER_SECONDS,
    PARITY_NICE,
    STARTUP_MARGIN_SECONDS,
    LithopsExecutor,
    LithopsSession,
    LithopsWorkerProvider,
    compute_max_worker_seconds,
    delete_objects_below,
)
from polarmap.executors.lithops_invocations import LithopsInvocations, LithopsSource
from polarmap.executors.recognition import make_lithops_source
from polarmap.executors.remote_workers import RemoteWorkerPool
from polarmap.executors.temp_folders import get_process_temp_folder
from polarmap.testing import Fault, FaultyExecutor
from polarmap.worker import lithops_tasks
from polarmap.worker.locations import BucketLocation, FolderLocation, Location
from polarmap.worker.task_records import OutputSpec
from polarmap.worker.worker_entry import DriverAddress

CONFIG = {"lithops": {"backend": "aws_lambda", "storage": "memory"}, "aws_lambda": {"runtime_memory": 2048}}
DATA = [np.arange(3.0) + task for task in range(3)]
BLOCKS = UncodedBlocks([[block] for block in DATA], ("array",))


def functions(backend: str = "aws_lambda") -> Any:
    fake_functions: Any = Functions(backend)
    fake_functions.config = CONFIG
    return fake_functions


def payload(output: Location | None = None) -> JobSpec:
    return JobSpec(np.copy, BLOCKS, output_spec=output and OutputSpec(output, "y", 5))


def test_executor_is_named_after_its_backend_and_has_a_worker_spec() -> None:
    executor = LithopsExecutor(make_lithops_source(functions()))
    assert executor.name == "lithops/aws_lambda"
    assert executor.worker_spec is not None
    assert executor.worker_spec.memory_mb == 2048


def test_configuration_is_opened_and_closed_with_a_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "here.yaml"
    file.write_text(HERE)
    opened, ended = [], []

    def open_functions(path: Any) -> Any:
        opened.append(functions())
        return opened[-1]

    monkeypatch.setattr(lithops_invocations, "open_function_executor", open_functions)
    monkeypatch.setattr(lithops_invocations, "close_function_executor", ended.append)
    executor = LithopsExecutor(make_lithops_source(file))
    assert (executor.name, opened) == ("lithops/localhost", [])
    executor.open(payload()).close()
    with pytest.raises(ExecutorError):
        executor.open(payload(FolderLocation("/data")))
    assert len(opened) == 2
    assert ended == opened


# --- futures in memory ---------------------------------------------------------------


class Run(LithopsSession):
    """A session on fake Lithops functions, which the test can access."""

    def __init__(self, **more: Any) -> None:
        self.functions = Functions()
        super().__init__(
            LithopsInvocations(LithopsSource.from_executor(self.functions), shares_executor=True),
            JobSpec(np.negative, BLOCKS, **more),
        )


@pytest.fixture(autouse=True)
def nobody_ends_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    here, exit_when = os.getpid(), lithops_tasks.exit_process_when
    monkeypatch.setattr(
        lithops_tasks, "exit_process_when", lambda *how: os.getpid() == here or exit_when(*how)
    )


def wait_for_outcomes(run: Run) -> list[Outcome]:
    return ends(run.wait(1.0))


def wait_for_starts(run: Run) -> set[int]:
    return {event.task for event in run.wait(0.01) if isinstance(event, AttemptStarted)}


def test_damaged_block_is_stored_again_for_the_next_attempt() -> None:
    run = Run()
    run.submit([(1, 0)])
    storage, [future] = run.functions.storage, run.functions.futures
    [key] = [key for _, key in storage.objects if "/blocks/" in key]
    storage.objects["b", key] = bytes(len(storage.objects["b", key]))
    future.ready = True
    [outcome] = wait_for_outcomes(run)
    assert outcome.failure is not None
    assert outcome.failure.kind == "damaged"
    run.submit([(1, 1)])
    run.functions.futures[1].ready = True
    [outcome] = wait_for_outcomes(run)
    assert outcome.leaves[0].tolist() == (-DATA[1]).tolist()


def test_wait_returns_after_its_timeout() -> None:
    run = Run()
    run.submit([(0, 0)])
    began = time.monotonic()
    assert wait_for_starts(run) == {0}
    assert run.wait(0.1) == []
    assert 0.1 <= time.monotonic() - began < 5.0


def test_finished_fake_functionsare_reported_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Any] = []
    monkeypatch.setattr(lithops_invocations, "LISTING_INTERVAL", 600.0)
    monkeypatch.setattr(Future, "status", lambda self, **options: looks.append(self))
    run = Run()
    run.submit([(task, 0) for task in range(3)])
    run.wait(0.0)  # the first call reports the attempts as started
    with ThreadPoolExecutor(1) as monitor:
        monitor.submit(run.functions.futures[1]._set_ready, None)
        assert [outcome.task for outcome in ends(run.wait(60.0))] == [1]
    assert looks == [run.functions.futures[1]]


# --- jobs on this machine ------------------------------------------------------------


def opened(f: Any, n: int = 4, **more: Any) -> LithopsSession:
    blocks = UncodedBlocks([[np.full(2, float(task))] for task in range(n)], ("array",))
    return LithopsExecutor(make_lithops_source("localhost")).open(JobSpec(f, blocks, **more))


def files() -> list[Path]:
    """Return the files of jobs in the private folder."""
    paths = [path for path in get_process_temp_folder().rglob("*") if path.is_file()]
    return [file for file in paths if not file.name.startswith(("owner", "runner-", "localhost-runner.log"))]


def test_low_priority_applies_to_first_attempts_only() -> None:
    with closing(opened(lambda block: np.array([os.nice(0)]), low_priority_tasks=range(2, 4))) as run:
        run.submit([(task, 0) for task in range(3)])
        first = {outcome.task: int(outcome.leaves[0][0]) for outcome in first_ends(run, 3) if outcome.leaves}
        run.submit([(2, 1), (3, 0)])
        later = {outcome.task: int(outcome.leaves[0][0]) for outcome in first_ends(run, 2) if outcome.leaves}
    usual = first[0]
    assert first == {0: usual, 1: usual, 2: min(19, usual + PARITY_NICE)}
    assert later == {2: usual, 3: usual}


def test_sessions_leave_no_files() -> None:
    before = files()
    opened(np.copy).close()
    with closing(opened(np.copy)) as run:
        assert run.wait(0.0) == []
        run.submit([(task, 0) for task in range(4)])
        first_ends(run, 1)
    assert files() == before


# --- persistent workers --------------------------------------------------------------

YAML = Path(__file__).resolve().parents[2] / "config" / "localhost.yaml"
NOWHERE = DriverAddress((("127.0.0.1", 1),), b"", None, "", 1, 1)


@pytest.mark.parametrize(("choice", "name"), [(YAML, "lithops/localhost"), ("localhost", "localhost")])
def test_local_workers_connect_and_end_with_their_pool(choice: Any, name: str) -> None:
    site = LithopsWorkerProvider(make_lithops_source(choice))
    assert (site.name, site.shares_files, site.max_worker_seconds) == (name, True, LOCAL_WORKER_SECONDS)
    workers = RemoteWorkerPool(site, None, True, 10**6, 1)
    with closing(workers):
        site.reach.check_job_storage_access(job_reading(FolderLocation("/data")))
        stores = "is stored in far" if choice == "localhost" else "uses localhost"
        with pytest.raises(ExecutorError, match=stores):
            site.reach.check_job_storage_access(job_reading(BucketLocation("b", "far")))
        workers.request_workers(2)
        assert until(lambda: len(workers) == 2, 60.0)
        lease = workers.open_allocation(lambda: None)
        taken = [workers.acquire_worker(lease, 1) for _ in range(2)]
        assert workers.latest_channel_name == "TCP"
        processes = set[int]()
        for worker in taken:
            assert worker is not None
            assert until(lambda handle=worker: bool(handle.receive_messages()) and handle.pid is not None)
            processes.add(worker.pid or 0)
        assert len(processes) == 2
    workers.close_allocation(lease)
    assert until(lambda: not any(os.path.exists(f"/proc/{process}") for process in processes))
    assert not list(site.storage.list_keys(site.bucket, f"{site.key_prefix}/"))


def test_workers_do_not_run_the_shared_copy_of_lithops() -> None:
    from lithops import constants

    copy = Path(constants.LITHOPS_TEMP_DIR) / "lithops"
    backup = copy.with_name("lithops-kept")
    site = LithopsWorkerProvider(make_lithops_source(YAML))
    workers = RemoteWorkerPool(site, None, True, 10**6, 1)
    with contextlib.suppress(FileNotFoundError):
        copy.rename(backup)
    try:
        copy.mkdir()
        (copy / "__init__.py").write_text("raise EOFError")  # stands for a copy that is incomplete
        with closing(workers):
            workers.request_workers(2)
            assert until(lambda: len(workers) == 2, 60.0)
    finally:
        shutil.rmtree(copy)
        with contextlib.suppress(FileNotFoundError):
            backup.rename(copy)


def test_exited_workers_are_reported_with_a_reason(tmp_path: Path) -> None:
    # Workers whose interpreter has lost its packages exit with code 1, which Lithops does not report.
    script, yaml = python_in(tmp_path), tmp_path / "lithops.yaml"
    yaml.write_text(YAML.read_text().replace("localhost:\n", f"localhost:\n  runtime: {script}\n"))
    site, exit_reasons = LithopsWorkerProvider(make_lithops_source(yaml)), dict[int, str]()
    with closing(site):
        site.launch_workers(NOWHERE, {7: 60.0})  # Lithops queries the modules of the interpreter once
        assert until(lambda: bool(exit_reasons.update(site.collect_exited_workers()) or exit_reasons), 60.0)
        assert list(exit_reasons) == [7]
        assert "127.0.0.1" in exit_reasons[7]
        assert site.collect_exited_workers() == {}
        python_in(tmp_path, lacks="numpy")
        site.launch_workers(NOWHERE, {8: 60.0, 9: 60.0})
        assert until(
            lambda: bool(exit_reasons.update(site.collect_exited_workers()) or len(exit_reasons) == 3), 60.0
        )
    for number in (8, 9):
        assert (
            f"{script} of its workers does not run Lithops (ModuleNotFoundError: No module named 'numpy')"
            in exit_reasons[number]
        )


def test_objects_of_exited_workers_are_removed_after_an_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = LithopsWorkerProvider(make_lithops_source(YAML))
    site.open_storage_channels(lambda number, link, channel: None).close()

    def away(*_: object) -> Any:
        raise ConnectionError("the storage is away")

    def jobs() -> set[str]:
        return set(site.storage.list_keys(site.bucket, "lithops.jobs/"))

    with closing(site):
        others = jobs()
        site.launch_workers(NOWHERE, {7: 60.0})
        with monkeypatch.context() as patch:
            patch.setattr(site.storage, "list_keys", away)
            assert until(lambda: bool(site.collect_exited_workers()), 60.0)
            site.remove_leftover_objects()
        assert jobs() - others
        site.remove_leftover_objects()
        assert jobs() <= others  # Leftovers of other tests may be removed meanwhile.


def test_block_stored_while_its_pool_closes_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = LithopsWorkerProvider(make_lithops_source("localhost"))
    site.open_storage_channels(lambda number, link, channel: None).close()
    put, key = site.storage.put_object, f"{site.key_prefix}/blocks/0/0"

    def put_late(*arguments: Any) -> None:
        site.close()
        put(*arguments)

    monkeypatch.setattr(site.storage, "put_object", put_late)
    for _ in range(2):
        with contextlib.suppress(ExecutorError):
            site.make_block_store().put_segment(key, [b"block"])
    assert list(site.storage.list_keys(site.bucket, f"{site.key_prefix}/")) == []


def test_cloud_fake_functionsend_before_their_timeout() -> None:
    known = WorkerSpec(
        backend="aws_lambda", storage="aws_s3", memory_mb=1769, timeout_seconds=900.0, max_workers=100
    )
    assert compute_max_worker_seconds(known) == 900.0 - STARTUP_MARGIN_SECONDS
    assert compute_max_worker_seconds(None) == LOCAL_WORKER_SECONDS
    assert compute_max_worker_seconds(replace(known, timeout_seconds=5.0)) == 1.0


def test_lithops_rarely_polls_for_ended_functions(tmp_path: Path) -> None:
    # Each poll of Lithops lists a storage, and the channel of a worker shows its end sooner anyway.
    text = YAML.read_text()
    assert "monitoring_interval: 0.02" in text
    for said, meant in (("0.02", 1.0), ("5", 5.0)):
        (tmp_path / "lithops.yaml").write_text(text.replace("interval: 0.02", f"interval: {said}"))
        site = LithopsWorkerProvider(make_lithops_source(tmp_path / "lithops.yaml"))
        with closing(site):
            assert site.listing_interval == meant
            site.launch_workers(NOWHERE, {7: 60.0})
            assert len(site._invocations._job_keys_by_executor) == 2  # the first executor and that of the job
            for functions in site._invocations._job_keys_by_executor:
                config = functions.internal_storage.get_storage_config()
                assert config["monitoring_interval"] == meant


def test_failing_query_of_a_runtime_raises_one_clear_error() -> None:
    import cloudpickle
    import servers

    site = LithopsWorkerProvider(make_lithops_source(YAML))
    with closing(site):
        site._invocations.function_executor = None  # makes every query of the runtime fail
        with pytest.raises(ExecutorError, match="cannot start a job"):
            site.collect_module_sources(cloudpickle.dumps(servers.free_ports))


# --- a real keep-alive S3 server, where workers share forked sockets -----------------
# Since Lithops 3.8, a worker and the process that it forks write on the same connection. polarmap's worker
# drops the inherited connection. A new version of Lithops must pass these tests before its pin is changed.


@pytest.fixture
def config(s3_server, tmp_path):
    return s3_server.config(tmp_path / "s3.yaml")


def keys_of(server: S3Server) -> list[str]:
    listing = server.client().list_objects_v2(Bucket=BUCKET)
    return [entry["Key"] for entry in listing.get("Contents", [])]


def test_results_of_any_size_arrive_despite_lost_workers_and_leave_no_objects(s3_server, config):
    A = np.random.default_rng(0).standard_normal((480, 240))
    lost = {1: Fault("sleep", 600), 3: Fault("kill", attempts=9)}
    for other, options in ((np.ones((240, 100)), {"retries": 0}), (np.ones(240), {"schedule": "on_demand"})):
        y = polarmap.coded_map(
            lambda block, other=other: block @ other, A, blocks=4, tasks=7, timeout=90,
            executor=FaultyExecutor(config, lost), **options,
        )  # fmt: skip
        np.testing.assert_allclose(y.concatenate(), A @ other, rtol=1e-9, atol=1e-9)
        assert set(y.report.recovered) == set(lost)
    lithops_own = "lithops.runtimes/"  # the metadata of the interpreter, which Lithops keeps
    assert [key for key in keys_of(s3_server) if key != "ready" and not key.startswith(lithops_own)] == []


def test_wrong_credentials_raise_one_clear_error(config):
    config.write_text(config.read_text().replace(SECRET, "wrong"))
    began = time.monotonic()
    with pytest.raises(polarmap.errors.ExecutorError, match=r"s3\.yaml|storage"):
        polarmap.coded_map(np.sum, np.ones((12, 2)), blocks=4, tasks=6, executor=config)
    assert time.monotonic() - began < 30


class ForgetfulStorage(DictStorage):
    """A storage that silently ignores the first `forgets` requests to delete objects, as S3 may."""

    def __init__(self, forgets: int) -> None:
        super().__init__()
        self.forgets = forgets

    def delete_objects(self, bucket: str, keys: list[str]) -> None:
        self.forgets -= 1
        if self.forgets < 0:
            for key in keys:
                self.delete_object(bucket, key)


@pytest.mark.parametrize(("forgets", "left"), [(2, []), (9, ["a/1", "a/2"])])
def test_objects_that_were_not_deleted_are_deleted_again(forgets, left, monkeypatch):
    monkeypatch.setattr("polarmap.executors.lithops.DELETE_RETRY_PAUSES", (0.0, 0.0, 0.0, 0.0))
    storage = ForgetfulStorage(forgets)
    for key in ("a/1", "a/2", "b/1"):
        storage.put_object("b", key, b"")
    warns = pytest.warns(RuntimeWarning, match="does not delete the objects below 'a/'")
    with warns if left else contextlib.nullcontext():
        delete_objects_below(storage, ["a/"])
    assert [key for _, key in storage.objects] == [*left, "b/1"]
