"""Blocks that lie in storage already: read by the workers, verified, and erasures where damaged."""

from __future__ import annotations

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest

import polarmap
from polarmap import Fault, FaultyExecutor, PolarCode
from polarmap.blocks.stored import StoredBlocks
from polarmap.errors import ExecutorError, NotDecodableError
from polarmap.worker.parts import Part, Place, assemble, read_file
from polarmap.worker.pytree import unpacked


class StoredInFolder:
    """n coded blocks of a matrix as files, each in two parts of one file."""

    def __init__(self, folder, A, n=8, k=6):
        self.folder, self.code = str(folder), PolarCode(n, k)
        self.shape = (len(A) // k, *A.shape[1:])
        coded = self.code.encode(A.reshape(k, -1))
        self.parts = []
        for index, block in enumerate(coded):
            data, cut = block.tobytes(), block.nbytes // 3
            (folder / f"block-{index}").write_bytes(data)
            first = Part(f"block-{index}", cut, zlib.crc32(data[:cut]))
            second = Part(f"block-{index}", len(data) - cut, zlib.crc32(data[cut:]), cut)
            self.parts.append((first, second))

    def read(self, index):
        data = assemble(self.parts[index], lambda part: read_file(self.folder, part))
        return unpacked((("<f8", self.shape),), data)[0]

    read_as_stored = read

    def coded_blocks(self):
        source = Place("folder", self.folder)
        return StoredBlocks(self.code, source, self.parts, np.dtype("f8"), self.shape, 0, self)


@pytest.fixture
def A():
    return np.random.default_rng(0).standard_normal((60, 7))


@pytest.fixture
def stored(tmp_path, A):
    return StoredInFolder(tmp_path, A)


def test_workers_read_their_blocks_and_damaged_ones_are_erasures(A, stored, tmp_path, executor):
    (tmp_path / "block-1").unlink()
    with open(tmp_path / "block-4", "r+b") as file:
        file.seek(100)
        file.write(b"garbage")
    with pytest.warns(RuntimeWarning, match="could not be verified: .* DamagedError: block-1 is missing"):
        y = polarmap.coded_map(lambda block: block @ np.ones(7), stored, executor=executor, retries=0)
    np.testing.assert_allclose(y.concatenate(), A @ np.ones(7), rtol=1e-9, atol=1e-9)
    assert set(y.report.recovered) >= {1, 4}
    assert "block-1 is missing" in y.report.tasks[1].failures[0]
    assert "block-4 is corrupt" in y.report.tasks[4].failures[0]


def test_a_truncated_block_is_an_erasure(A, stored, tmp_path):
    os.truncate(tmp_path / "block-0", 100)
    with ThreadPoolExecutor(1) as pool:  # which tells of the first task before the others
        y = polarmap.coded_map(np.sum, stored, executor=pool, timeout=60)
    assert sum(y) == pytest.approx(A.sum())
    assert "block-0 has 100 of 186 bytes" in y.report.tasks[0].failures[0]


def test_too_much_damage_is_said_by_name(stored, tmp_path):
    for index in range(3):
        (tmp_path / f"block-{index}").unlink()
    with ThreadPoolExecutor(4) as pool, pytest.raises(NotDecodableError, match=r"block-\d is missing"):
        polarmap.coded_map(np.sum, stored, executor=pool, timeout=60)


def test_stragglers_of_a_stored_array_are_not_waited_for(A, stored):
    executor = FaultyExecutor(None, {0: Fault("sleep", 600), 2: Fault("kill")})
    y = polarmap.coded_map(lambda block: block.T @ block[:, :0], stored, executor=executor, timeout=60)
    assert [one.shape for one in y] == [(7, 0)] * 6


def test_an_array_in_a_bucket_needs_its_configuration(stored):
    blocks = stored.coded_blocks()
    blocks.source = Place("bucket", "rows", "minio")
    stored.coded_blocks = lambda: blocks
    with pytest.raises(ExecutorError, match="minio bucket 'rows': pass executor="):
        polarmap.coded_map(np.sum, stored, executor="localhost")


def test_a_coded_array_is_mapped_where_it_lies(A, tmp_path, executor):
    polarmap.encode(A[:-3], blocks=6, workers=8, name="rows", storage=tmp_path, memory=1 << 20)
    coded = polarmap.open_coded("rows", storage=tmp_path)
    y = polarmap.coded_map(lambda block: block @ np.ones(7), coded, executor=executor, timeout=60)
    np.testing.assert_allclose(y.concatenate(), A[:-3] @ np.ones(7), rtol=1e-9, atol=1e-9)


def test_a_store_that_only_the_driver_knows_serves_threads_and_driver(A):
    class Memory(dict):
        name = "memory"

        def put(self, key, data):
            self[key] = bytes(data)

        def get(self, key, start=0, stop=None):
            if key not in self:
                raise polarmap.errors.MissingObjectError(key)
            return self[key][start:stop]

        def size(self, key):
            return len(self[key]) if key in self else None

        def keys(self, prefix=""):
            return sorted(key for key in dict.keys(self) if key.startswith(prefix))

        def delete(self, keys):
            for key in keys:
                self.pop(key, None)

    memory = Memory()
    coded = polarmap.encode(A, blocks=6, workers=8, name="rows", storage=memory)
    lost = [part.key for index in (0, 7) for part in coded.stored(index)]
    memory.delete(lost)
    with ThreadPoolExecutor(4) as pool:
        # What is verified is not handed out before every task has had a moment to report.
        y = polarmap.coded_map(np.sum, coded, executor=pool, timeout=60, verify=True)
    assert sum(y) == pytest.approx(A.sum())
    assert y.report.recovered == (0,)
    assert f"{lost[0]} is missing" in y.report.tasks[0].failures[0]
    with pytest.raises(ExecutorError, match="is in memory, which workers cannot reach: use a thread pool"):
        polarmap.coded_map(np.sum, coded, executor="localhost")


@pytest.mark.parametrize("verify", ["auto", True])
def test_parity_that_cannot_be_read_says_nothing_of_f(stored, A, tmp_path, verify):
    """Data tasks reported, and f is not known yet: what is missing in storage is no fault of f."""
    for index in (6, 7):
        os.unlink(tmp_path / f"block-{index}")
    told = pytest.warns(RuntimeWarning, match="a parity block could not be read here: DamagedError")
    with ThreadPoolExecutor(4) as pool, told if verify is True else nullcontext():
        result = polarmap.coded_map(lambda block: block @ np.ones(7), stored, executor=pool, verify=verify)
    np.testing.assert_array_equal(result.concatenate(), A @ np.ones(7))
    assert result.report.indices("failed") == [6, 7]
