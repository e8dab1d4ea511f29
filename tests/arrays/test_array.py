"""Coded arrays: encode, open, read, check, repair, delete; damage of every kind."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import polarmap
from polarmap import PolarCode, Stored
from polarmap.arrays.keys import array_prefix, manifest_key
from polarmap.arrays.stripes import plan_stripes
from polarmap.arrays.write_array import write_array
from polarmap.errors import CodeError, MissingObjectError, NotDecodableError, StorageError
from polarmap.storage.folder import FolderStore
from polarmap.worker.parts import Part

DTYPES = ("f2", "f4", "f8", "c8", "c16", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">f8", ">i4")
MIB = 1 << 20


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path / "store")


def random_array(shape, dtype="f8", seed=0):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype.newbyteorder("="), endpoint=True).astype(dtype)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def damage(store, part, kind):
    """Make a stored part missing, truncated or corrupt."""
    data = store.get(part.key)
    if kind == "missing":
        store.delete([part.key])
    elif kind == "truncated":
        store.put(part.key, data[:-1])
    else:
        store.put(part.key, data[:3] + bytes([data[3] ^ 1]) + data[4:])


def losses(code, count):
    """Some blocks, data and parity, that the others determine."""
    for lost in itertools.combinations(range(code.n), count):
        mask = np.ones(code.n, bool)
        mask[list(lost)] = False
        if code.decodable(mask) and lost[0] < code.k <= lost[-1]:
            return lost
    raise AssertionError(code)


def objects(store):
    return {key: store.get(key) for key in store.keys("polarmap/")}


# --- encode, open, read ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_read_back_is_what_was_encoded(store, dtype):
    A = random_array((23, 5), dtype)
    polarmap.encode(A, blocks=4, workers=7, name="a", storage=store)
    coded = polarmap.open_coded("a", store)
    assert (coded.shape, coded.dtype, coded.n, coded.k) == (A.shape, A.dtype.newbyteorder("="), 7, 4)
    np.testing.assert_array_equal(np.asarray(coded), A)
    assert coded.check().ok


def test_parity_in_storage_is_that_of_the_code(store):
    A = random_array((24, 5))
    coded = polarmap.encode(A, blocks=4, workers=7, name="a", storage=store)
    expected = PolarCode(7, 4).encode(A.reshape(4, 6, 5))
    for index in range(7):
        raw = b"".join(store.get(part.key) for part in coded.stored(index))
        block = np.frombuffer(raw).reshape(6, 5)
        np.testing.assert_allclose(block, expected[index], rtol=1e-12, atol=1e-12)


@given(
    rows=st.integers(1, 40),
    inner=st.lists(st.integers(0, 5), max_size=2),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_slices_are_those_of_numpy(tmp_path_factory, rows, inner, data):
    A = random_array((rows, *inner))
    k = data.draw(st.integers(1, rows))
    store = FolderStore(tmp_path_factory.mktemp("store"))
    coded = polarmap.encode(A, blocks=k, workers=k + 2, name="a", storage=store)
    bound = st.none() | st.integers(-rows - 2, rows + 2)
    start, stop = data.draw(bound), data.draw(bound)
    step = data.draw(st.none() | st.integers(1, 4))
    np.testing.assert_array_equal(coded[start:stop:step], A[start:stop:step])
    number = data.draw(st.integers(-rows, rows - 1))
    np.testing.assert_array_equal(coded[number], A[number])
    if inner:
        np.testing.assert_array_equal(coded[start:stop, ..., :2], A[start:stop, ..., :2])


def test_rows_longer_than_memory_are_cut_too(store):
    A = random_array((6, 40_000), "f4")  # six blocks of one row; 1 MiB holds 1/3 of a column of eight
    coded = polarmap.encode(A, blocks=6, workers=8, name="a", storage=store, memory=MIB)
    assert len(coded.stored(0)) > 1
    np.testing.assert_array_equal(coded[:], A)
    np.testing.assert_array_equal(coded[2:4, 7:30_000:3], A[2:4, 7:30_000:3])


def test_defaults_and_names(store):
    coded = polarmap.encode(random_array((240, 3)), name="x.1_y-2", storage=store)
    assert (coded.k, coded.n) == (24, 32)
    polarmap.encode(random_array((96, 3)), workers=8, name="B", storage=store)
    assert polarmap.list_coded(store) == ["B", "x.1_y-2"]
    assert polarmap.open_coded("B", store).k == 6
    assert repr(coded).startswith(
        "<CodedArray 'x.1_y-2': 240 x 3 float64, 24 of 32 blocks are data, 0.0 MiB in "
    )


def test_integers_choose_the_exact_code(store):
    assert polarmap.encode(np.arange(8), name="a", storage=store).code.kernel == "arikan"
    with pytest.raises(CodeError, match="rotation kernel cannot carry int64"):
        polarmap.encode(np.arange(8), name="b", storage=store, code="rotation")


def test_a_code_of_the_caller(store):
    code = PolarCode(16, 8, kernel="arikan", decoder="sequential", erasure=0.3)
    A = random_array((16, 3))
    polarmap.encode(A, name="a", storage=store, code=code)
    coded = polarmap.open_coded("a", store)
    assert repr(coded.code) == repr(code)
    assert coded.code.frozen.tolist() == code.frozen.tolist()
    damage(store, coded.stored(0)[0], "missing")
    np.testing.assert_allclose(coded[:], A, rtol=1e-10)


def test_default_storage_is_a_folder_of_the_user(tmp_path, monkeypatch):
    monkeypatch.delenv("POLARMAP_STORE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    polarmap.encode(np.arange(8.0), name="a")
    assert (tmp_path / "data/polarmap/polarmap/manifests/a.json").is_file()
    monkeypatch.setenv("POLARMAP_STORE", str(tmp_path / "other"))
    assert polarmap.list_coded() == []
    polarmap.encode(np.arange(8.0), name="b", storage=tmp_path / "other")
    assert polarmap.list_coded() == ["b"]


def test_overwrite_replaces_and_leaves_nothing_of_the_old(store):
    polarmap.encode(np.zeros((8, 2)), blocks=4, name="a", storage=store)
    with pytest.raises(StorageError, match="already"):
        polarmap.encode(np.ones((8, 2)), blocks=4, name="a", storage=store)
    coded = polarmap.encode(np.ones((6, 2)), blocks=3, name="a", storage=store, overwrite=True)
    np.testing.assert_array_equal(coded[:], 1)
    assert len(store.keys("polarmap/")) == 1 + coded.n
    coded.delete()
    assert store.keys("polarmap/") == []
    assert polarmap.list_coded(store) == []


def test_only_data_and_parity_are_stored(store):
    coded = polarmap.encode(
        random_array((240, 100)), blocks=6, workers=8, name="a", storage=store, memory=MIB
    )
    assert coded.stored_bytes == coded.nbytes * 8 // 6
    parts = {key: data for key, data in objects(store).items() if key != manifest_key("a")}
    assert sum(map(len, parts.values())) == coded.stored_bytes
    assert parts.keys() == {part.key for index in range(8) for part in coded.stored(index)}


# --- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "f8", "c16", "u1", "i8"])
def test_damaged_parts_are_named_decoded_and_repaired(store, dtype):
    A = random_array((64, 600), dtype)
    coded = polarmap.encode(A, blocks=6, workers=9, name="a", storage=store, memory=MIB)
    tolerance = 0 if np.dtype(dtype).kind in "iu" else 1e-4 if dtype == "f4" else 1e-10
    kinds = ("missing", "corrupt", "truncated")
    hurt = {(block, 0): kind for block, kind in zip(losses(coded.code, 3), kinds)}
    if len(coded.stored(0)) > 1:
        hurt |= {(1, 1): "corrupt", (7, 1): "missing"}
    for (block, stripe), kind in hurt.items():
        damage(store, coded.stored(block)[stripe], kind)
    before = objects(store)

    found = coded.check()
    assert {(one.block, one.stripe): one.kind for one in found.damaged} == hurt
    assert not found.ok
    assert found.lost == ()
    assert "1 truncated" in repr(found)
    assert all(f"block {block}, part {part}: {kind}" in repr(found) for (block, part), kind in hurt.items())
    np.testing.assert_allclose(coded[:], A, rtol=tolerance, atol=tolerance)
    assert objects(store) == before

    assert coded.repair() == found
    assert coded.check().ok
    again = polarmap.open_coded("a", store)
    assert again.check().ok
    np.testing.assert_allclose(again[:], A, rtol=tolerance, atol=tolerance)
    good = {
        coded_key for coded_key in before if coded_key in objects(store) and coded_key != manifest_key("a")
    }
    assert all(objects(store)[key] == before[key] for key in good)
    assert len(good) == 9 * len(coded.stored(0)) - len(hurt)
    assert len(store.keys("polarmap/")) == 9 * len(coded.stored(0)) + 1


def test_what_was_deleted_cannot_be_repaired(store):
    coded = polarmap.encode(np.arange(24.0), blocks=4, name="a", storage=store)
    coded.delete()
    coded.delete()
    with pytest.raises(MissingObjectError, match="no coded array 'a'"):
        coded.repair()
    assert len(coded.check().damaged) == coded.n
    with pytest.raises(NotDecodableError):
        coded[:]


def test_repair_of_what_is_whole_changes_nothing(store):
    coded = polarmap.encode(np.arange(24.0), blocks=4, name="a", storage=store)
    before = objects(store)
    assert coded.repair().ok
    assert objects(store) == before


def test_repaired_integers_are_the_bytes_that_were_stored(store):
    coded = polarmap.encode(random_array((12, 7), "i2"), blocks=4, workers=7, name="a", storage=store)
    before = [store.get(coded.stored(index)[0].key) for index in range(7)]
    for index in losses(coded.code, 3):
        damage(store, coded.stored(index)[0], "missing")
    coded.repair()
    assert [store.get(coded.stored(index)[0].key) for index in range(7)] == before


def test_each_stripe_bears_its_own_losses(store):
    A = random_array((8, 50_000))
    coded = polarmap.encode(A, blocks=4, workers=6, name="a", storage=store, memory=MIB)
    assert len(coded.stored(0)) > 3
    for stripe, lost in enumerate([(0, 1), (2, 3), (4, 5), (1, 4)]):
        for block in lost:
            damage(store, coded.stored(block)[stripe], "missing")
    np.testing.assert_allclose(coded[:], A, rtol=1e-10, atol=1e-10)
    assert len(coded.repair().damaged) == 8
    assert coded.check().ok


def test_too_much_damage_is_one_clear_error_and_changes_nothing(store):
    coded = polarmap.encode(random_array((12, 7)), blocks=4, workers=6, name="a", storage=store)
    for index in (0, 1, 5):
        damage(store, coded.stored(index)[0], "corrupt")
    before = objects(store)
    assert coded.check().lost == (0,)
    assert "stripes [0] are lost" in repr(coded.check())
    with pytest.raises(
        NotDecodableError, match=r"(?s)3 corrupt, in blocks \[0, 1, 5\]; stripes \[0\] are lost"
    ):
        coded.repair()
    with pytest.raises(NotDecodableError, match="stripe 0 of the coded array 'a' is lost"):
        coded[:]
    np.testing.assert_array_equal(coded[6:9].shape, (3, 7))  # block 2 is good
    assert objects(store) == before


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "\0", "a\0", "..", "a/b", "../a", "a b", "-a", ".a", "a\n", "a" * 129, 7, None, "a..b"]
)
def test_bad_names_are_refused(store, name):
    for use in (lambda: polarmap.encode(np.arange(8.0), name=name, storage=store),
                lambda: polarmap.open_coded(name, store)):  # fmt: skip
        with pytest.raises(StorageError, match="cannot name a coded array"):
            use()
    assert store.keys("polarmap/") == []


def test_unknown_name_says_which_there_are(store):
    with pytest.raises(MissingObjectError, match=r"no coded array 'b' in .*; there are: none"):
        polarmap.open_coded("b", store)
    polarmap.encode(np.arange(8.0), name="a", storage=store)
    with pytest.raises(MissingObjectError, match="there are: 'a'"):
        polarmap.open_coded("b", store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.update(version=2), "format version 2; this polarmap reads 1"),
        (lambda document: document.update(format="zip"), "not the manifest of a coded array"),
        (lambda document: document["array"].update(rows_per_block=3), "its checksum does not fit"),
        (lambda document: document["array"]["blocks"][0][0].update(crc32=1), "its checksum does not fit"),
        (lambda document: document.pop("array"), "its checksum does not fit"),
    ],
)
def test_damaged_manifests_are_refused(store, change, message):
    polarmap.encode(np.arange(8.0), blocks=4, name="a", storage=store)
    document = json.loads(store.get(manifest_key("a")))
    change(document)
    store.put(manifest_key("a"), json.dumps(document).encode())
    with pytest.raises(StorageError, match=message):
        polarmap.open_coded("a", store)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "|O8"},
        {"dtype": "<M8[s]"},
        {"dtype": 3},
        {"dtype": "<f4"},
        {"parity_dtype": "<f4"},
        {"shape": [9]},
        {"shape": []},
        {"shape": [8.0]},
        {"shape": [-8]},
        {"rows_per_block": 3},
        {"scalars": True},
        {"scalars": 1},
        {"blocks": []},
        {"blocks": None},
        {"name": "../a"},
        {"name": "b"},
        {"code": {}},
        {"code": {"n": 6, "k": 4}},
    ],
)
def test_inconsistent_manifests_are_refused(store, change):
    """Even with a checksum that fits, as somebody else's program may write it."""
    polarmap.encode(np.arange(8.0), blocks=4, name="a", storage=store)
    write_manifest(store, change)
    with pytest.raises(StorageError):
        polarmap.open_coded("a", store)


@pytest.mark.parametrize("key", ["../../secret", "/etc/passwd", "a//b", "", 3])
def test_keys_that_leave_the_store_are_refused(store, key):
    polarmap.encode(np.arange(8.0), blocks=4, name="a", storage=store)
    array = json.loads(store.get(manifest_key("a")))["array"]
    array["blocks"][0][0]["key"] = key
    write_manifest(store, array)
    with pytest.raises(StorageError, match="no key of an object"):
        polarmap.open_coded("a", store)


def write_manifest(store, change):
    """Change fields of a manifest and give it a checksum that fits."""
    import zlib

    document = json.loads(store.get(manifest_key("a")))
    document["array"].update(change)
    text = json.dumps(document["array"], sort_keys=True, separators=(",", ":"))
    document["crc32"] = zlib.crc32(text.encode())
    store.put(manifest_key("a"), json.dumps(document).encode())


def test_what_could_not_be_opened_is_not_published(store):
    """Whoever wrote the parts: a manifest that does not fit them would occupy the name."""
    plan = plan_stripes(PolarCode(6, 4), (8, 3), np.dtype("f8"), MIB)

    def write(generation, earlier):
        parts = [Part(generation.part_key(block, 0), 48 - 8 * (block == 5), 0) for block in range(6)]
        return [parts]

    with pytest.raises(StorageError, match=r"'a' is not published: .* block 5 is not cut as block 0 is"):
        write_array(store, "a", plan, False, write)
    assert polarmap.list_coded(store) == []
    polarmap.encode(np.ones((8, 3)), name="a", storage=store)


def test_codes_with_parameters_of_numpy_are_described(store):
    code = PolarCode(6, 4, erasure=np.float32(0.1), seed=np.int64(3))
    polarmap.encode(np.arange(8.0), code=code, name="a", storage=store)
    np.testing.assert_array_equal(polarmap.open_coded("a", store)[:], np.arange(8.0))


def test_a_code_that_comes_out_otherwise_is_refused(store):
    polarmap.encode(np.arange(8.0), blocks=4, name="a", storage=store)
    code = json.loads(store.get(manifest_key("a")))["array"]["code"]
    write_manifest(store, {"code": {**code, "seed": code["seed"] + 1}})
    with pytest.raises(StorageError, match="builds other parity blocks"):
        polarmap.open_coded("a", store)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.array(["a"]), "dtype"),
        (np.array([None]), "dtype"),
        (np.zeros(4, bool), "dtype bool"),
        (np.float64(3), "no rows"),
        (np.zeros((0, 3)), "no rows"),
        ([np.zeros(3), np.zeros(3)], "numpy.concatenate"),
        (np.ma.zeros(4), "masked"),
        ("nothing.npy", "there is no file"),
        (None, "must be an array"),
    ],
)
def test_data_that_cannot_be_coded(store, data, message):
    with pytest.raises(CodeError, match=message):
        polarmap.encode(data, name="a", storage=store)
    assert store.keys("polarmap/") == []


def test_sizes_that_cannot_be(store):
    for options, message in [
        ({"blocks": 9}, "more than the 8 rows"),
        ({"blocks": 4, "workers": 4}, "no parity"),
        ({"memory": 100}, "at least 1048576"),
        ({"memory": 1.5}, "positive integer"),
        ({"code": "mds"}, "code must be"),
    ]:
        with pytest.raises(CodeError, match=message):
            polarmap.encode(np.arange(8.0), name="a", storage=store, **options)
    with pytest.raises(StorageError, match="is no storage"):
        polarmap.encode(np.arange(8.0), name="a", storage=3)
    assert store.keys("polarmap/") == []


def test_rows_are_read_by_number_and_slice_only(store):
    coded = polarmap.encode(np.arange(8.0), name="a", storage=store)
    wrong = [
        *([1, 2], None, "a", slice(None, None, -1), slice(None, None, 0), slice(1.5), True, np.True_, 1.0),
        *(np.array(True), np.array([3]), np.ones(8, bool), {}, [[1], [1, 2]], (None, 0), ([],), ((),)),
    ]
    for index in wrong:
        with pytest.raises(CodeError, match="rows of a coded array"):
            coded[index]
    for index in (8, -9, 2**70, -(2**70), np.int64(8)):
        with pytest.raises(IndexError, match=f"row {index} is out of range: the coded array has 8 rows"):
            coded[index]
    assert [float(row) for row in coded] == list(range(8))


@pytest.mark.parametrize("shape", [(8,), (8, 3), (8, 3, 2)])
def test_an_index_is_that_of_numpy_or_one_clear_error(store, shape):
    """What begins with all rows, a number or a slice means what it means to numpy."""
    A = random_array(shape)
    coded = polarmap.encode(A, name="a", storage=store)
    heads = [(...,), (slice(2, 7, 2),), (slice(-(2**70), 2**70),), (3,), (np.array(-2),), (np.uint8(1),)]
    tails = [(), (...,), (0,), (None,), ([0, 1],), (True,), (..., None), (slice(0, 2), -1), ("a",), (1.5,)]
    tails += [(0, 0, 0), (5,), (..., ...)]
    np.testing.assert_array_equal(coded[()], A)
    for head, tail in itertools.product(heads, tails):
        try:
            expected = A[head + tail]
        except IndexError:
            with pytest.raises((IndexError, CodeError)):
                coded[head + tail]
        else:
            np.testing.assert_array_equal(coded[head + tail], expected)
    with pytest.raises((CodeError, IndexError), match=r"no index of an array of shape|too many indices"):
        coded[0, slice("a", None)]


@pytest.mark.parametrize(
    "choice",
    ["", "\0", "a\0b", Path("\0"), "~nobody-has-this-name/x", "\ud800", b"x", 3, True, [], {}, FolderStore],
    ids=repr,
)
def test_storages_that_cannot_be(tmp_path, monkeypatch, choice):
    monkeypatch.chdir(tmp_path)
    for use in (lambda: polarmap.encode(np.arange(8.0), name="a", storage=choice),
                lambda: polarmap.open_coded("a", choice), lambda: polarmap.list_coded(choice),
                lambda: polarmap.coded_map(np.sum, np.arange(8.0), out=Stored("a", choice))):  # fmt: skip
        with pytest.raises(StorageError, match=r"is no storage|is not the path of a folder"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="cannot be used: Not a directory"):
            polarmap.encode(np.arange(8.0), name="a", storage=path)
    (tmp_path / "polarmap").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be used: Not a directory"):
        polarmap.encode(np.arange(8.0), name="a", storage=tmp_path)


def test_folder_of_an_array_is_below_its_name():
    assert array_prefix("a") == "polarmap/coded/a/"
