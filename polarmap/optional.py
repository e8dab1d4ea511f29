"""Optional dependencies (extras), and error messages that say how to install them.

The install commands list the packages and not the extra, because polarmap is not on a package index yet.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from contextlib import contextmanager

VERSION_COMPARISONS = {"==": operator.eq, ">=": operator.ge, "<": operator.lt}
POLARMAP_EXTRA_PATTERN = re.compile(r"polarmap\[([\w,]+)\]")


@contextmanager
def require_extra(feature: str, packages: str, extra: str) -> Iterator[None]:
    """Convert a failed import inside this context to an ImportError that says what to install.

    The message states that `feature` requires `packages`, and gives the pip command that installs `extra`.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "polarmap").partition(".")[0] == "polarmap":
            raise
        raise ImportError(f"{feature} needs {packages}: {format_extras_install_command(extra)}") from error


def format_extras_install_command(*extras: str) -> str:
    """Return the pip command that installs the packages of one or more extras, to show to the user.

    >>> format_extras_install_command("linalg")
    "pip install 'scipy>=1.11'"
    """
    required = sorted({text for extra in extras for text in list_requirements(extra)})
    if not required:  # polarmap is not installed, so there is no metadata.
        return f"pip install '.[{','.join(extras)}]' in a checkout of polarmap"
    return format_pip_install_command(*required)


def format_pip_install_command(*requirements: str) -> str:
    """Return the pip command that installs the given requirements, such as "scipy>=1.11"."""
    return "pip install " + " ".join(f"'{text}'" for text in requirements)


def list_requirements(extra: str = "") -> list[str]:
    """Return the requirements of polarmap or of one of its extras, such as "scipy>=1.11".

    The list is empty if polarmap is run from a checkout without being installed.
    """
    import importlib.metadata  # lazy import: slow, and needed only for messages

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
    """Check whether the installed version of a package meets a requirement such as `lithops<3.9,>=3.8`.

    Returns the name of the package, its installed version (with an explanation if the requirement is not
    met), and whether the requirement is met.

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
