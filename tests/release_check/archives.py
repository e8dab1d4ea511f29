"""Build the sdist and the wheel, and check their metadata and licences."""

from __future__ import annotations

import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from release_check.outcomes import CheckError, run_command

ROOT = Path(__file__).resolve().parents[2]
PRODUCTS = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "*.egg-info", "__pycache__")
TOP_PRODUCTS = {"build", "dist", "site"}  # Products at the top only: tests/site has tests.


class Archives(NamedTuple):
    """The two files of a release."""

    sdist: Path
    wheel: Path


def copy_checkout(target: Path) -> Path:
    """Copy this checkout without caches and build products, so that a build leaves nothing in it."""

    def find_products(folder: str, names: list[str]) -> set[str]:
        return PRODUCTS(folder, names) | (TOP_PRODUCTS & set(names) if Path(folder) == ROOT else set())

    return Path(shutil.copytree(ROOT, target, ignore=find_products))


def build_archives(folder: Path) -> Archives:
    """Build the sdist from a copy of this checkout, and the wheel from the sdist."""
    source = copy_checkout(folder / "source")
    run_command([sys.executable, "-m", "build", "--outdir", folder / "dist", source], folder)
    return find_archives(folder / "dist")


def find_archives(folder: Path) -> Archives:
    """Return the only sdist and the only wheel in a folder."""
    [sdist], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Archives(sdist, wheel)


def check_metadata(archives: Archives) -> str:
    """Check with twine that a package index accepts the metadata and can render the description."""
    run_command([sys.executable, "-m", "twine", "check", "--strict", *archives], ROOT)
    return "twine check --strict"


def check_licences(archives: Archives) -> str:
    """Check that both archives contain LICENSE, as it is in this checkout."""
    expected = (ROOT / "LICENSE").read_bytes()
    for path, texts in ((archives.sdist, _sdist_licences), (archives.wheel, _wheel_licences)):
        if texts(path) != [expected]:
            raise CheckError(f"{path.name} must contain the file LICENSE of this checkout once.")
    return "LICENSE in the sdist and in the wheel"


def _sdist_licences(path: Path) -> list[bytes]:
    with tarfile.open(path) as archive:
        members = [one for one in archive if one.isfile() and one.name.split("/")[1:] == ["LICENSE"]]
        return [file.read() for file in map(archive.extractfile, members) if file is not None]


def _wheel_licences(path: Path) -> list[bytes]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" in name and name.endswith("/LICENSE")]
        return [archive.read(name) for name in names]
