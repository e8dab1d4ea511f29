"""Opening by name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from array_data import damage

import polarmap
from polarmap.errors import MissingObjectError
from polarmap.storage.folder import FolderStore

pytestmark = pytest.mark.every_store


def test_unknown_name_says_which_there_are(store):
    with pytest.raises(MissingObjectError, match=r"no coded array 'b' in .*; there are: none"):
        polarmap.open_coded("b", store)
    polarmap.encode(np.arange(8.0), name="a", storage=store)
    with pytest.raises(MissingObjectError, match="there are: 'a'"):
        polarmap.open_coded("b", store)


def test_arrays_from_before_they_were_zarr_open_and_are_repaired(tmp_path):
    """Written before that: float numbers in stripes, integers, and results of which one is missing."""
    with zipfile.ZipFile(Path(__file__).parent / "before_zarr.zip") as archive:
        archive.extractall(tmp_path)
    A = np.arange(55).reshape(11, 5)
    expected = {"floats": A / 7, "integers": (A % 13).astype("i2"), "results": -A / 7}
    assert polarmap.list_coded(tmp_path) == sorted(expected)
    for name, values in expected.items():
        coded = polarmap.open_coded(name, tmp_path)
        assert coded.zarr is None
        assert coded.check().blocks == ([1] if name == "results" else [])
        np.testing.assert_allclose(coded[:], values, rtol=1e-12, atol=1e-12)
        damage(coded.store, coded.stored(2)[-1], "appended")
        damage(coded.store, coded.stored(5)[-1], "corrupt")
        assert {one.kind for one in coded.check().damaged} >= {"corrupt", "appended"}
        np.testing.assert_allclose(coded[:], values, rtol=1e-12, atol=1e-12)
        coded.repair()
        again = polarmap.open_coded(name, tmp_path)
        assert again.check().ok
        np.testing.assert_allclose(again[:], values, rtol=1e-12, atol=1e-12)
        coded.delete()
    assert FolderStore(tmp_path).keys("") == []


def test_arrays_that_were_stored_with_and_without_a_key_open_and_are_repaired(tmp_path, monkeypatch):
    monkeypatch.setenv("POLARMAP_TEST_KEY", bytes(range(32)).hex())
    with zipfile.ZipFile(Path(__file__).parent / "stored_with_a_key.zip") as archive:
        archive.extractall(tmp_path)
    A = np.arange(24.0).reshape(8, 3) / 7
    for name, key in (("plain", None), ("encrypted", "env:POLARMAP_TEST_KEY")):
        coded = polarmap.open_coded(name, tmp_path, key=key)
        assert coded.check().ok
        np.testing.assert_array_equal(coded[:], A)
        damage(coded.store, coded.stored(1)[0], "corrupt")
        y = polarmap.coded_map(np.negative, coded, executor=polarmap.ReplayExecutor(), retries=0)
        np.testing.assert_allclose(y.concatenate(), -A, rtol=1e-12, atol=1e-12)
        assert coded.repair().blocks == [1]
        np.testing.assert_allclose(polarmap.open_coded(name, tmp_path, key=key)[:], A, rtol=1e-12, atol=1e-12)
