"""The house: which room may import which, and what the folders around the package hold."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from configparser import ConfigParser
from fnmatch import fnmatch
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import polarmap

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = sorted(path.name for path in (ROOT / "backends").iterdir() if path.is_dir())

# Room -> what its modules may import besides the standard library. A module in no room here may
# import them all. What ONLY_FROM names is judged there.
MAY_IMPORT = {
    "polarmap.errors": [],
    "polarmap.worker.cores": [],
    "polarmap.storage.retry": [],
    "polarmap.worker": ["polarmap.worker", "numpy"],
    "polarmap.worker.parts": [],
    "polarmap.storage": [
        *["polarmap.storage", "polarmap.errors"],
    ],
    "polarmap.worker.finite_differences": ["numpy"],
    "polarmap.code": ["polarmap.code", "polarmap.worker.cores", "polarmap.errors", "numpy"],
    "polarmap.planning": [
        *["polarmap.planning", "polarmap.code", "polarmap.errors", "polarmap.report", "numpy"],
        *["polarmap.clouds.limits", "polarmap.clouds.prices"],
        "polarmap.plot.frontier",  # Plan.plot
    ],
    "polarmap.plot": [
        *["polarmap.plot", "polarmap.planning", "polarmap.report", "polarmap.errors", "numpy"],
    ],
    "polarmap.clouds.limits": ["polarmap.errors"],
    "polarmap.clouds.prices": ["polarmap.clouds.limits", "polarmap.worker.run_task"],
    "polarmap.clouds.settings": ["polarmap.errors", "yaml"],
    "polarmap.executors": [
        *[
            "polarmap.executors",
            "polarmap.worker.cores",
            "polarmap.storage.retry",
            "polarmap.errors",
            "polarmap.worker",
        ],
        *["polarmap.clouds.limits", "polarmap.clouds.settings"],
        *["numpy", "cloudpickle"],
    ],
    "polarmap.blocks": [
        *["polarmap.blocks", "polarmap.code", "polarmap.planning.planner", "polarmap.executors.base"],
        *["polarmap.worker", "polarmap.errors", "numpy"],
    ],
    "polarmap.run": [
        *["polarmap.run", "polarmap.blocks.base", "polarmap.blocks.equal", "polarmap.code"],
        *["polarmap.planning", "polarmap.executors.base", "polarmap.worker", "polarmap.errors"],
        *["numpy", "cloudpickle"],
    ],
    "polarmap.cli": ["polarmap", "numpy", "h5py", "zarr"],
}
CLI_FILES = ["answer", "arrays", "demo", "doctor", "forecast", "laws", "templates"]
CLI = ["polarmap.cli", *(f"polarmap.cli.{name}" for name in CLI_FILES)]
# Import -> the only modules that may have it.
ONLY_FROM = {
    "lithops": ["polarmap.executors.lithops", "polarmap.cli.deploy"],
    "click": CLI,
    "polarmap.cli": ["polarmap.__main__", *CLI],
    "numba": ["polarmap.code.kernels_numba", "polarmap.code.tiled"],  # encode asks whether it is there
    "matplotlib": [
        *(f"polarmap.plot.{name}" for name in ["canvas", "frontier", "laws", "timeline"]),
        *["polarmap.report", "polarmap.planning.planner"],  # name the type of what they return
    ],
    "polarmap.coded_map": [
        "polarmap",
        "polarmap.coded_gradient",
        "polarmap.hedged_map",
        "polarmap.linalg.gram",
        "polarmap.linalg.operators",
        "polarmap.linalg.products",
    ],
    "polarmap.run.collect": ["polarmap", "polarmap.run.job", "polarmap.run.summary"],
    "polarmap.run.job": [
        "polarmap.coded_map",
        "polarmap.coded_gradient",
        "polarmap.arrays.encode_remotely",
        "polarmap.hedged_map",
        "polarmap.linalg.operators",
        "polarmap.linalg.products",
        "polarmap.coded_sum",
    ],
    "sklearn": ["polarmap.glm.fitting", "polarmap.glm"],
}
# Standard library that mathematics has no use for; encode spreads its sums over the cores.
CLOCKS_AND_IO = {
    *["datetime", "sched", "signal", "time"],
    *["asyncio", "concurrent", "multiprocessing", "subprocess", "threading"],
    *["http", "io", "logging", "os", "pathlib", "select", "shutil", "socket", "tempfile", "urllib"],
    *["random", "secrets"],
}
SPREADS_OVER_CORES = {"polarmap.code.tiled": {"concurrent"}}

SHAPELESS_NAMES = {"common", "core", "helper", "helpers", "manager", "misc", "util", "utils"}
PRODUCTS = [".*", "__pycache__", "*.py[co]", "*.nb[ic]", "*.egg-info", "build", "dist", "site"]
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:work|home|root|Users)/\w|/tmp/d[e]v\b")


# --- config/ and backends/ ---------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["config", "backends"])
def test_no_python_beside_the_package(folder: str) -> None:
    assert list((ROOT / folder).rglob("*.py")) == []


def test_every_config_has_its_backend_and_every_backend_its_config() -> None:
    assert sorted(path.stem for path in (ROOT / "config").glob("*.yaml")) == BACKENDS


@pytest.mark.parametrize("backend", BACKENDS)
def test_config_names_the_backend_or_storage_it_is_called_after(backend: str) -> None:
    config = yaml.safe_load((ROOT / "config" / f"{backend}.yaml").read_text())
    assert backend in (config["lithops"]["backend"], config["lithops"]["storage"])
    assert backend in config


@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_pins_what_the_package_pins(backend: str) -> None:
    """What setup.cfg requires stands here in the same words; what a cloud needs beside it may."""
    lines = (ROOT / "backends" / backend / "requirements.txt").read_text().splitlines()
    pins = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    ours = {project(line): line for line in install_requires()}
    assert {ours.get(project(pin), pin) for pin in pins} == pins
    assert lithops_pin() in pins
    assert {"numpy", "cloudpickle"} <= {project(pin) for pin in pins}


def project(requirement: str) -> str:
    return re.split(r"[<>=!~\[]", requirement)[0]


def test_installed_lithops_is_the_pinned_one() -> None:
    assert lithops_pin() == f"lithops=={importlib.metadata.version('lithops')}"


def install_requires() -> set[str]:
    setup = ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    return set(setup["options"]["install_requires"].split())


def lithops_pin() -> str:
    return next(line for line in install_requires() if line.startswith("lithops"))


# --- imports -----------------------------------------------------------------------------------


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, for every module of the package."""
    return {dotted(path): path for path in sorted((ROOT / "polarmap").rglob("*.py"))}


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(module: str, *, typing_too: bool = True) -> set[str]:
    """The full names of the modules that `module` imports, wherever in the file."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    return {name for node in statements(tree, typing_too) for name in targets(node)}


def statements(node: ast.AST, typing_too: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if typing_too or not is_typing_block(child):
            yield child
            yield from statements(child, typing_too)


def is_typing_block(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def targets(node: ast.AST) -> Iterable[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert not node.level, "imports inside the package are absolute"
        named = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in modules() else str(node.module) for name in named]
    return []


def within(name: str, rooms: Iterable[str]) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


def is_stdlib(name: str) -> bool:
    return name.split(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_follow_the_arrows(room: str) -> None:
    judged = [name for name in modules() if within(name, [room])]
    upward = [
        (module, name)
        for module in judged
        for name in imports(module)
        if not is_stdlib(name) and not within(name, [*MAY_IMPORT[room], *ONLY_FROM])
    ]
    assert upward == []


@pytest.mark.parametrize("name", ONLY_FROM)
def test_some_imports_have_one_home(name: str) -> None:
    importers = {module for module in modules() if within_any(imports(module), name)}
    assert importers <= set(ONLY_FROM[name])


def within_any(names: Iterable[str], room: str) -> bool:
    return any(within(name, [room]) for name in names)


@pytest.mark.parametrize("module", [name for name in modules() if within(name, ["polarmap.code"])])
def test_mathematics_has_no_clock_thread_or_io(module: str) -> None:
    used = {name.split(".")[0] for name in imports(module)} & CLOCKS_AND_IO
    assert used <= SPREADS_OVER_CORES.get(module, set())


def test_no_import_cycle() -> None:
    graph = {module: imports(module, typing_too=False) & modules().keys() for module in modules()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_importing_polarmap_stays_light() -> None:
    code = "import json, sys, polarmap; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"lithops", "click", "numba", "matplotlib", "tqdm", "sklearn", "scipy", "distributed"}
    assert heavy & set(json.loads(run.stdout)) == set()


# --- names and texts ---------------------------------------------------------------------------


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
    code = "import polarmap; print(polarmap.glm.Ridge.__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "Ridge\n"


def test_a_name_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(AttributeError, match="'polarmap' has no attribute 'coded_mop'"):
        _ = polarmap.coded_mop


def test_no_module_has_a_shapeless_name() -> None:
    parts = {part for module in modules() for part in module.split(".")}
    assert parts & SHAPELESS_NAMES == set()


def test_no_committed_text_names_a_path_of_some_machine() -> None:
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in committed()
        for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def committed() -> list[Path]:
    """What git knows; where there is no git, or no checkout, all that lies here but products and caches."""
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z"]
    try:
        run = subprocess.run(git, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return written()
    return [path for path in (ROOT / name for name in run.stdout.split("\0")) if path.is_file()]


def written() -> list[Path]:
    """All files here but products and caches."""
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if not is_product(name)]
        found += [Path(folder, name) for name in names if not is_product(name)]
    return found


def is_product(name: str) -> bool:
    return name != ".ci" and any(fnmatch(name, pattern) for pattern in PRODUCTS)


def test_without_git_no_committed_text_is_overlooked() -> None:
    assert set(committed()) <= {*written(), ROOT / ".gitignore"}


def test_completion_offers_public_names_only() -> None:
    assert set(dir(polarmap)) == {*polarmap.__all__, "__version__", "glm"}
