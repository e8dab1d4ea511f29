"""Check that make names the Python of .venv, and refuses to mix it with another Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Variables that a make around the tests passes down, including PYTHON= of its command line.
OF_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "PYTHON")
MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Provide a copy of the Makefile with a .venv that looks as if polarmap were installed."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    venv.create(tmp_path / ".venv", with_pip=False, symlinks=True)
    for stamp in (".made", ".base"):
        (tmp_path / ".venv" / stamp).touch()
    return tmp_path


def python(path: Path, version: str) -> Path:
    """Create a program that prints `version` like a Python interpreter."""
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return path


def make(checkout: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    return subprocess.run(
        ["make", *map(str, arguments)], cwd=checkout, env=clean, capture_output=True, text=True
    )


def test_make_prints_the_interpreter(checkout: Path) -> None:
    done = make(checkout, "venv")
    version = sys.version.split()[0]
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Using Python {version} at {checkout}/.venv/bin/python\n"


def test_python_may_be_given_again(checkout: Path) -> None:
    assert make(checkout, "venv", f"PYTHON={sys.executable}").returncode == 0


def test_another_python_is_refused_with_the_command_that_changes_it(checkout: Path) -> None:
    other = python(checkout / "other", "3.99")
    done = make(checkout, "venv", "PYTHON=./other")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        f"make: .venv has Python {MINOR}, PYTHON=./other is 3.99; "
        "to replace .venv: make clean && make venv PYTHON=./other"
    )
    other.unlink()
    assert "PYTHON=./other is not a Python interpreter;" in make(checkout, "venv", "PYTHON=./other").stderr


def test_a_removed_interpreter_is_reported(checkout: Path) -> None:
    (checkout / ".venv" / "bin" / "python").unlink()
    done = make(checkout, "venv")
    assert done.returncode == 2
    assert (
        "the Python of .venv no longer exists; create a new environment: make clean && make venv"
        in done.stderr
    )


def test_an_old_python_is_refused(checkout: Path) -> None:
    (checkout / ".venv" / "bin" / "python").unlink()
    python(checkout / ".venv" / "bin" / "python", "3.10")
    done = make(checkout, "venv")
    assert done.returncode == 2
    assert "polarmap needs Python 3.11 or later, but .venv has 3.10" in done.stderr
    (checkout / ".venv" / ".made").unlink()
    done = make(checkout, "venv", "PYTHON=.venv/bin/python")
    assert "needs Python 3.11 or later, but '.venv/bin/python' is older" in done.stderr
    assert "'none' was not found;" in make(checkout, "venv", "PYTHON=none").stderr


def test_the_oldest_supported_python_is_consistent() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "sys.version_info >= (3, 11)" in makefile
    assert "python_requires = >=3.11" in (ROOT / "setup.cfg").read_text()
    assert 'target-version = "py311"' in (ROOT / "ruff.toml").read_text()
