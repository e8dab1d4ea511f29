"""Storage that workers cannot use is refused before any is started, with what to do about it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from stored_calls import job_reading

from polarmap.errors import ExecutorError
from polarmap.executors.reach import Reach
from polarmap.worker.locations import (
    INLINE,
    BucketLocation,
    ClusterLocation,
    DriverLocation,
    FolderLocation,
    Location,
)
from polarmap.worker.task_records import OutputSpec

REMOTE, HERE = Reach("aws_lambda", "memory"), Reach("", "memory")
REFUSED: list[tuple[Location, Reach, str]] = [
    (
        DriverLocation("memory of this process"),
        REMOTE,
        "the array lies in memory of this process, which workers cannot reach: leave executor out",
    ),
    (
        FolderLocation("/data"),
        REMOTE,
        "the array lies in folder '/data' of this machine, which workers on aws_lambda cannot reach: use "
        "storage= of that backend",
    ),
    (
        BucketLocation("b", "aws_s3"),
        HERE,
        "the array lies in aws_s3 bucket 'b', but this executor stores in memory: use the Lithops "
        "configuration of that bucket for both",
    ),
    (
        BucketLocation("b", "aws_s3"),
        Reach(),
        "the array lies in aws_s3 bucket 'b': pass executor=, the Lithops configuration of that bucket",
    ),
]


@pytest.mark.parametrize(("location", "reach", "message"), REFUSED)
def test_blocks_that_workers_cannot_read_are_refused(location: Location, reach: Reach, message: str) -> None:
    with pytest.raises(ExecutorError, match=f"^{re.escape(message)}$"):
        reach.check_job(job_reading(location))


@pytest.mark.parametrize(
    ("location", "reach"),
    [
        (None, REMOTE),
        (INLINE, REMOTE),
        (ClusterLocation(backend="dask"), Reach()),
        (BucketLocation("b", "memory"), REMOTE),
        (FolderLocation("/data"), HERE),
        (DriverLocation("memory"), REMOTE._replace(can_ask_driver=True)),
    ],
)
def test_blocks_that_workers_can_read_are_not(location: Location | None, reach: Reach) -> None:
    reach.check_job(job_reading(location))


@pytest.mark.parametrize(
    ("location", "reach", "message"),
    [
        (
            DriverLocation("memory"),
            REMOTE._replace(can_ask_driver=True),
            "memory, which workers cannot reach",
        ),
        (FolderLocation("/data"), REMOTE, "folder '/data' of this machine, which workers on aws_lambda"),
    ],
)
def test_results_stay_only_where_workers_can_write(location: Location, reach: Reach, message: str) -> None:
    job = replace(job_reading(None), output_spec=OutputSpec(location, "y", 5))
    with pytest.raises(ExecutorError, match=f"the array is to stay in {message}"):
        reach.check_job(job)
    HERE.check_job(replace(job, output_spec=OutputSpec(FolderLocation("/data"), "y", 5)))
