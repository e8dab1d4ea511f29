"""Maps over data in memory with `key=`: no data or result is written anywhere unencrypted.

The tests search the disks of real storage servers for the numbers of the data and results.
"""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from array_data import random_array
from plain import process_pool
from scipy import sparse

import polarmap
from polarmap import Pool
from polarmap.arrays.stores import open_store
from polarmap.codes import SecretSharing
from polarmap.errors import CodeError, ExecutorError, NotDecodableError
from polarmap.testing import Fault, FaultyExecutor

KEY = bytes(range(32))
NAME = "POLARMAP_TEST_KEY"
A = random_array((24, 40))
total = partial(np.sum, axis=1)  # workers need to import nothing but numpy to unpickle it
SIZES = {"blocks": 4, "tasks": 6}


@pytest.fixture(autouse=True)
def key_in_the_environment(monkeypatch):
    monkeypatch.setenv(NAME, KEY.hex())


@pytest.fixture(scope="module")
def pool():
    with Pool(workers=2) as pool:
        yield pool


def float64_bytes(*arrays):
    """Return the 8 bytes of each float64 in `arrays`."""
    return [array.tobytes()[at : at + 8] for array in arrays for at in range(0, array.nbytes, 8)]


def read_server_files(server):
    """Return all bytes in the server's folder, including its log of deleted objects.

    Neither kind of server compacts its log within the duration of a test.
    """
    return b"".join(path.read_bytes() for path in Path(server.folder).rglob("*") if path.is_file())


def find_on_disk(server, *arrays):
    data = read_server_files(server)
    return [number for number in float64_bytes(*arrays) if number in data]


@pytest.mark.parametrize(("server", "place"), [("s3", "functions"), ("redis", "kept")], indirect=["server"])
def test_no_storage_ever_sees_data_or_results(server, config, place):
    control, B = random_array((24, 40), seed=2), random_array((24, 40), seed=1234)
    parity = polarmap.codes.PolarCode(6, 4).encode_parity(B.reshape(4, -1))
    with Pool(config, workers=6, listen=False) as pool:
        executor = pool if place == "kept" else config
        y = polarmap.coded_map(total, B, executor=executor, key=f"env:{NAME}", **SIZES)
        np.testing.assert_allclose(y.concatenate(), B.sum(axis=1), rtol=1e-10, atol=1e-10)
        if place == "kept":
            # A hedged map writes every result unencrypted, which shows that the search finds such results.
            polarmap.hedged_map(total, control, executor=executor, blocks=4)
            assert len(find_on_disk(server, control.sum(axis=1))) == len(control)
        open_store(config).put("polarmap/control", control.tobytes())
    assert len(find_on_disk(server, control)) == control.size
    assert find_on_disk(server, B, parity, np.concatenate(list(y))) == []
    assert KEY not in read_server_files(server)
    assert KEY.hex().encode() not in read_server_files(server)


class Elsewhere(Executor):
    """An executor that does not say where its workers run."""


@pytest.mark.parametrize("kind", ["localhost", "kept", "elsewhere"])
def test_bytes_of_the_key_do_not_leave_this_machine(kind, tmp_path):
    yaml = Path(__file__).resolve().parents[2] / "config" / "localhost.yaml"
    with Pool(yaml) as pool:
        executor = {"localhost": "localhost", "kept": pool, "elsewhere": Elsewhere()}[kind]
        with pytest.raises(ExecutorError, match=r"key= is the key itself, .* pass key='env:NAME'") as caught:
            polarmap.coded_map(total, A, executor=executor, key=KEY)
    assert KEY.hex() not in str(caught.value)


BIG = random_array((400, 2_000))
COUNTS = np.arange(24 * 5, dtype=np.int64).reshape(24, 5)


@pytest.mark.parametrize(
    ("f", "data", "options"),
    [
        (total, BIG, {}),
        (total, COUNTS, {}),
        (total, A, {"code": SecretSharing(noise=10)}),
        (total, A, {"schedule": "on_demand"}),
        (np.square, A[:, :3], {"degree": 2, "tasks": 12}),
        (
            lambda block: {"a": block[0] + block[1]},
            [(A[row], A[row + 1]) for row in range(8)],
            {"blocks": 8, "tasks": 10},
        ),
        (lambda block: block @ np.ones(40), sparse.csr_array(np.where(A > 1, A, 0)), {"code": "rotation"}),
    ],
    ids=["large", "integers", "masked", "on_demand", "degree", "trees", "sparse"],
)
def test_every_kind_of_map(pool, f, data, options):
    options = {**SIZES, **options}
    plain = polarmap.coded_map(f, data, executor=pool, **options)
    faulty = FaultyExecutor(pool, {1: Fault("raise", attempts=9)})
    y = polarmap.coded_map(f, data, executor=faulty, key=KEY, **{**options, "tasks": options["tasks"] + 2})
    for result, other in zip(y, plain, strict=True):
        for leaf in result if isinstance(result, dict) else [None]:
            actual, expected = (result, other) if leaf is None else (result[leaf], other[leaf])
            np.testing.assert_allclose(actual, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_processes_of_foreign_pools_read_the_key_file(kind, tmp_path):
    (tmp_path / "key").write_text(KEY.hex())
    with ThreadPoolExecutor(2) if kind == "threads" else process_pool(2) as executor:
        y = polarmap.coded_map(total, BIG, executor=executor, key=f"file:{tmp_path}/key", **SIZES)
    np.testing.assert_allclose(y.concatenate(), BIG.sum(axis=1), rtol=1e-9, atol=1e-9)


def test_exception_of_f_is_raised(pool):
    def f(block):
        raise ValueError("not today")

    with pytest.raises(ValueError, match="not today"):
        polarmap.coded_map(f, A, executor=pool, key=KEY, retries=0, **SIZES)


def test_missing_key_raises_one_clear_error():
    with (
        process_pool(2, **{NAME: None}) as executor,
        pytest.raises(NotDecodableError, match=rf"'{NAME}' of key='env:{NAME}' is not set here"),
    ):
        polarmap.coded_map(total, A, executor=executor, key=f"env:{NAME}", retries=0, **SIZES)
    with pytest.raises(CodeError, match=r"'NOT_SET_ANYWHERE' of key=.* is not set here"):
        polarmap.coded_map(total, A, key="env:NOT_SET_ANYWHERE")


def test_key_of_a_stored_array_is_used(pool, store):
    plain = polarmap.encode(A, name="plain", storage=store, **SIZES)
    encrypted = polarmap.encode(A, name="encrypted", storage=store, key=KEY, **SIZES)
    with pytest.raises(CodeError, match=r"these lie in storage, as they are: encode\(\.\.\., key=\)"):
        polarmap.coded_map(total, plain, executor=pool, key=KEY)
    with pytest.raises(CodeError, match="these lie in storage, encrypted: leave key out"):
        polarmap.coded_map(total, encrypted, executor=pool, key=bytes(32))
    for options in ({}, {"key": KEY}):
        y = polarmap.coded_map(total, encrypted, executor=pool, **options)
        np.testing.assert_allclose(y.concatenate(), A.sum(axis=1), rtol=1e-10, atol=1e-10)


def test_submitted_map_uses_the_key(pool):
    future = polarmap.submit(polarmap.coded_map, total, A, executor=pool, key=KEY, **SIZES)
    np.testing.assert_allclose(future.result(60.0).concatenate(), A.sum(axis=1), rtol=1e-10, atol=1e-10)
