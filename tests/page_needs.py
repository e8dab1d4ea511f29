"""Find the packages that Python code needs, and the packages that a text says to install."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Distributions with a different name than their module.
MODULES = {
    "opentelemetry-api": "opentelemetry",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
# Modules that come as dependencies of others.
BROUGHT_BY = {"sklearn": {"joblib"}, "distributed": {"dask"}, "xarray": {"pandas"}}
OWN = {"polarmap", "benchmarks"}
# Public names that import packages immediately, and the module that guards each with `require_extra`.
GUARDED = {
    "CodedOperator": "linalg/operators.py",
    "sketched_lstsq": "linalg/sketch.py",
    "sketched_gram": "linalg/sketch.py",
    "glm": "glm.py",
    "convex": "convex.py",
    "convexnn": "convexnn.py",
    "xr": "xr.py",
}


@cache
def setup() -> ConfigParser:
    """Return setup.cfg."""
    settings = ConfigParser(interpolation=None)
    settings.read(ROOT / "setup.cfg")
    return settings


def extras() -> set[str]:
    """Return the names of all extras."""
    return set(setup()["options.extras_require"])


def packages_of(extra: str | None) -> set[str]:
    """Return the modules that an extra installs directly, or polarmap itself if `extra` is None."""
    section, key = ("options", "install_requires") if extra is None else ("options.extras_require", extra)
    needed = set[str]()
    for line in setup()[section][key].split():
        name, _, inner = re.match(r"([\w-]+)(\[([\w,-]+)\])?", line).groups()  # type: ignore[union-attr]
        if name == "polarmap":
            needed = needed.union(*map(packages_of, inner.split(",")))
        else:
            module = MODULES.get(name.lower(), name.lower().replace("-", "_"))
            needed |= {module, *BROUGHT_BY.get(module, ())}
    return needed


def installed_by(text: str) -> set[str]:
    """Return the modules that are available once everything named in a text is installed.

    A text names extras as `.[one,two]` of a pip command or as "extra `one`", "extras `one` and `two`".
    """
    named = {word for match in re.findall(r"\.\[([\w,-]+)\]", text) for word in match.split(",")}
    for match in re.findall(r"\bextras?\s+((?:`[\w-]+`(?:,\s+|\s+and\s+|\s+or\s+)?)+)", text):
        named.update(re.findall(r"`([\w-]+)`", match))
    single = {word for line in re.findall(r"pip install ([\w -]+)", text) for word in line.split()}
    installed = packages_of(None) | {MODULES.get(word, word) for word in single}
    return installed.union(*(packages_of(extra) for extra in named & extras()))


def needed_by_code(text: str) -> set[str]:
    """Return the modules that a program needs: its imports, and the imports behind polarmap's names."""
    tree = ast.parse(text)
    imported = _imported(tree)
    used = imported | {ast.unparse(node) for node in _run_at_once(tree) if isinstance(node, ast.Attribute)}
    words = {word for name in used if name.startswith("polarmap.") for word in name.split(".")}
    roots = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names - OWN
    return roots.union(*(needed_by_module(path) for name, path in GUARDED.items() if name in words))


def needed_by_module(path: str) -> set[str]:
    """Return the modules of the extra that a polarmap module requires when it is imported."""
    text = (ROOT / "polarmap" / path).read_text(encoding="utf-8")
    guard = re.search(r'^with require_extra\(f?"[^"]*", "([^"]*)", "[\w-]+"\)', text, re.MULTILINE)
    assert guard is not None, f"{path} does not say what it needs"
    names = guard[1].split(" and ")
    return {MODULES.get(name, name) for name in names}


def needed_by_benchmark(name: str) -> set[str]:
    """Return the modules that `python -m benchmarks...` imports, directly or through other benchmarks."""
    needed, seen, waiting = set[str](), set[str](), [name]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = ROOT / name.replace(".", "/")
        files = [path.with_suffix(".py"), path / "__init__.py", path / "__main__.py"]
        for text in [file.read_text(encoding="utf-8") for file in files if file.is_file()]:
            needed |= needed_by_code(text)
            imported = {one for one in _imported(ast.parse(text)) if one.startswith("benchmarks")}
            waiting += [one for one in imported if one != name]
    return needed


def needed_by_example(path: Path) -> set[str]:
    """Return the modules that an example imports, without the modules of the example itself."""
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    needed = set[str]().union(*(needed_by_code(file.read_text(encoding="utf-8")) for file in files))
    return needed - {file.stem for file in files}


def _run_at_once(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes of a module that run when it is imported, except for the nodes of a `try`."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Try)):
            waiting += ast.iter_child_nodes(node)


def _imported(tree: ast.Module) -> set[str]:
    """Return the names that imports at the top of a module bind, qualified by their packages."""
    bound_names = set[str]()
    for node in _run_at_once(tree):
        if isinstance(node, ast.Import):
            bound_names.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            bound_names.update(f"{node.module}.{name.name}" for name in node.names)
            if node.module.startswith("benchmarks"):
                bound_names.add(node.module)
    return bound_names
