"""The public names of the package."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import polarmap


def test_all_lists_the_visible_names() -> None:
    names = {name for name in {*vars(polarmap), *polarmap._LAZY} if is_visible(name)}
    assert polarmap.__all__ == sorted(names)


def is_visible(name: str) -> bool:
    """Whether a reader sees it: no underscore; a submodule only if `__all__` says so."""
    if name in polarmap._LAZY:
        return True
    value = getattr(polarmap, name)
    hidden = isinstance(value, ModuleType) or getattr(value, "__module__", "") == "__future__"
    return not name.startswith("_") and (not hidden or name in polarmap.__all__)


@pytest.mark.parametrize("name", sorted(polarmap._LAZY))
def test_a_lazy_name_is_there_and_stays(name: str) -> None:
    assert getattr(polarmap, name) is getattr(polarmap, name)
    assert name in vars(polarmap)


def test_models_need_no_import_of_their_own() -> None:
    code = "import polarmap; print(polarmap.glm.Ridge.__name__, polarmap.convex.Lasso.__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "Ridge Lasso\n"


def test_a_name_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(AttributeError, match="'polarmap' has no attribute 'coded_mop'"):
        _ = polarmap.coded_mop


def test_completion_offers_public_names_only() -> None:
    assert set(dir(polarmap)) == {*polarmap.__all__, "__version__", "convex", "glm", "xr"}
