"""Check the names of packages that are imported on first access."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import polarmap

LAZY = [polarmap, polarmap.arrays, polarmap.codes, polarmap.linalg, polarmap.types]


@pytest.mark.parametrize("package", LAZY, ids=lambda package: package.__name__)
def test_type_checking_imports_declare_the_lazy_names(package: ModuleType) -> None:
    assert package.__file__ is not None
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    declared = {node.names[0].asname: f"{node.module}.{node.names[0].name}" for node in imports}
    assert sorted(str(name) for name in declared) == sorted(dir(package))
    for name, where in declared.items():
        module, _, attribute = where.rpartition(".")
        assert getattr(package, str(name)) is getattr(importlib.import_module(module), attribute)


def test_a_missing_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'polarmap' has no attribute 'coded_mop'"):
        _ = polarmap.coded_mop


def test_core_packages_import_without_any_extra() -> None:
    code = "import sys; sys.modules |= dict.fromkeys(('scipy', 'sklearn', 'pyproximal', 'zarr', 'h5py'))"
    for name in ("arrays", "cli", "codes", "planning", "testing", "types"):
        code += f"; import polarmap.{name}"
    subprocess.run([sys.executable, "-c", code], check=True)
