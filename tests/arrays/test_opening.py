"""Opening by name, also of what earlier versions have stored."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from array_data import damage

import polarmap
from polarmap import ReplayExecutor
from polarmap.errors import MissingObjectError
from polarmap.storage.folder import FolderStore


@pytest.mark.every_store
def test_unknown_name_says_which_there_are(store):
    with pytest.raises(MissingObjectError, match=r"no coded array 'b' in .*; there are: none"):
        polarmap.open_coded("b", store)
    polarmap.encode(np.arange(8.0), name="a", storage=store)
    with pytest.raises(MissingObjectError, match="there are: 'a'"):
        polarmap.open_coded("b", store)


A, B = np.arange(55).reshape(11, 5), np.arange(60).reshape(12, 5) / 7
FLOATS_INTEGERS_RESULTS = {"floats": A / 7, "integers": (A % 13).astype("i2"), "results": -A / 7}
# Archive of a folder -> the arrays in it. Of "results" block 1 had not arrived, nor, of those that are
# encrypted, block 5; all else is whole.
STORED = {
    "before_zarr": FLOATS_INTEGERS_RESULTS,
    # Stripes that are chunks, two that are joined to one, those that workers wrote, rebuilt ones.
    "plain": {
        **FLOATS_INTEGERS_RESULTS,
        "joined": np.arange(52 * 3).reshape(52, 3) / 7,
        "by-workers": A / 7,
        "repaired": A / 7,
    },
    "encrypted": {**FLOATS_INTEGERS_RESULTS, "by-workers": A / 7},
    # Of RawObjects, once in parts that cross two of them; of ZarrObjects.
    "objects": {"raw": B, "copied-in-part": B, "zarr": B},
}
KEY = "POLARMAP_STORED_KEY"


@pytest.mark.parametrize("executor", [None, ReplayExecutor()], ids=["here", "workers"])
@pytest.mark.parametrize("archive", STORED)
def test_arrays_of_earlier_versions_open_and_are_repaired(tmp_path, monkeypatch, archive, executor):
    monkeypatch.setenv(KEY, bytes(range(32)).hex())
    key = f"env:{KEY}" if archive == "encrypted" else None
    folder = Path(__file__).parent / "stored_by_earlier_versions"
    with zipfile.ZipFile(folder / f"{archive}.zip") as zipped:
        zipped.extractall(tmp_path)
    theirs = [key for key in FolderStore(tmp_path).keys("") if key.startswith("mine/")]
    assert polarmap.list_coded(tmp_path) == sorted(STORED[archive])
    for name, values in STORED[archive].items():
        coded = polarmap.open_coded(name, tmp_path, key=key)
        missing = [] if name != "results" else [1, 5] if archive == "encrypted" else [1]
        assert coded.check(executor=executor).blocks == missing
        np.testing.assert_allclose(coded[:], values, rtol=1e-12, atol=1e-12)
        assert coded.zarr is None or archive != "before_zarr"
        kinds = set()
        if 5 not in missing:
            damage(coded.store, coded.stored(coded.n - 1)[-1], "corrupt")
            kinds.add("corrupt")
        if not coded.stored(2)[-1].key.startswith("mine/"):
            damage(coded.store, coded.stored(2)[-1], "appended")
            kinds.add("appended")
        found = coded.check(executor=executor).damaged
        assert {one.kind for one in found} >= kinds
        assert len(found) > len(missing)
        np.testing.assert_allclose(coded[:], values, rtol=1e-12, atol=1e-12)
        coded.repair(executor=executor)
        again = polarmap.open_coded(name, tmp_path, key=key)
        assert again.check(executor=executor).ok
        np.testing.assert_allclose(again[:], values, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(again.coded_blocks().piece(again.n - 1)[0], parity(again, values)[-1])
        coded.delete()
    assert FolderStore(tmp_path).keys("") == theirs


def parity(coded, values):
    """The parity blocks of an array, from the code alone."""
    whole = np.zeros((coded.k * coded.rows, *values.shape[1:]), values.dtype)
    whole[: len(values)] = values
    return coded.code.parity(whole.reshape(coded.k, -1)).reshape(coded.n - coded.k, coded.rows, -1)
