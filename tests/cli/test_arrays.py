"""Check `polarmap encode`, `list`, `check`, `repair` and `delete`."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from command_lines import Run

from polarmap import open_coded


@pytest.fixture
def stored(polarmap: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a store with one coded array of integers, "small"."""
    monkeypatch.setenv("POLARMAP_STORE", str(tmp_path / "store"))
    np.save(tmp_path / "small.npy", np.arange(60).reshape(12, 5))
    ran = polarmap("encode", tmp_path / "small.npy", "small", "--blocks", 4, "--tasks", 6)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("<CodedArray 'small': 12 x 5 int64, 4 of 6 blocks are data")
    return tmp_path / "store"


def parts(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file() and path.suffix != ".json")


def test_arrays_are_listed_checked_repaired_and_deleted(polarmap: Run, stored: Path) -> None:
    listed = polarmap("list", "--json").json["arrays"]
    assert [(one["name"], one["shape"], one["n"], one["k"]) for one in listed] == [("small", [12, 5], 6, 4)]
    assert polarmap("list").out == f"{open_coded('small')!r}\n"
    assert polarmap("check", "small").code == 0
    victim = max(parts(stored), key=lambda path: path.stat().st_size)
    victim.write_bytes(b"x" * victim.stat().st_size)
    damaged = polarmap("check", "small", "--json")
    assert (damaged.code, damaged.json["ok"]) == (1, False)
    assert [one["kind"] for one in damaged.json["audit"]["damaged"]] == ["corrupt"]
    assert polarmap("repair", "small").out.startswith("repaired 1 part of 'small', in blocks [")
    victim = max(parts(stored), key=lambda path: path.stat().st_size)
    victim.unlink()
    on_localhost = ("--executor", "localhost")
    assert "1 missing" in polarmap("check", "small", *on_localhost).out
    assert polarmap("repair", "small", *on_localhost).out.startswith(
        "repaired 1 part of 'small', in blocks ["
    )
    nowhere = polarmap("repair", "small", "--executor", "no.yaml")
    assert (nowhere.code, "no.yaml" in nowhere.err) == (1, True)
    assert polarmap("repair", "small").out.startswith("nothing to repair")
    assert np.array_equal(open_coded("small")[:], np.arange(60).reshape(12, 5))
    asked = polarmap("delete", "small")
    assert (asked.code, "pass --yes" in asked.err) == (2, True)
    assert polarmap("delete", "small", "--yes").code == 0
    assert polarmap("list").out == "no coded arrays\n"
    assert parts(stored) == []


def test_an_array_that_cannot_be_opened_is_listed_with_the_reason(polarmap: Run, stored: Path) -> None:
    for manifest in stored.rglob("*.json"):
        manifest.write_text("{")
    ran = polarmap("list")
    assert ran.code == 1
    assert "cannot be opened" in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "none"], "none"),
        (["encode", "no-such.npy", "a"], "the file 'no-such.npy' does not exist"),
        (["encode", "{folder}", "a"], "is not a Zarr array"),
    ],
)
def test_errors_of_array_commands_are_one_line(
    polarmap: Run, stored: Path, arguments: list[str], message: str
) -> None:
    ran = polarmap(*(one.format(folder=stored.parent) for one in arguments))
    assert (ran.code, ran.out) == (1, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_zarr_and_hdf5_are_sources(polarmap: Run, stored: Path) -> None:
    data = np.arange(24.0).reshape(8, 3)
    zarr.save_array(str(stored.parent / "data.zarr"), data)
    with h5py.File(stored.parent / "data.h5", "w") as file:
        file["group/data"] = data
        file["nothing"] = h5py.Empty("f8")
    sources = {"zarr": "data.zarr", "hdf5": "data.h5::group/data"}
    for name, source in sources.items():
        assert polarmap("encode", stored.parent / source, name, "--blocks", 4).code == 0
        assert np.array_equal(open_coded(name)[:], data)
    ran = polarmap("encode", stored.parent / "data.h5::other", "x")
    assert (ran.code, "no dataset 'other'; it holds group, nothing" in ran.err) == (1, True)
    ran = polarmap("encode", stored.parent / "data.h5::nothing", "x")
    assert (ran.code, "data of shape () has no rows" in ran.err) == (1, True)


@pytest.mark.parametrize(("module", "source"), [("h5py", "data.h5::a"), ("zarr", "")])
def test_a_missing_package_is_reported_in_one_line(
    polarmap: Run, stored: Path, monkeypatch: pytest.MonkeyPatch, module: str, source: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # The import fails as if the package were not installed.
    ran = polarmap("encode", stored.parent / source, "a")
    assert (ran.code, ran.out) == (1, "")
    assert f"needs {module}: pip install " in ran.err and ran.err.count("\n") == 1


def test_an_encrypted_array_is_listed_and_deleted_without_its_key(
    polarmap: Run, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLARMAP_TEST_KEY", "ab" * 32)
    key = ("--key", "env:POLARMAP_TEST_KEY")
    ran = polarmap("encode", tmp_path / "small.npy", "sealed", "--blocks", 4, "--tasks", 6, *key)
    assert ran.out.startswith("<CodedArray 'sealed': 12 x 5 int64, encrypted, 4 of 6 blocks are data")
    assert "cannot be opened" not in polarmap("list").out
    max(stored.rglob("00002"), key=lambda path: path.stat().st_size).unlink()
    refused = polarmap("check", "sealed")
    assert refused.code != 0
    assert "is encrypted: pass its key" in refused.err
    assert "1 missing" in polarmap("check", "sealed", *key).out
    assert polarmap("repair", "sealed", *key).out.startswith("repaired 1 part of 'sealed', in blocks [2]")
    assert polarmap("check", "sealed", *key).code == 0
    assert polarmap("delete", "sealed", "--yes").code == 0
