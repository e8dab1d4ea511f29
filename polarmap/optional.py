"""What an extra of polarmap needs, and the command that installs it: polarmap itself is on no index yet."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from contextlib import contextmanager

VERSION_COMPARISONS = {"==": operator.eq, ">=": operator.ge, "<": operator.lt}
POLARMAP_EXTRA_PATTERN = re.compile(r"polarmap\[([\w,]+)\]")


@contextmanager
def require_extra(feature: str, packages: str, extra: str) -> Iterator[None]:
    """Imports of packages that not everybody has: without them, ImportError says who needs them and how."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "polarmap").partition(".")[0] == "polarmap":
            raise
        raise ImportError(f"{feature} needs {packages}: {format_extras_install_command(extra)}") from error


def format_extras_install_command(*extras: str) -> str:
    """A command that installs what these extras need, for a message.

    >>> format_extras_install_command("linalg")
    "pip install 'scipy>=1.11'"
    """
    required = sorted({text for extra in extras for text in list_requirements(extra)})
    if not required:  # run from a checkout, of which pip knows nothing
        return f"pip install '.[{','.join(extras)}]' in a checkout of polarmap"
    return format_pip_install_command(*required)


def format_pip_install_command(*requirements: str) -> str:
    """The command that installs these requirements."""
    return "pip install " + " ".join(f"'{text}'" for text in requirements)


def list_requirements(extra: str = "") -> list[str]:
    """What polarmap's metadata asks for, or for an extra and those that it names; nothing in a checkout."""
    import importlib.metadata  # for a message only

    try:
        required = importlib.metadata.requires("polarmap") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    requirement_texts = []
    for line in required:
        text, _, condition = map(str.strip, line.partition(";"))
        if condition.replace("'", '"') == (f'extra == "{extra}"' if extra else ""):
            nested_extras = POLARMAP_EXTRA_PATTERN.match(text)
            if nested_extras is None:
                requirement_texts.append(text)
            else:
                requirement_texts += [
                    nested
                    for nested_extra in nested_extras[1].split(",")
                    for nested in list_requirements(nested_extra)
                ]
    return requirement_texts


def compare_installed_version(requirement: str) -> tuple[str, str, bool]:
    """The name in a requirement such as `lithops<3.9,>=3.8`, what there is of it, and whether that will do.

    >>> compare_installed_version("no-such-package>=1")
    ('no-such-package', 'not installed', False)
    """
    import importlib.metadata

    name, bounds = re.match(r"([\w.-]+)\s*(.*)", requirement).groups()  # type: ignore[union-attr]
    try:
        installed_version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, "not installed", False
    relations = re.findall(r"(==|>=|<)\s*([\w.]+)", bounds)
    if all(
        VERSION_COMPARISONS[relation](_parse_version(installed_version), _parse_version(bound))
        for relation, bound in relations
    ):
        return name, installed_version, True
    return name, f"{installed_version}, polarmap needs {bounds}", False


def _parse_version(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]
