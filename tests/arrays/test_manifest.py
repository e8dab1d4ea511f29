"""The format is what its page says, to a reader that has never seen polarmap."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from arrays.test_array import MIB, random_array

import polarmap
from polarmap import Stored
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
def test_the_reader_of_the_page_reads(tmp_path, dtype):
    A = random_array((43, 9_000), dtype)
    polarmap.encode(A, blocks=6, workers=8, name="a", storage=tmp_path, memory=MIB)
    np.testing.assert_array_equal(reader()(tmp_path, "a"), A)


def test_the_reader_of_the_page_reads_numbers(tmp_path):
    options = {"blocks": 6, "executor": polarmap.ReplayExecutor()}
    A = random_array((42, 5))
    y = polarmap.coded_map(np.sum, A, out=Stored("a", tmp_path), **options)
    y.array.repair()
    np.testing.assert_allclose(reader()(tmp_path, "a"), A.reshape(6, -1).sum(axis=1), rtol=1e-10)
    manifest = json.loads((tmp_path / "polarmap/manifests/a.json").read_text())["array"]
    assert manifest["scalars"] is True
    assert "| `scalars` |" in PAGE.read_text()


def test_the_fields_are_those_of_the_page(tmp_path):
    polarmap.encode(random_array((43, 5)), name="a", storage=tmp_path)
    (example,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    shown, real = json.loads(example), json.loads((tmp_path / "polarmap/manifests/a.json").read_text())
    assert shown.keys() == real.keys()
    assert shown["array"].keys() == real["array"].keys()
    assert shown["array"]["code"].keys() == real["array"]["code"].keys()
    assert shown["array"]["blocks"][0][0].keys() == real["array"]["blocks"][0][0].keys()
    text = json.dumps(real["array"], sort_keys=True, separators=(",", ":"))
    assert zlib.crc32(text.encode()) == real["crc32"]


def test_the_probe_is_what_the_page_says(tmp_path):
    coded = polarmap.encode(random_array((48, 5)), name="a", storage=tmp_path)
    array = json.loads((tmp_path / "polarmap/manifests/a.json").read_text())["array"]
    expected = coded.code.coefficients @ (np.arange(24) % 7)
    np.testing.assert_allclose(array["code"]["probe"], [*expected[:4], *expected[-4:]])


def test_no_object_holds_a_secret_or_a_pickle(tmp_path):
    store = FolderStore(tmp_path)
    polarmap.encode(np.full((24, 50), 7.0), name="a", storage=store)
    for key in store.keys("polarmap/"):
        assert not store.get(key).startswith(b"\x80")
    text = store.get("polarmap/manifests/a.json").decode()
    assert str(tmp_path) not in text
