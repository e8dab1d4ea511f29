"""Check for text that must not be committed."""

from __future__ import annotations

import os
import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PRODUCTS = [".*", "__pycache__", "*.py[co]", "*.nb[ic]", "*.egg-info"]
TOP_PRODUCTS = ["build", "dist", "site"]  # Products at the top only: tests/site is committed.
HIDDEN = [".ci", ".github", ".pre-commit-config.yaml"]  # Hidden names that are committed.
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:work|home|root|Users)/\w|/tmp/d[e]v\b")


def test_committed_text_contains_no_path_of_a_machine() -> None:
    violations = [
        f"{path}:{number}: {line.strip()}"
        for path in committed()
        for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert violations == []


def committed() -> list[Path]:
    """Return the files that git tracks, or without git or a checkout all files but products and caches."""
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z"]
    try:
        run = subprocess.run(git, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return written()
    return [path for path in (ROOT / name for name in run.stdout.split("\0")) if path.is_file()]


def written() -> list[Path]:
    """Return all files here except products and caches."""
    paths = []
    for folder, folders, names in os.walk(ROOT):
        products = TOP_PRODUCTS if Path(folder) == ROOT else []
        folders[:] = [name for name in folders if name not in products and not is_product(name)]
        paths += [Path(folder, name) for name in names if not is_product(name)]
    return paths


def is_product(name: str) -> bool:
    return name not in HIDDEN and any(fnmatch(name, pattern) for pattern in PRODUCTS)


def test_committed_files_are_found_without_git() -> None:
    assert set(committed()) <= {*written(), ROOT / ".gitignore"}
