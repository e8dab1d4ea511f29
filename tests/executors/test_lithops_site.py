"""Lithops as a place for workers that stay: what it is told, what it tells, and what it leaves."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pool_processes import until

from polarmap.clouds.limits import Worker
from polarmap.errors import ExecutorError
from polarmap.executors.lithops_internals import end
from polarmap.executors.lithops_site import HERE_SECONDS, SPARE_SECONDS, LithopsSite, seconds_of
from polarmap.executors.remote_workers import RemoteWorkers
from polarmap.worker.kept_worker import DriverAddress

YAML = Path(__file__).resolve().parents[2] / "config" / "localhost.yaml"
NOWHERE = DriverAddress((("127.0.0.1", 1),), b"", None, "", 1, 1)


@pytest.mark.parametrize(("choice", "name"), [(YAML, "lithops/localhost"), ("localhost", "localhost")])
def test_workers_here_call_and_are_gone_when_it_is_closed(choice: Any, name: str) -> None:
    site = LithopsSite(choice)
    assert (site.name, site.shares_files, site.seconds) == (name, True, HERE_SECONDS)
    workers = RemoteWorkers(site, None, True, 10**6, 1)
    with closing(workers):
        workers.want(2)
        assert until(lambda: len(workers) == 2, 60.0)
        lease = workers.open(lambda: None)
        taken = [workers.take(lease, 1) for _ in range(2)]
        assert workers.channel == "TCP"
        processes = set[int]()
        for worker in taken:
            assert worker is not None
            assert until(lambda one=worker: bool(one.receive()) and one.process is not None)
            processes.add(worker.process or 0)
        assert len(processes) == 2
    workers.leave(lease)
    assert until(lambda: not any(os.path.exists(f"/proc/{process}") for process in processes))
    assert not list(site.storage.list_keys(site.bucket, f"{site.prefix}/"))


def test_a_worker_that_ends_is_told_with_its_reason(tmp_path: Path) -> None:
    """Also of those whose interpreter lost its packages: they end with code 1, and Lithops hears nothing."""
    script, yaml = tmp_path / "python", tmp_path / "lithops.yaml"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    yaml.write_text(YAML.read_text().replace("localhost:\n", f"localhost:\n  runtime: {script}\n"))
    site, found = LithopsSite(yaml), dict[int, str]()
    with closing(site):
        site.launch(NOWHERE, {7: 60.0})  # Lithops asks the interpreter what it has, once
        assert until(lambda: bool(found.update(site.ended()) or found), 60.0)
        assert list(found) == [7]
        assert "127.0.0.1" in found[7]
        assert site.ended() == {}
        script.write_text("#!/bin/sh\necho \"No module named 'numpy'\" >&2; exit 1\n")
        site.launch(NOWHERE, {8: 60.0, 9: 60.0})
        assert until(lambda: bool(found.update(site.ended()) or len(found) == 3), 60.0)
    for number in (8, 9):
        assert f"{script} of its workers does not run Lithops (No module named 'numpy')" in found[number]


def test_objects_of_workers_that_ended_while_the_storage_was_away_go_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = LithopsSite(YAML)
    site.object_links(lambda number, link, channel: None).close()

    def away(*_: object) -> Any:
        raise ConnectionError("the storage is away")

    def jobs() -> set[str]:
        return set(site.storage.list_keys(site.bucket, "lithops.jobs/"))

    with closing(site):
        others = jobs()
        site.launch(NOWHERE, {7: 60.0})
        with monkeypatch.context() as patch:
            patch.setattr(site.storage, "list_keys", away)
            assert until(lambda: bool(site.ended()), 60.0)
        assert jobs() - others
    assert jobs() <= others  # what others left may vanish meanwhile


def test_functions_in_a_cloud_end_before_their_time_is_over() -> None:
    known = Worker(backend="aws_lambda", storage="aws_s3", memory=1769, seconds=900.0, workers=100)
    assert seconds_of(known) == 900.0 - SPARE_SECONDS
    assert seconds_of(None) == HERE_SECONDS
    assert seconds_of(replace(known, seconds=5.0)) == 1.0


def test_lithops_looks_seldom_for_functions_that_have_ended(tmp_path: Path) -> None:
    """Each look lists a storage, and the channel of a worker tells sooner."""
    text = YAML.read_text()
    assert "monitoring_interval: 0.02" in text
    for said, meant in (("0.02", 1.0), ("5", 5.0)):
        (tmp_path / "lithops.yaml").write_text(text.replace("interval: 0.02", f"interval: {said}"))
        site = LithopsSite(tmp_path / "lithops.yaml")
        with closing(site):
            assert site.look_seconds == meant
            of_a_job = site._jobs[0].another().functions
            end(of_a_job)
            for functions in (site._functions, of_a_job):
                config = functions.internal_storage.get_storage_config()
                assert config["monitoring_interval"] == meant


def test_a_runtime_that_cannot_be_asked_for_its_modules_is_one_clear_error() -> None:
    import cloudpickle
    import servers

    site = LithopsSite(YAML)
    with closing(site):
        site._functions = None  # whatever it asks
        with pytest.raises(ExecutorError, match="takes no job"):
            site.modules(cloudpickle.dumps(servers.free_ports))
