"""Check a bucket as a store, on real servers that refuse requests, hang or die."""

from __future__ import annotations

import io
import signal
import threading
import time
import traceback

import numpy as np
import pytest
from array_data import DOCUMENTS, MIB, random_array
from servers import BUCKET, KEY, SECRET

import polarmap
from polarmap.arrays.manifest import get_manifest_key
from polarmap.arrays.stores import open_store
from polarmap.errors import MissingObjectError, StorageError

SECONDS = 30  # Seconds within which an error must be raised, also on a busy machine.


def test_only_s3_copies_a_single_object(server, config):
    store = open_store(config)
    store.put("polarmap/x/1", b"abc")
    store.put("polarmap/x/2", b"de")
    is_s3 = server.storage == "minio"
    assert store.concatenate(["polarmap/x/1"], "polarmap/x/3") is is_s3
    assert store.concatenate(["polarmap/x/1", "polarmap/x/2"], "polarmap/x/4") is False
    assert store.keys("polarmap/x/") == [f"polarmap/x/{number}" for number in range(1, 4 if is_s3 else 3)]
    if is_s3:
        assert store.get("polarmap/x/3") == b"abc"
        with pytest.raises(MissingObjectError, match="the object 'polarmap/x/9' does not exist"):
            store.concatenate(["polarmap/x/9"], "polarmap/x/5")


@pytest.mark.parametrize("store", ["s3", "redis"], indirect=True)
def test_more_objects_than_one_request_lists_or_deletes(store):
    keys = [f"polarmap/x/{number:04d}" for number in range(1_002)]
    for key in keys:
        store.put(key, b"1")
    assert store.keys("polarmap/x/") == keys
    assert store.list_sizes("polarmap/x/") == dict.fromkeys(keys, 1)
    assert store.list_sizes("polarmap/y/") == {}
    store.delete(keys)
    assert store.keys("polarmap/x/") == []


def test_another_client_sees_the_same_bytes(s3_server, tmp_path):
    # The other client is MinIO's own.
    from minio import Minio

    client = Minio(
        s3_server.endpoint.removeprefix("http://"), access_key=KEY, secret_key=SECRET, secure=False
    )
    config = s3_server.config(tmp_path / "s3.yaml")
    A = random_array((24, 100))
    coded = polarmap.encode(A, blocks=6, tasks=8, name="a", storage=config)
    listed = {one.object_name for one in client.list_objects(BUCKET, "polarmap/", recursive=True)}
    documents = {get_manifest_key("a"), f"{coded.zarr_path}/zarr.json", f"{coded.zarr_path}/data/zarr.json"}
    assert listed == documents | {part.key for index in range(8) for part in coded.block_segments(index)}
    raw = b"".join(read(client, part.key) for index in range(6) for part in coded.block_segments(index))
    np.testing.assert_array_equal(np.frombuffer(raw).reshape(24, 100), A)

    broken = bytearray(read(client, coded.block_segments(2)[0].key))
    broken[5] ^= 1
    client.put_object(BUCKET, coded.block_segments(2)[0].key, io.BytesIO(broken), len(broken))
    client.remove_object(BUCKET, coded.block_segments(7)[0].key)
    audit = coded.repair()
    assert [(one.block, one.kind) for one in audit.damaged] == [(2, "corrupt"), (7, "missing")]
    np.testing.assert_allclose(polarmap.open_coded("a", config)[:], A, rtol=1e-10)
    coded.delete()
    assert list(client.list_objects(BUCKET, "polarmap/", recursive=True)) == []


def read(client, key):
    response = client.get_object(BUCKET, key)
    try:
        return response.read()
    finally:
        response.close()
        response.release_conn()


def refused(action, message):
    """Check that the action fails with one clear error, soon, and without revealing a secret."""
    began = time.monotonic()
    with pytest.raises(StorageError, match=message) as caught:
        action()
    assert time.monotonic() - began < SECONDS
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.fixture
def impatient(monkeypatch):
    """Shorten the time limits for outages, so that tests are fast."""
    monkeypatch.setattr("polarmap.storage.bucket.OUTAGE_SECONDS", 2.0)
    monkeypatch.setattr("polarmap.storage.bucket.FIRST_REQUEST_OUTAGE_SECONDS", 1.0)
    monkeypatch.setattr("polarmap.executors.lithops_invocations.STORAGE_TIMEOUT", 2)


def actions(storage):
    return [
        lambda: polarmap.encode(np.arange(8.0), name="a", storage=storage),
        lambda: polarmap.open_coded("a", storage),
        lambda: polarmap.arrays.list_coded(storage),
    ]


def test_wrong_credentials(server, tmp_path):
    path = server.config(tmp_path / "wrong.yaml", secret="wrong")
    for action in actions(path):
        refused(action, "rejects the configured credentials")


def test_a_missing_bucket(s3_server, tmp_path):
    path = s3_server.config(tmp_path / "wrong.yaml", bucket="nobody-made-this")
    for action in actions(path)[:2]:
        refused(action, r"the minio bucket 'nobody-made-this' does not exist: create it")


def test_a_missing_configuration(tmp_path):
    for action in actions(tmp_path / "no.yaml"):
        refused(action, "the Lithops configuration .* does not exist")
    (tmp_path / "no.yaml").write_text("lithops: {backend: localhost, storage: minio}\n")
    for action in actions(tmp_path / "no.yaml"):
        refused(action, "Lithops cannot open the storage of .*minio section is mandatory")


def test_storage_that_is_down(impatient, server, tmp_path):
    path = server.config(tmp_path / "lithops.yaml")
    server.kill()
    try:
        refused(actions(path)[0], "does not respond")
    finally:
        server.start()


def test_storage_that_hangs(impatient, server, config):
    store = open_store(config)
    server.process.send_signal(signal.SIGSTOP)
    try:
        refused(lambda: polarmap.open_coded("a", store), "does not respond")
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert polarmap.arrays.list_coded(store) == []


class Interrupting:
    """An array-like source that calls `happen` at the read number `at`."""

    def __init__(self, array, at, happen):
        self._array, self._at, self._happen, self._reads = array, at, happen, 0
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, index):
        self._reads += 1
        if self._reads == self._at:
            self._happen()
        return self._array[index]


def test_a_restart_in_the_middle_of_encode_and_read_goes_unnoticed(server, config, monkeypatch):
    # A busy machine needs a while to restart the server.
    monkeypatch.setattr("polarmap.storage.bucket.OUTAGE_SECONDS", 60.0)
    A = random_array((96, 4_000))

    def restart():
        server.kill()
        server.launch()

    coded = polarmap.encode(
        Interrupting(A, 20, restart), blocks=6, tasks=8, name="a", storage=config, memory=MIB
    )
    assert len(coded.block_segments(0)) > 4
    assert coded.check().ok
    server.kill()
    thread = threading.Timer(0.5, server.launch)
    thread.start()
    np.testing.assert_array_equal(coded[:], A)
    thread.join()
    server.wait()


def test_a_later_run_continues_after_the_storage_died(impatient, server, config):
    A = random_array((96, 4_000))
    try:
        refused(
            lambda: polarmap.encode(
                Interrupting(A, 30, server.kill), blocks=6, tasks=8, name="a", storage=config, memory=MIB
            ),
            "does not respond",
        )
    finally:
        server.start()
    assert polarmap.arrays.list_coded(config) == []
    left = set(open_store(config).keys("polarmap/coded/a/"))
    coded = polarmap.encode(A, blocks=6, tasks=8, name="a", storage=config, memory=MIB)
    kept = {part.key for index in range(8) for part in coded.block_segments(index)} & left
    # At least one stripe is kept; S3 copies its data blocks.
    assert len(kept) >= (2 if server.storage == "minio" else 8)
    np.testing.assert_array_equal(coded[:], A)
    assert coded.check().ok
    assert (coded.zarr_path is not None) == (server.storage == "minio")
    documents = DOCUMENTS if coded.zarr_path else 1
    assert len(open_store(config).keys("polarmap/")) == documents + 8 * len(coded.block_segments(0))
