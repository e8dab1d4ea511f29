"""Check that `polarmap config` lists, shows and copies the configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from command_lines import ROOT, Run

CONFIGURATIONS = sorted(path.stem for path in (ROOT / "config").glob("*.yaml"))


def test_list_names_every_configuration(polarmap: Run) -> None:
    configurations = polarmap("config", "list", "--json").json["configurations"]
    assert [one["name"] for one in configurations] == CONFIGURATIONS
    for one in configurations:  # The purpose is the first sentence of the file.
        text = (ROOT / "config" / f"{one['name']}.yaml").read_text()
        first = " ".join(line.strip("# ") for line in text.splitlines()[:3])
        assert len(one["purpose"]) > 10
        assert first.startswith(f"{one['purpose']}.") or first.partition("  ")[0] == one["purpose"]
    assert {one["name"]: one["purpose"] for one in configurations}["minio"].endswith(
        "MinIO, SeaweedFS, Ceph, ..."
    )


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_show_prints_the_file_and_only_that(polarmap: Run, name: str) -> None:
    text = (ROOT / "config" / f"{name}.yaml").read_text()
    assert polarmap("config", "show", name).out == text
    shown = polarmap("config", "show", name, "--json").json
    assert shown["text"] == text
    assert "README.md" in shown["files"]
    assert yaml.safe_load(text)["lithops"]["backend"]


def test_copy_never_overwrites(polarmap: Run, tmp_path: Path) -> None:
    assert polarmap("config", "copy", "localhost", tmp_path).code == 0
    assert (tmp_path / "config" / "localhost.yaml").is_file()
    assert (tmp_path / "backends" / "localhost" / "README.md").is_file()
    (tmp_path / "config" / "localhost.yaml").unlink()
    ran = polarmap("config", "copy", "localhost", tmp_path)
    assert (ran.code, "already exists" in ran.err) == (1, True)
    assert not (tmp_path / "config" / "localhost.yaml").exists()
