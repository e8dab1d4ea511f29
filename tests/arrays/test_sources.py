"""Tests of the sources of encode: all kinds of arrays, read in bounded memory, each chunk once or twice."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from array_data import MIB, copied, put_rows, random_array

import polarmap
from polarmap.arrays import RawObjects
from polarmap.errors import CodeError, MissingObjectError, StorageError

OPTIONS = {"blocks": 5, "tasks": 7, "name": "a", "memory": MIB}


def as_memmap(A, folder):
    mapped = np.memmap(folder / "raw", A.dtype, "w+", shape=A.shape)
    mapped[:] = A
    return mapped


def as_private_memmap(A, folder):
    as_memmap(A, folder).flush()
    return np.memmap(folder / "raw", A.dtype, "c", shape=A.shape)


def as_npy(A, folder):
    np.save(folder / "array.npy", A)
    return folder / "array.npy"


def as_fortran_npy(A, folder):
    np.save(folder / "array.npy", np.asfortranarray(A))
    return str(folder / "array.npy")


def as_zarr(version):
    def make(A, folder):
        import zarr

        stored = zarr.create_array(
            folder / "zarr", shape=A.shape, dtype=A.dtype, chunks=(7, *A.shape[1:]), zarr_format=version
        )
        stored[:] = A
        return stored

    return make


def as_hdf5(A, folder):
    import h5py

    file = h5py.File(folder / "data.h5", "w")
    return file.create_dataset("a", data=A, chunks=(7, *A.shape[1:]), compression="gzip")


def as_plain_hdf5(A, folder):
    import h5py

    return h5py.File(folder / "data.h5", "w").create_dataset("a", data=A)


def as_dask(A, folder):
    import dask.array

    return dask.array.from_array(A, chunks=(7, 1000))


KINDS = {
    "memmap": as_memmap,
    "private memmap": as_private_memmap,
    "npy": as_npy,
    "fortran npy": as_fortran_npy,
    "zarr 2": as_zarr(2),
    "zarr 3": as_zarr(3),
    "hdf5": as_hdf5,
    "plain hdf5": as_plain_hdf5,
    "dask": as_dask,
    "fortran": lambda A, folder: np.asfortranarray(A),
    "strided": lambda A, folder: np.repeat(A, 2, axis=0)[::2],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_array_gives_the_same_blocks(store, tmp_path, kind):
    A = random_array((43, 3_000))
    coded = polarmap.encode(KINDS[kind](A, tmp_path), storage=store, **OPTIONS)
    assert len(coded.block_segments(0)) > 3
    np.testing.assert_array_equal(coded[:], A)
    again = polarmap.encode(A, storage=store, **{**OPTIONS, "name": "b", "memory": 32 * MIB})
    for index in (0, 4, 6):
        np.testing.assert_array_equal(
            coded.coded_blocks().component_leaves(index)[0], again.coded_blocks().component_leaves(index)[0]
        )


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (kind, dtype)
        for kind in ("npy", "zarr 2", "zarr 3", "hdf5")
        for dtype in (">f8", "<i2", "c8", "f2")
        if kind != "zarr 3" or dtype[0] != ">"  # Zarr 3 has no big-endian dtypes.
    ],
)
def test_dtypes_survive(store, tmp_path, kind, dtype):
    A = random_array((23, 5), dtype)
    coded = polarmap.encode(KINDS[kind](A, tmp_path), storage=store, **OPTIONS)
    assert coded.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(coded[:], A)


def test_a_private_memmap_keeps_its_changes(store, tmp_path):
    A = random_array((43, 3_000))
    mapped = as_private_memmap(A, tmp_path)
    mapped[17] = 5.0  # Only memory has this value, so its page must not be dropped.
    coded = polarmap.encode(mapped, storage=store, **OPTIONS)
    np.testing.assert_array_equal(coded[17], 5.0)
    np.testing.assert_array_equal(mapped[17], 5.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be read as a .npy file"), (b"\x93NUMPY\x01\x00v\x00{'descr'", "cannot be read")],
)
def test_files_without_arrays_are_refused(store, tmp_path, content, message):
    (tmp_path / "bad.npy").write_bytes(content)
    with pytest.raises(CodeError, match=message):
        polarmap.encode(tmp_path / "bad.npy", name="a", storage=store)
    np.savez(tmp_path / "many.npz", a=np.ones(3), b=np.ones(3))
    with pytest.raises(CodeError, match="contains several arrays"):
        polarmap.encode(tmp_path / "many.npz", name="a", storage=store)
    np.save(tmp_path / "objects.npy", np.array([{}, None]), allow_pickle=True)
    with pytest.raises(CodeError, match="cannot be read"):
        polarmap.encode(tmp_path / "objects.npy", name="a", storage=store)


@pytest.mark.parametrize(
    ("name", "call"),
    [("a.csv", "pandas.read_csv('{}')"), ("a.H5", "h5py.File('{}')['name of the dataset']")],
)
def test_errors_for_files_of_other_formats_name_a_library_that_reads_them(store, tmp_path, name, call):
    (tmp_path / name).write_text("1,2\n3,4\n")
    with pytest.raises(CodeError) as caught:
        polarmap.encode(tmp_path / name, name="a", storage=store)
    assert call.format(tmp_path / name) in str(caught.value)


class Chunked:
    """A chunked array that counts the reads of each chunk."""

    def __init__(self, A, rows):
        self._A, self.chunks = A, (rows, A.shape[1])
        self.shape, self.dtype = A.shape, A.dtype
        self.reads = np.zeros(-(-len(A) // rows), int)

    def __getitem__(self, index):
        rows = index[0]
        self.reads[rows.start // self.chunks[0] : -(-rows.stop // self.chunks[0])] += 1
        return self._A[index]


@pytest.mark.parametrize(("rows", "chunk"), [(200, 10), (200, 40), (203, 10), (217, 13)])
def test_chunks_that_fit_are_read_once_or_on_average_twice(store, rows, chunk):
    # Chunks are read once if blocks start with chunks. One across two blocks and two stripes is read three
    # times.
    source = Chunked(random_array((rows, 1_000)), chunk)
    coded = polarmap.encode(source, storage=store, **{**OPTIONS, "memory": 3 * 7 * 8 * 1_000 * chunk})
    np.testing.assert_array_equal(coded[:], source._A)
    assert source.reads.min() >= 1
    aligned = coded.rows_per_block % chunk == 0
    assert source.reads.max() <= (1 if aligned else 3)
    assert source.reads.mean() <= 2


PEAK = """
import sys
import numpy as np
import polarmap

def peak():
    with open("/proc/self/status") as status:
        return [1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM")][0]

folder, rows = sys.argv[1], int(sys.argv[2])
memory = 16 << 20
warm = np.ones((640, 5_000))
polarmap.encode(warm, name="warm", storage=folder, memory=memory)
base = peak()
A = np.memmap(folder + "/raw", "f8", "w+", shape=(rows, 5_000))
A[::1000] = 1.0
del A
A = np.memmap(folder + "/raw", "f8", "r", shape=(rows, 5_000))
coded = polarmap.encode(A, name="a", storage=folder, memory=memory)
print((peak() - base) / memory, A.nbytes / memory, len(coded.block_segments(0)))
"""


def test_memory_does_not_grow_with_the_matrix(tmp_path):
    command = [sys.executable, "-c", PEAK, str(tmp_path), "2700"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    above, size, stripes = map(float, run.stdout.split())
    assert size > 6
    assert stripes > 20
    assert above < 1


# --- data that is already in the store: only parity is written -----------


FOUR_OF_SIX = OPTIONS | {"blocks": 4, "tasks": 6}


@pytest.mark.parametrize(
    ("rows", "dtype"), [*((rows, "f8") for rows in (1, 2, 6, 12, 24)), (6, "f4"), (1, "c8"), (12, "i2")]
)
def test_only_parity_is_stored(store, rows, dtype):
    A = random_array((24, 50), dtype)
    source = put_rows(store, A, rows, b"head")
    before = objects_below(store, "mine/")
    coded = polarmap.encode(source, storage=store, **FOUR_OF_SIX)
    assert copied(coded) == []
    assert coded.stored_bytes == 2 * 6 * 50 * coded.code.parity_dtype(dtype).itemsize
    np.testing.assert_array_equal(coded[:], A)
    np.testing.assert_array_equal(coded[5:17], A[5:17])
    assert coded.check().ok
    direct = polarmap.encode(A, storage=store, **{**FOUR_OF_SIX, "name": "b"})
    np.testing.assert_array_equal(
        coded.coded_blocks().component_leaves(5)[0], direct.coded_blocks().component_leaves(5)[0]
    )

    part = coded.block_segments(1)[0]
    data = bytearray(store.get(part.key))
    data[part.offset + 3] ^= 1
    store.put(part.key, data)
    before_repair = objects_below(store, "mine/")
    if coded.check().undecodable_stripes == ():
        coded.repair()
        np.testing.assert_allclose(coded[:], A, rtol=1e-5, atol=1e-5)
        assert len(copied(coded)) >= 1
        assert coded.check().ok
    assert objects_below(store, "mine/") == before_repair
    coded.delete()
    direct.delete()
    assert objects_below(store, "mine/").keys() == before.keys()
    assert store.keys("polarmap/") == []


def objects_below(store, prefix):
    return {key: store.get(key) for key in store.keys(prefix)}


@pytest.mark.parametrize(("total", "rows"), [(23, 6), (22, 5), (24, 7), (21, 4)])
def test_objects_that_do_not_fit_the_blocks_are_copied(store, total, rows):
    A = random_array((total, 2_000))  # The stripes have three rows.
    coded = polarmap.encode(put_rows(store, A, rows), storage=store, **FOUR_OF_SIX)
    assert 0 < len(copied(coded)) < sum(len(coded.block_segments(index)) for index in range(4))
    np.testing.assert_array_equal(coded[:], A)
    assert coded.check().ok


def test_raw_objects_with_pieces_of_rows_are_encoded(store):
    A = random_array((4, 3, 20_000), "f4")
    coded = polarmap.encode(put_rows(store, A, 2), storage=store, **FOUR_OF_SIX)
    assert len(coded.block_segments(0)) > 2
    assert copied(coded) == []
    np.testing.assert_array_equal(coded[:], A)


def test_the_other_byte_order_is_copied(store):
    A = random_array((24, 50), ">f8")
    coded = polarmap.encode(put_rows(store, A, 6), storage=store, **FOUR_OF_SIX)
    assert len(copied(coded)) == 4
    np.testing.assert_array_equal(coded[:], A)


def test_descriptions_that_do_not_match_the_objects_are_refused(store):
    A = random_array((24, 50))
    source = put_rows(store, A, 6)
    with pytest.raises(CodeError, match=r"shape \(36, 50\) needs 6 objects of 6 rows, not 4"):
        polarmap.encode(RawObjects(source.keys, (36, 50), "f8", 6), storage=store, **FOUR_OF_SIX)
    with pytest.raises(StorageError, match="shorter than its shape and dtype require"):
        polarmap.encode(RawObjects(source.keys, (24, 60), "f8", 6), storage=store, **FOUR_OF_SIX)
    with pytest.raises(MissingObjectError, match="the object 'nothing' does not exist"):
        polarmap.encode(RawObjects(["nothing"], (24, 50), "f8", 24), storage=store, **FOUR_OF_SIX)
    with pytest.raises(StorageError, match="not a valid object key"):
        polarmap.encode(RawObjects(["../nothing"], (24, 50), "f8", 24), storage=store, **FOUR_OF_SIX)
    assert polarmap.arrays.list_coded(store) == []


@pytest.mark.parametrize(
    "change",
    [
        *({"rows": 0.5}, {"rows": -1}, {"rows": 0, "keys": []}, {"shape": "24"}, {"shape": (24, None)}),
        *({"keys": "mine"}, {"offset": -8}),
    ],
)
def test_sizes_of_raw_objects_must_be_counts(store, change):
    fields = {"keys": ["mine/0"], "shape": (24, 50), "dtype": "f8", "rows": 24}
    with pytest.raises(CodeError, match=r"must be (a tuple|a sequence|an integer)"):
        polarmap.encode(RawObjects(**(fields | change)), storage=store, **FOUR_OF_SIX)


def test_numpy_integers_are_valid_counts(store):
    A = random_array((24, 50))
    raw = put_rows(store, A, 6)
    raw = RawObjects(raw.keys, tuple(np.int64([24, 50])), raw.dtype, np.int32(6), np.int8(0))
    coded = polarmap.encode(raw, storage=store, **FOUR_OF_SIX)
    np.testing.assert_array_equal(coded[:], A)
