"""Importing the models."""

from __future__ import annotations

import subprocess
import sys


def test_importing_polarmap_does_not_import_sklearn() -> None:
    code = "import sys, polarmap; assert 'sklearn' not in sys.modules; import polarmap.glm"
    subprocess.run([sys.executable, "-c", code], check=True)
