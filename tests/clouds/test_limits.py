"""Check that the limits of a backend are verified before anything is stored or started."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import polarmap
from polarmap.clouds import limits
from polarmap.clouds.limits import BACKENDS, MB, MapSize, WorkerSpec
from polarmap.codes import SecretSharing
from polarmap.errors import LimitError
from polarmap.executors.replay import ReplayExecutor
from polarmap.planning import ShiftedExponential, plan

ROOT = Path(__file__).resolve().parents[2]
LAMBDA = WorkerSpec(
    "aws_lambda", "aws_s3", memory_mb=2048, timeout_seconds=180, max_workers=1000, poll_seconds=0.3
)

AZURE = WorkerSpec("azure_functions", "azure_storage", 600)
GOOGLE = WorkerSpec("gcp_functions", "gcp_storage", 2048, 600, trigger="pub/sub")
REDIS = WorkerSpec("aws_lambda", "redis", 10_240)


@given(
    rows=st.integers(1, 5000),
    row_bytes=st.integers(1, 60 * MB),
    k=st.integers(1, 100),
    memory=st.integers(256, 10_240),
)
def test_the_advised_number_of_blocks_fits(rows: int, row_bytes: int, k: int, memory: int) -> None:
    # The advised number of blocks fits, and the refusal was necessary.
    worker = WorkerSpec("aws_lambda", "aws_s3", memory, max_workers=10**9)
    try:
        limits.check_map_fits(worker, MapSize(k + 1, k, rows * row_bytes, rows))
        assert limits.compute_min_memory_bytes(rows * row_bytes) <= memory * MB
    except LimitError as error:
        advice = str(error).rpartition(": ")[2]
        assert (
            limits.compute_min_memory_bytes(rows * row_bytes) > memory * MB
            or rows * row_bytes > limits.MAX_OBJECT_BYTES["aws_s3"]
        )
        if "use blocks >= " not in advice:
            assert limits.compute_min_memory_bytes(row_bytes) > memory * MB
            return
        wanted = int(advice.split("use blocks >= ")[1].split()[0])
        # Rows per block when the same rows are cut into the advised number of blocks.
        fitting = -(-(rows * k) // wanted)
        limits.check_map_fits(worker, MapSize(wanted + 1, wanted, fitting * row_bytes, fitting))


@pytest.mark.parametrize(
    ("worker", "job", "message"),
    [
        (
            LAMBDA,
            MapSize(32, 24, 1900 * MB, 1000),
            r"^a 1\.9 GB block does not fit a 2048 MB worker of aws_la.*"
            r"needs 3\.9 GB.*use blocks >= \d+ or runtime_memory >= 3950$",
        ),
        (LAMBDA, MapSize(32, 24, 1900 * MB), r"use blocks of at most 949\.0 MB or runtime_memory >= 3950$"),
        (
            LAMBDA,
            MapSize(4, 3, 2000 * MB, 1),
            r"no number of blocks helps, as one row is too large or runtime_m",
        ),
        # No Lambda function has enough memory.
        (LAMBDA, MapSize(4, 3, 6000 * MB, 10), r"use blocks >= \d+$"),
        (AZURE, MapSize(8, 6, 1000 * MB, 9), r"a 2048 MB worker.*runtime_memory >= 4096$"),
        (GOOGLE, MapSize(8, 6, 1), r"runtime_timeout is 600 s, gcp_functions ends a call after 540 s"),
        (
            REDIS,
            MapSize(8, 6, 600 * MB, 60),
            r"larger than one object of redis may be \(512\.0 MB\): use blocks >= 8$",
        ),
    ],
)
def test_maps_that_do_not_fit_are_rejected_with_advice(
    worker: WorkerSpec, job: MapSize, message: str
) -> None:
    with pytest.raises(LimitError, match=message):
        limits.check_map_fits(worker, job)


def test_google_functions_called_by_https_may_take_longer() -> None:
    limits.check_map_fits(
        WorkerSpec("gcp_functions", "gcp_storage", 2048, 3600, trigger="https"), MapSize(8, 6, 1)
    )


def test_more_tasks_than_workers_cause_a_warning() -> None:
    with pytest.warns(RuntimeWarning, match="workers = 12, but k8s runs 10 at a time .max_workers.: 2 wait"):
        limits.check_map_fits(WorkerSpec("k8s", "minio", 512, max_workers=10), MapSize(12, 9, 100))


def test_unknown_backends_are_not_checked() -> None:
    limits.check_map_fits(WorkerSpec("singularity", "redis", 1), MapSize(10**6, 10**5, 10**12))


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_every_recipe_is_within_the_limits(name: str) -> None:
    config: dict[str, Any] = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    worker = limits.parse_worker_spec(config)
    assert worker is not None and worker.backend_limits is not None
    assert worker.allocated_mb == worker.memory_mb <= worker.backend_limits.max_memory_mb
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        limits.check_map_fits(worker, MapSize(min(32, worker.max_workers or 32), 24, 50 * MB, 100))


def test_limits_equal_those_of_lithops() -> None:
    # Lithops clamps settings to the limits it knows, which a newer version may correct.
    import runpy

    import lithops

    folder = Path(lithops.__file__).parent / "serverless" / "backends"
    aws = runpy.run_path(str(folder / "aws_lambda" / "config.py"))
    google = runpy.run_path(str(folder / "gcp_functions" / "config.py"))
    azure = runpy.run_path(str(folder / "azure_functions" / "config.py"))
    run = runpy.run_path(str(folder / "gcp_cloudrun" / "config.py"))
    apps = runpy.run_path(str(folder / "azure_containers" / "config.py"))
    engine = runpy.run_path(str(folder / "code_engine" / "config.py"))
    batch = runpy.run_path(str(folder / "aws_batch" / "config.py"))["AVAILABLE_CPU_MEM_FARGATE"]
    own_limits = BACKENDS["aws_lambda"]
    assert (own_limits.min_memory_mb, own_limits.max_memory_mb) == (
        aws["RUNTIME_MEMORY_MIN"],
        aws["RUNTIME_MEMORY_MAX"],
    )
    assert own_limits.max_seconds == aws["RUNTIME_TIMEOUT_MAX"]
    assert set(BACKENDS["gcp_functions"].memory_sizes_mb) == google["RUNTIME_MEMORY_OPTIONS"]
    assert set(BACKENDS["azure_functions"].memory_sizes_mb) == azure["FLEX_INSTANCE_MEMORY"]
    own_limits = BACKENDS["gcp_cloudrun"]
    assert (own_limits.max_memory_mb, own_limits.max_seconds) == (
        run["MAX_RUNTIME_MEMORY"],
        run["MAX_RUNTIME_TIMEOUT"],
    )
    assert set(BACKENDS["azure_containers"].memory_sizes_mb) == set(apps["ALLOWED_MEM"])
    assert list(BACKENDS["code_engine"].memory_sizes_mb) == engine["VALID_MEMORY_VALUES"]
    sizes = {size for memory_sizes in batch.values() for size in memory_sizes}
    assert (BACKENDS["aws_batch"].min_memory_mb, BACKENDS["aws_batch"].max_memory_mb) == (
        min(sizes),
        max(sizes),
    )
    for asked in (300, 512, 513, 2048, 3000, 9999):
        granted = WorkerSpec("azure_functions", "azure_storage", asked).allocated_mb
        assert granted == azure["get_flex_instance_memory"](asked)


def test_a_machine_runs_several_tasks_at_a_time() -> None:
    own = {
        "runtime_memory": 4096,
        "max_workers": 16,
        "worker_processes": 2,
        "worker_instance_type": "t3.large",
    }
    config = {
        "lithops": {"backend": "aws_ec2"},
        "aws_ec2": own,
        "standalone": {"hard_dismantle_timeout": 3600},
    }
    worker = limits.parse_worker_spec(config)
    assert worker is not None and (worker.max_workers, worker.instance_type) == (32, "t3.large")
    assert worker.timeout_seconds == 3600  # Persistent workers are renewed before the machine ends.
    own |= {"worker_processes": "AUTO", "request_spot_instances": True}  # AUTO means one per processor.
    worker = limits.parse_worker_spec(config)
    assert worker is not None and (worker.max_workers, worker.instance_type) == (None, "spot t3.large")


def test_a_coded_map_is_checked_before_anything_is_stored(tmp_path: Path, monkeypatch: Any) -> None:
    from polarmap.executors import lithops as adapter

    settings = "lithops: {backend: localhost, storage: localhost}\nlocalhost: {version: 1}\n"
    path = tmp_path / "here.yaml"
    path.write_text(settings)
    small = WorkerSpec("aws_lambda", "aws_s3", memory_mb=155)
    monkeypatch.setattr(adapter, "parse_worker_spec", lambda config: small)
    monkeypatch.setattr(adapter.LithopsExecutor, "open", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(LimitError, match=r"use blocks >= 8 or runtime_memory >= 16\d$"):
        polarmap.coded_map(np.sum, np.ones((300, 8 * 1024)), blocks=3, tasks=5, executor=path)


class Small(ReplayExecutor):
    """An executor whose workers can hold blocks of 2.5 MB: 13 rows of a float64 array 25,000 wide."""

    worker_spec = WorkerSpec("aws_lambda", "aws_s3", memory_mb=155)


@pytest.mark.parametrize(
    "options", [{}, {"code": SecretSharing()}, {"code": SecretSharing(3), "tasks": 30}, {"degree": 2}]
)
def test_the_advice_counts_data_blocks(options: dict[str, Any]) -> None:
    """Where every coded block is a mixture, n of them go out, but k is what the caller chooses."""
    data = np.zeros((160, 25_000))
    chosen: dict[str, Any] = {"blocks": 8, "tasks": 20, "verify": False} | options
    with pytest.raises(LimitError, match=r"use blocks >= 13 or runtime_memory"):
        polarmap.coded_map(np.copy, data, executor=Small(), **chosen)
    chosen |= {"blocks": 13, "tasks": 30}
    assert len(polarmap.coded_map(np.copy, data, executor=Small(), **chosen)) == 13


def test_the_largest_block_is_checked_at_any_position() -> None:
    with pytest.raises(LimitError, match=r"a 7\.6 MB block .* use blocks of at most 2\.5 MB or"):
        polarmap.hedged_map(len, [np.zeros(9), np.zeros(1_000_000), np.zeros(9)], executor=Small())


def test_a_plan_rejects_tasks_that_exceed_the_time_limit() -> None:
    with pytest.raises(
        LimitError, match=r"most tasks take 300 s, aws_lambda ends them after 180 s.*at most 900"
    ):
        plan(24, ShiftedExponential(300.0, 0.1), worker_spec=LAMBDA)
