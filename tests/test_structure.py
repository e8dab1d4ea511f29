"""Check the architecture: which module may import which, names, and where a module's tests are."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The layers from top to bottom. A component is a subpackage of polarmap or a module at its top. A module may
# import from its own component and from the layers below. Imports inside functions and for type checkers
# count.
LAYERS = [
    ["__main__"],
    ["cli"],
    ["__init__"],
    # Lists of public names.
    ["convex", "convexnn", "glm", "testing", "types"],
    ["models"],
    ["linalg", "joblib", "xr"],
    ["maps"],
    ["arrays", "planning"],
    ["driver"],
    ["blocks"],
    ["executors", "report"],
    # These use only the attributes of a report, since Report.save_html and Report.plot import them.
    ["live"],
    ["plot"],
    ["storage", "codes", "clouds"],
    ["validation"],
    ["dtypes"],
    ["worker", "errors", "lazy_names", "optional"],
]

SHARED = {"dtypes", "errors", "lazy_names", "optional", "validation", "worker"}
# Modules without imports from the package, since they are sent to workers or read on their own.
OF_WORKERS = ("finite_differences", "segments", "processes", "environment", "blas_threads", "daemon_threads")
STAND_ALONE = ["polarmap.errors", *[f"polarmap.worker.{name}" for name in OF_WORKERS]]
# Components and modules that import only the package and the standard library.
WITHOUT_NUMPY = [
    *["polarmap.__main__", "polarmap.clouds.limits", "polarmap.clouds.prices", "polarmap.errors"],
    *[
        "polarmap.storage",
        "polarmap.worker.segments",
        "polarmap.worker.processes",
        "polarmap.worker.environment",
    ],
]
CLI = ["polarmap.cli", *[f"polarmap.cli.{one.stem}" for one in (ROOT / "polarmap" / "cli").glob("[!_]*.py")]]
ESTIMATORS = [
    f"polarmap.models.estimators.{path.stem}"
    for path in (ROOT / "polarmap" / "models" / "estimators").glob("[!_]*.py")
]
# Import -> the only modules that may contain it. Every library except numpy is listed here.
ONLY_FROM = {
    "lithops": ["polarmap.executors.lithops_internals", "polarmap.cli.deploy"],
    "click": CLI,
    "h5py": ["polarmap.cli.arrays"],
    "zarr": ["polarmap.cli.arrays"],
    "cloudpickle": [
        *("polarmap.executors.pickling", "polarmap.worker.pickled_values", "polarmap.worker.task_records"),
        *("polarmap.executors.module_state", "polarmap.worker.module_state"),
    ],
    "cryptography": ["polarmap.worker.encryption"],
    "distributed": ["polarmap.executors.dask", "polarmap.worker.cluster_segments"],
    "ray": ["polarmap.executors.ray", "polarmap.worker.cluster_segments"],
    "threadpoolctl": ["polarmap.worker.blas_threads"],
    "yaml": ["polarmap.clouds.lithops_config"],
    "joblib": ["polarmap.joblib"],
    "opentelemetry": ["polarmap.driver.observers"],
    "tqdm": ["polarmap.driver.observers"],
    "tornado": ["polarmap.live.dashboard"],
    "rich": ["polarmap.live.terminal", "polarmap.cli.top"],
    # IPython is imported only in a notebook, where it is available.
    "IPython": ["polarmap.driver.observers", "polarmap.live.notebook"],
    "xarray": ["polarmap.xr"],
    "numba": ["polarmap.codes.compute.transforms_numba"],
    "scipy": [
        *["polarmap.linalg.operators", "polarmap.linalg.sketch", "polarmap.blocks.sparse"],
        *[f"polarmap.models.{name}" for name in ("losses", "operators", "penalties", "whitening")],
        *[
            f"polarmap.models.solvers.{name}"
            for name in ("cone_interior_point", "least_squares", "smooth_solvers")
        ],
        *[f"polarmap.models.estimators.{name}" for name in ("coded_estimator", "convex_network", "svm")],
    ],
    "pyproximal": ["polarmap.models.projections", "polarmap.models.estimators.sparse_models"],
    "sklearn": [
        "polarmap.models.iteration_log",
        *[f"polarmap.models.estimators.{name}" for name in ("coded_estimator", "convex_network", "poisson")],
    ],
    "matplotlib": [
        *(f"polarmap.plot.{name}" for name in ["figure_style", "notebook_figure", "timeline"]),
        "polarmap.planning.figures",
        # These modules name the type of their return value.
        *("polarmap.report", "polarmap.planning.planner"),
    ],
    "polarmap.cli": ["polarmap.__main__", *CLI],
    # Losses, operators and solvers do not use estimators.
    "polarmap.models.estimators": ["polarmap.convex", "polarmap.convexnn", "polarmap.glm", *ESTIMATORS],
    "polarmap.codes.compute.transforms_numba": ["polarmap.codes.compute.block_matmul"],
    "polarmap.maps.coded": [
        "polarmap",
        *[f"polarmap.cli.{name}" for name in ("demo", "doctor")],
        "polarmap.maps.submission",
        "polarmap.xr",
    ],
    # No other code inspects the argument `executor=`.
    "polarmap.executors.executor_specs": ["polarmap.executors.recognition", "polarmap.cli.output"],
    "polarmap.executors.recognition": ["polarmap.executors", "polarmap.executors.pool"],
    "polarmap.driver.coded_collector": ["polarmap.arrays.stored_result", "polarmap.driver.prepared_map"],
    "polarmap.driver.uncoded_collector": [
        *["polarmap.arrays.array_jobs", "polarmap.driver.batch_collectors", "polarmap.planning.measurement"]
    ],
}
# Standard library that mathematics does not need; only encode spreads its sums over the cores.
CLOCKS_AND_IO = {
    *["datetime", "sched", "signal", "time"],
    *["asyncio", "concurrent", "multiprocessing", "subprocess", "threading"],
    *["http", "io", "logging", "os", "pathlib", "select", "shutil", "socket", "tempfile", "urllib"],
    *["random", "secrets"],
}
SPREADS_OVER_CORES = {"polarmap.codes.compute.tiling": {"concurrent"}}

SHAPELESS_NAMES = {"common", "core", "helper", "helpers", "manager", "misc", "util", "utils"}

# Folders of tests/ whose files need not be named after a module.
WHOLE = {"maps", "cloud", "cpython", "site", "soak", "benchmarks", "testbed"}
# Files at the top of tests/ that test the project, not a module.
PROJECT = {
    *["docs", "examples", "gallery", "makefile", "other_systems", "packaging", "recipes", "release_check"],
    *["public_api", "session", "slow_links", "soak", "structure", "texts", "docstrings"],
}

# --- imports -----------------------------------------------------------------------------------


@cache
def modules() -> dict[str, Path]:
    """Return the file of every module of the package, by dotted name."""
    return {dotted(path): path for path in sorted((ROOT / "polarmap").rglob("*.py"))}


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(module: str) -> frozenset[str]:
    """Return the full names of all modules that `module` imports, also inside functions and for type
    checkers.
    """
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    return frozenset(name for node in ast.walk(tree) for name in targets(node))


def targets(node: ast.AST) -> Iterable[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert not node.level, "imports inside the package are absolute"
        named = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in modules() else str(node.module) for name in named]
    return []


def is_within(name: str, packages: Iterable[str]) -> bool:
    """Return whether a module is one of these, or is inside one of these packages."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def libraries(module: str) -> set[str]:
    """Return the third-party modules that `module` imports."""
    names = {name.split(".")[0] for name in imports(module)}
    return {name for name in names if name != "polarmap" and name not in sys.stdlib_module_names}


def component_of(module: str) -> str:
    """Return the subpackage, or the module at the top of the package, that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def cross_imports() -> list[tuple[str, str]]:
    """Return importer and imported module of each import between different components."""
    pairs = [(module, name) for module in modules() for name in sorted(imports(module) & modules().keys())]
    return [(module, name) for module, name in pairs if component_of(module) != component_of(name)]


def test_every_component_is_in_one_layer() -> None:
    components = [component for layer in LAYERS for component in layer]
    assert sorted(components) == sorted({component_of(module) for module in modules()})


def test_no_layer_imports_from_one_above() -> None:
    # This also excludes cycles of components.
    layer = {component: index for index, components in enumerate(LAYERS) for component in components}
    upward = [
        (importer, imported)
        for importer, imported in cross_imports()
        if layer[component_of(importer)] >= layer[component_of(imported)]
    ]
    assert upward == []


def test_no_import_cycle() -> None:
    graph = {module: imports(module) & modules().keys() - {module} for module in modules()}
    TopologicalSorter(graph).prepare()  # Raises CycleError, which names the cycle.


@pytest.mark.parametrize("module", STAND_ALONE)
def test_some_modules_stand_alone(module: str) -> None:
    assert imports(module) & modules().keys() == set()


@pytest.mark.parametrize("package", WITHOUT_NUMPY)
def test_some_packages_need_only_the_standard_library(package: str) -> None:
    libraries_by_module = {module: libraries(module) for module in modules() if is_within(module, [package])}
    assert libraries_by_module and not any(libraries_by_module.values())


def test_every_library_has_its_importers_listed() -> None:
    assert {name for module in modules() for name in libraries(module)} - {"numpy"} <= ONLY_FROM.keys()


def test_listed_modules_exist() -> None:
    names = {name for importers in ONLY_FROM.values() for name in importers} | {*STAND_ALONE, *WITHOUT_NUMPY}
    internal = {name for name in ONLY_FROM if is_within(name, ["polarmap"])}
    assert {name for name in names | internal if name not in modules()} == set()


@pytest.mark.parametrize("name", ONLY_FROM)
def test_restricted_imports_occur_only_in_listed_modules(name: str) -> None:
    importers = {module for module in modules() if any(is_within(one, [name]) for one in imports(module))}
    assert importers <= set(ONLY_FROM[name])


@pytest.mark.parametrize("module", [name for name in modules() if is_within(name, ["polarmap.codes"])])
def test_mathematics_has_no_clock_thread_or_io(module: str) -> None:
    used = {name.split(".")[0] for name in imports(module)} & CLOCKS_AND_IO
    assert used <= SPREADS_OVER_CORES.get(module, set())


@pytest.mark.parametrize("module", modules())
def test_only_mathematics_uses_threads_that_are_not_daemons(module: str) -> None:
    # A thread that waits for a storage or a socket, which may hang, must be a daemon.
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    created = {"Thread": list[ast.Call](), "ThreadPoolExecutor": list[ast.Call]()}
    for call in calls:
        created.get(ast.unparse(call.func).rpartition(".")[2], []).append(call)
    assert not created["ThreadPoolExecutor"] or module in SPREADS_OVER_CORES
    for call in created["Thread"]:
        assert "daemon=True" in {ast.unparse(one) for one in call.keywords}, ast.unparse(call)


HEAVY = {"lithops", "click", "numba", "matplotlib", "tqdm", "sklearn", "scipy", "distributed", "dask", "yaml"}
HEAVY |= {"opentelemetry", "ray", "IPython", "xarray", "pyproximal", "cryptography"}


STEPS = [
    "import polarmap; dir(polarmap)",
    "import numpy; polarmap.coded_map(numpy.copy, numpy.eye(8), blocks=4)",
    "from polarmap.executors import executor_specs as c\n"
    "checks = c.is_localhost_spec, c.is_config_path, c.is_dask_client, c.is_ray_spec, c.is_lithops_executor\n"
    "[check(object()) for check in checks]",
    "import polarmap.glm",
    "import polarmap.convex, polarmap.convexnn",
]


@pytest.fixture(scope="module")
def loaded() -> list[set[str]]:
    """Return the modules that a Python process has loaded after each step."""
    print_modules = "\nimport json, sys; print(json.dumps(sorted(sys.modules)))\n"
    command = [sys.executable, "-c", print_modules.join([*STEPS, ""])]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return [set(json.loads(line)) for line in run.stdout.splitlines()]


def test_importing_polarmap_imports_nothing_else(loaded: list[set[str]]) -> None:
    assert {name for name in loaded[0] if is_within(name, ["polarmap"])} == {
        "polarmap",
        "polarmap.lazy_names",
    }
    assert {"numpy", *HEAVY} & loaded[0] == set()


def test_a_plain_map_imports_no_heavy_library(loaded: list[set[str]]) -> None:
    assert HEAVY & loaded[1] == set()
    internal = {name for name in loaded[1] if is_within(name, ["polarmap"])}
    above = {"__init__", "blocks", "clouds", "codes", "executors", "live", "maps", "report", "driver"}
    assert "polarmap.live.hub" not in internal
    assert {component_of(name) for name in internal} == {*above, *SHARED}
    assert len(internal) <= 100


def test_recognizing_an_executor_imports_no_library(loaded: list[set[str]]) -> None:
    assert HEAVY & loaded[2] == set()


def test_models_of_the_extra_glm_need_no_other_extra(loaded: list[set[str]]) -> None:
    assert HEAVY & loaded[3] <= {"scipy", "sklearn"}


def test_convex_models_do_not_import_pyproximal(loaded: list[set[str]]) -> None:
    # Importing pyproximal takes as long as everything else together.
    assert HEAVY & loaded[4] <= {"scipy", "sklearn"}


@pytest.mark.parametrize("package", [name for name, path in modules().items() if path.stem == "__init__"])
def test_no_package_has_a_function_with_the_name_of_its_module(package: str) -> None:
    # Otherwise the meaning of the name depends on earlier imports: f once got the module in workers.
    attributes = vars(importlib.import_module(package))
    names = [name.rpartition(".")[2] for name in modules() if name.rpartition(".")[0] == package]
    assert [name for name in names if not inspect.ismodule(attributes.get(name, inspect))] == []


def test_no_module_has_a_shapeless_name() -> None:
    parts = {part for module in modules() for part in module.split(".")}
    assert parts & SHAPELESS_NAMES == set()


# --- asserts, which `python -O` leaves out ------------------------------------------------------

PURE_FUNCTIONS = {"callable", "isinstance", "issubclass", "len"}
PURE_NODES = (
    *(ast.BoolOp, ast.Compare, ast.Constant, ast.Name, ast.Tuple, ast.UnaryOp),
    *(ast.boolop, ast.cmpop, ast.expr_context, ast.unaryop),
)


@cache
def computed_attributes() -> frozenset[str]:
    """Return the names of all properties and cached properties of the package, whatever their class."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in modules().values())
    functions = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return frozenset(
        function.name
        for function in functions
        if any(ast.unparse(decorator).endswith("property") for decorator in function.decorator_list)
    )


def is_pure(node: ast.AST) -> bool:
    """Return whether evaluating a part of an expression, without its own parts, changes nothing.

    Names, constants, comparisons, plain attributes and a few built-in functions are pure. An attribute is
    plain if no class of the package has a property of that name.
    """
    if isinstance(node, ast.Attribute):
        return node.attr not in computed_attributes()
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in PURE_FUNCTIONS and not node.keywords
    return isinstance(node, PURE_NODES)


def impure_asserts(source: str) -> list[str]:
    """Return the conditions of all assert statements that may have a side effect."""
    asserts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]
    return [ast.unparse(one.test) for one in asserts if not all(map(is_pure, ast.walk(one.test)))]


def test_no_assert_has_a_side_effect() -> None:
    conditions_by_module = {
        module: impure_asserts(path.read_text(encoding="utf-8")) for module, path in modules().items()
    }
    assert {module: conditions for module, conditions in conditions_by_module.items() if conditions} == {}


@pytest.mark.parametrize(
    "condition",
    ["self.seed >= 0", "x.pop()", "(y := x)", "x[0]", "f(x)", "len(x.target_matrix)", "all(x)", "x + 1"],
)
def test_asserts_with_calls_or_properties_are_detected(condition: str) -> None:
    assert impure_asserts(f"assert {condition}") == [ast.unparse(ast.parse(condition).body[0].value)]  # type: ignore[attr-defined]
    pure = "x is not None and isinstance(x, (A, b.C)) and not 1 < len(x.leaves_of_it)"
    assert impure_asserts(f"assert {pure}, {condition}") == []


# --- names --------------------------------------------------------------------------------------

# Words that only this project would use in names, and the usual words for them.
PRIVATE_WORDS = {
    "afresh": "again or new",
    "alike": "equal, or same_x",
    "anew": "again or new",
    "beside": "parallel or alongside",
    "door": "entry_point",
    "fewest": "min_x",
    "floor": "layer; of a number, min_x",
    "gone": "lost, closed or unavailable",
    "home": "driver",
    "house": "package",
    "kin": "related",
    "least": "min_x",
    "lies": "location or stored",
    "lot": "batch",
    "made": "created or built",
    "meanwhile": "current or concurrent",
    "most": "max_x",
    "odd": "unexpected or inconsistent",
    "ours": "own or internal",
    "room": "package or capacity",
    "said": "message or state",
    "stay": "persistent or is_stored",
    "stays": "persistent or is_stored",
    "tell": "notify, report or describe",
    "theirs": "other or external",
    "those": "the plural of what they are",
    "told": "notified, reported or described",
    "unlike": "different",
    "who": "source, caller or owner",
    "whom": "target or receiver",
    "withdraw": "cancel",
}


def words_of(name: str) -> list[str]:
    """Split an identifier at underscores and before capitals.

    "Least squares" is a term of the field.
    """
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", re.sub(r"[Ll]east_?[Ss]quares", "", name))
    return [part.lower() for part in parts]


def defined_names(module: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of all classes, functions, parameters, variables and attributes of a module."""
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


@pytest.mark.parametrize("module", modules())
def test_names_use_the_words_of_the_field(module: str) -> None:
    violations = [
        f"line {line}: {name} contains {word!r}; say {PRIVATE_WORDS[word]}"
        for line, name in defined_names(module)
        for word in words_of(name)
        if word in PRIVATE_WORDS
    ]
    assert violations == []


@pytest.mark.parametrize("module", modules())
def test_predicates_begin_with_is_has_or_can(module: str) -> None:
    violations = [
        f"line {line}: {name}" for line, name in defined_names(module) if words_of(name)[:1] == ["are"]
    ]
    assert violations == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("told_tasks", ["told", "tasks"]),
        ("HTTPServer2", ["http", "server", "2"]),
        ("NonNegativeLeastSquares", ["non", "negative"]),
    ],
)
def test_names_are_split_into_words(name: str, words: list[str]) -> None:
    assert words_of(name) == words


# --- tests mirror the package ------------------------------------------------------------------


def own_tests(module: str) -> Path:
    """Return the path of a module's tests below tests/; tests of an __init__ are named after its folder."""
    *folders, name = modules()[module].relative_to(ROOT).with_suffix("").parts
    return Path(*folders[1:], f"test_{folders[-1] if name == '__init__' else name}.py")


def files_of_tests() -> set[Path]:
    """Return the paths of all test files, relative to tests/."""
    return {path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}


def has_behaviour(module: str) -> bool:
    """Return whether a module defines a function or method whose body is more than a docstring."""
    defined = ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8")))
    return any(isinstance(one, ast.FunctionDef) and not is_bare(one) for one in defined)


def is_bare(function: ast.FunctionDef) -> bool:
    """Return whether a function does nothing, like a member of a protocol."""
    return all(isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) for one in function.body)


def test_every_test_file_is_named_after_a_module() -> None:
    known = {own_tests(module) for module in modules()} | {Path(f"test_{name}.py") for name in PROJECT}
    assert {path for path in files_of_tests() - known if path.parts[0] not in WHOLE} == set()


def test_every_module_with_behaviour_has_its_tests() -> None:
    without = {own_tests(module) for module in modules() if has_behaviour(module)} - files_of_tests()
    assert not without
