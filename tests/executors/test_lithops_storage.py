"""The pinned Lithops against a real keep-alive S3 server, where workers share forked sockets.

Since Lithops 3.8 a worker and the process it forked write on one connection; polarmap's worker
drops the inherited one. A new Lithops has to pass here before its pin moves.
"""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest
from memory_storage import DictStorage
from servers import BUCKET, SECRET, S3Server

import polarmap
from polarmap import Fault, FaultyExecutor
from polarmap.executors.lithops_storage import remove_objects


@pytest.fixture
def config(s3_server, tmp_path):
    return s3_server.config(tmp_path / "s3.yaml")


def keys_of(server: S3Server) -> list[str]:
    listing = server.client().list_objects_v2(Bucket=BUCKET)
    return [entry["Key"] for entry in listing.get("Contents", [])]


def test_large_and_small_results_with_stragglers_and_dead_workers(s3_server, config):
    A = np.random.default_rng(0).standard_normal((960, 240))
    wide, narrow = np.ones((240, 100)), np.ones(240)
    for faults in ({}, {2: Fault("sleep", 600), 5: Fault("kill")}, {}):
        for other in (wide, narrow):
            y = polarmap.coded_map(
                lambda block, other=other: block @ other, A, blocks=12, workers=16, timeout=90,
                executor=FaultyExecutor(config, faults),
            )  # fmt: skip
            np.testing.assert_allclose(y.concatenate(), A @ other, rtol=1e-9, atol=1e-9)
    lithops_own = "lithops.runtimes/"  # what Lithops remembers of an interpreter
    assert [key for key in keys_of(s3_server) if key != "ready" and not key.startswith(lithops_own)] == []


def test_wrong_credentials_are_one_clear_error(config):
    config.write_text(config.read_text().replace(SECRET, "wrong"))
    began = time.monotonic()
    with pytest.raises(polarmap.errors.ExecutorError, match=r"s3\.yaml|storage"):
        polarmap.coded_map(np.sum, np.ones((12, 2)), blocks=4, workers=6, executor=config)
    assert time.monotonic() - began < 30


class ForgetfulStorage(DictStorage):
    """Does not delete the first so many times that it is asked, and does not say so, as S3 may."""

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
    monkeypatch.setattr("polarmap.executors.lithops_storage.REMOVE_PAUSES", (0.0, 0.0, 0.0, 0.0))
    storage = ForgetfulStorage(forgets)
    for key in ("a/1", "a/2", "b/1"):
        storage.put_object("b", key, b"")
    told = pytest.warns(RuntimeWarning, match="does not delete what lies below 'a/'")
    with told if left else contextlib.nullcontext():
        remove_objects(storage, ["a/"])
    assert [key for _, key in storage.objects] == [*left, "b/1"]
