"""Tests of the manifest format. The oracle is the reader on its page, which does not use polarmap."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from array_data import MIB, random_array, write_manifest

import polarmap
from polarmap.arrays.manifest import check_array_name, get_manifest_key
from polarmap.codes import PolarCode
from polarmap.errors import StorageError
from polarmap.storage.folder import FolderStore

PAGE = Path(__file__).parents[2] / "docs" / "coded-array-format.md"


def reader():
    (code,) = re.findall(r"```python[^\n]*\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 16
    assert "polarmap." not in code
    names: dict = {}
    exec(code, names)
    return names["read"]


@pytest.mark.parametrize("dtype", ["f8", "f4", "c16", "u1", "i8"])
def test_the_reader_on_the_page_reads_arrays(tmp_path, dtype):
    A = random_array((43, 9_000), dtype)
    polarmap.encode(A, blocks=6, tasks=8, name="a", storage=tmp_path, memory=MIB)
    np.testing.assert_array_equal(reader()(tmp_path, "a"), A)


def test_the_reader_on_the_page_reads_arrays_of_scalars(tmp_path):
    options = {"blocks": 6, "executor": polarmap.testing.ReplayExecutor()}
    A = random_array((42, 5))
    y = polarmap.coded_map(np.sum, A, out=polarmap.arrays.Stored("a", tmp_path), **options)
    y.array.repair()
    np.testing.assert_allclose(reader()(tmp_path, "a"), A.reshape(6, -1).sum(axis=1), rtol=1e-10)
    manifest = json.loads((tmp_path / "polarmap/manifests/a.json").read_text())["array"]
    assert manifest["scalars"] is True
    assert "| `scalars` |" in PAGE.read_text()


def test_the_fields_match_the_page(tmp_path):
    polarmap.encode(random_array((43, 5)), name="a", storage=tmp_path)
    (example,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    shown, real = json.loads(example), json.loads((tmp_path / "polarmap/manifests/a.json").read_text())
    assert shown.keys() == real.keys()
    assert shown["array"].keys() == real["array"].keys()
    assert shown["array"]["code"].keys() == real["array"]["code"].keys()
    assert shown["array"]["blocks"][0][0].keys() == real["array"]["blocks"][0][0].keys()
    text = json.dumps(real["array"], sort_keys=True, separators=(",", ":"))
    assert zlib.crc32(text.encode()) == real["crc32"]


def test_the_probe_matches_the_page(tmp_path):
    coded = polarmap.encode(random_array((48, 5)), name="a", storage=tmp_path)
    array = json.loads((tmp_path / "polarmap/manifests/a.json").read_text())["array"]
    expected = coded.code.encoding_matrix @ (np.arange(24) % 7)
    np.testing.assert_allclose(array["code"]["probe"], [*expected[:4], *expected[-4:]])


def test_no_object_contains_a_secret_or_a_pickle(tmp_path):
    store = FolderStore(tmp_path)
    polarmap.encode(np.full((24, 50), 7.0), name="a", storage=store)
    for key in store.keys("polarmap/"):
        assert not store.get(key).startswith(b"\x80")
    text = store.get("polarmap/manifests/a.json").decode()
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda document: document.update(version=2),
            "format version 2, but this version of polarmap reads version 1",
        ),
        (lambda document: document.update(format="zip"), "not the manifest of a coded array"),
        (lambda document: document["array"].update(rows_per_block=3), "its checksum is wrong"),
        (lambda document: document["array"]["blocks"][0][0].update(crc32=1), "its checksum is wrong"),
        (lambda document: document.pop("array"), "its checksum is wrong"),
    ],
)
def test_damaged_manifests_are_refused(store, change, message):
    polarmap.encode(np.arange(8.0), blocks=4, name="a", storage=store)
    document = json.loads(store.get(get_manifest_key("a")))
    change(document)
    store.put(get_manifest_key("a"), json.dumps(document).encode())
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
    # The checksum of these manifests is correct, because another program may have written them.
    polarmap.encode(np.arange(8.0), blocks=4, name="a", storage=store)
    write_manifest(store, lambda array: array.update(change))
    with pytest.raises(StorageError):
        polarmap.open_coded("a", store)


@pytest.mark.parametrize("value", [None, "1", [1], -1, 1.0])
@pytest.mark.parametrize("field", ["size", "offset"])
@pytest.mark.parametrize("of_zarr", [False, True])
def test_parts_without_a_valid_range_are_refused_when_an_array_is_opened(store, field, value, of_zarr):
    # Without this check of data and Zarr metadata, later operations would raise built-in errors of Python.
    polarmap.encode(np.arange(8.0), blocks=4, name="a", storage=store)
    write_manifest(
        store,
        lambda array: (array["zarr"]["metadata"] if of_zarr else array["blocks"][0])[0].update(
            {field: value}
        ),
    )
    with pytest.raises(StorageError, match="inconsistent"):
        polarmap.open_coded("a", store)


def test_more_chunks_than_stripes_are_refused_before_they_are_listed(store):
    # A list of all chunks would not fit into memory.
    polarmap.encode(np.arange(8.0), blocks=4, name="a", storage=store)

    def change(array):
        array.update(shape=[2**50], rows_per_block=2**48)
        array["zarr"].update(chunk_shape=[1])
        for [part] in array["blocks"]:
            part.update(size=2**51)

    write_manifest(store, change)
    with pytest.raises(StorageError, match=r"do not fit chunks of shape \(1,\)"):
        polarmap.open_coded("a", store)


@pytest.mark.parametrize("key", ["../../secret", "/etc/passwd", "a//b", "", 3])
def test_keys_that_leave_the_store_are_refused(store, key):
    polarmap.encode(np.arange(8.0), blocks=4, name="a", storage=store)
    write_manifest(store, lambda array: array["blocks"][0][0].update(key=key))
    with pytest.raises(StorageError, match="not a valid object key"):
        polarmap.open_coded("a", store)


@pytest.mark.parametrize(
    "code",
    [
        PolarCode(6, 4, erasure=np.float32(0.1), seed=np.int64(3)),
        PolarCode(6, 4, "arikan", erasure=np.linspace(0, 0.5, 6)),
        PolarCode(12, 8, "arikan", "sequential", levels=2),
    ],
    ids=["numbers of numpy", "unequal workers", "fewer levels"],
)
def test_manifests_describe_codes_completely(store, code):
    A = np.arange(16.0) if code.kernel == "rotation" else np.arange(16)
    polarmap.encode(A, code=code, name="a", storage=store)
    coded = polarmap.open_coded("a", store)
    store.delete([coded.block_segments(1)[0].key])
    assert repr(coded.code) == repr(code)
    assert np.array_equal(coded.code.erasure, code.erasure)
    if code.kernel == "arikan":
        assert coded.code.codeword_positions.tolist() == code.codeword_positions.tolist()
    np.testing.assert_allclose(coded[:], A, rtol=1e-12, atol=1e-12 * (A.dtype.kind == "f"))


def test_a_code_with_other_coefficients_is_refused(store):
    polarmap.encode(np.arange(8.0), blocks=4, name="a", storage=store)
    write_manifest(store, lambda array: array["code"].update(seed=array["code"]["seed"] + 1))
    with pytest.raises(StorageError, match="computes different parity blocks"):
        polarmap.open_coded("a", store)


def test_a_manifest_of_nested_brackets_counts_as_damaged(tmp_path):
    polarmap.encode(random_array((24, 5)), name="a", storage=tmp_path)
    (tmp_path / "polarmap/manifests/a.json").write_text("[" * 100_000)
    with pytest.raises(StorageError, match="is damaged: it is not valid JSON"):
        polarmap.open_coded("a", tmp_path)


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "\0", "a\0", "..", "a/b", "../a", "a b", "-a", ".a", "a\n", "a" * 129, 7, None, "a..b"]
)
def test_invalid_names_are_refused(store, name):
    for use in (lambda: polarmap.encode(np.arange(8.0), name=name, storage=store),
                lambda: polarmap.open_coded(name, store)):  # fmt: skip
        with pytest.raises(StorageError, match="cannot name a coded array"):
            use()
    assert store.keys("polarmap/") == []


def test_valid_names_are_accepted():
    for name in ("a", "A.b-c_9", "9", "x" * 128):
        assert check_array_name(name) == name
