"""Tests that a choice of storage selects the right store, and that an invalid choice is an error."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from array_data import random_array

import polarmap
from polarmap.errors import StorageError
from polarmap.storage.folder import FolderStore


def test_the_configuration_is_a_storage(config, server):
    A = random_array((24, 100))
    coded = polarmap.encode(A, blocks=6, name="a", storage=config)
    assert polarmap.arrays.list_coded(str(config)) == ["a"]
    np.testing.assert_array_equal(polarmap.open_coded("a", config)[:], A)
    assert f"{server.storage} bucket" in repr(coded)


def test_a_function_executor_is_a_storage(config):
    import lithops

    A = random_array((24, 100))
    with lithops.FunctionExecutor(config_file=str(config), log_level=None) as functions:
        polarmap.encode(A, blocks=6, name="a", storage=functions)
        np.testing.assert_array_equal(polarmap.open_coded("a", functions)[:], A)
    assert polarmap.arrays.list_coded(config) == ["a"]


def test_default_storage_is_a_folder_of_the_user(tmp_path, monkeypatch):
    monkeypatch.delenv("POLARMAP_STORE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    polarmap.encode(np.arange(8.0), name="a")
    assert (tmp_path / "data/polarmap/polarmap/manifests/a.json").is_file()
    monkeypatch.setenv("POLARMAP_STORE", str(tmp_path / "other"))
    assert polarmap.arrays.list_coded() == []
    polarmap.encode(np.arange(8.0), name="b", storage=tmp_path / "other")
    assert polarmap.arrays.list_coded() == ["b"]


NAMELESS = SimpleNamespace(put=0, get=0, size=0, keys=0, delete=0)


@pytest.mark.parametrize(
    "choice",
    [
        "",
        "\0",
        "a\0b",
        Path("\0"),
        "~nobody-has-this-name/x",
        "\ud800",
        b"x",
        3,
        True,
        [],
        {},
        FolderStore,
        NAMELESS,
    ],
    ids=repr,
)
def test_invalid_storages_are_refused(tmp_path, monkeypatch, choice):
    monkeypatch.chdir(tmp_path)
    A = np.arange(8.0)
    for use in (lambda: polarmap.encode(A, name="a", storage=choice),
                lambda: polarmap.open_coded("a", choice), lambda: polarmap.arrays.list_coded(choice),
                lambda: polarmap.coded_map(np.sum, A, out=polarmap.arrays.Stored("a", choice))):  # fmt: skip
        with pytest.raises(StorageError, match=r"storage must be None|is not the path of a folder"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/polarmap").write_bytes(b"")
    A, file = np.arange(8.0), tmp_path / "file"
    for use in (
        *(lambda: polarmap.open_coded("a", file), lambda: polarmap.arrays.list_coded(file)),
        lambda: polarmap.encode(A, name="a", storage=file),
        lambda: polarmap.encode(A, name="a", storage=file / "below"),
        lambda: polarmap.encode(A, name="a", storage=tmp_path / "other"),
    ):
        with pytest.raises(StorageError, match="cannot be used: Not a directory"):
            use()
