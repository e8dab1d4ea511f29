"""What an extra of polarmap needs, and the command that installs it: polarmap itself is on no index yet."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from contextlib import contextmanager

RELATIONS = {"==": operator.eq, ">=": operator.ge, "<": operator.lt}
OF_POLARMAP = re.compile(r"polarmap\[([\w,]+)\]")


@contextmanager
def needed_by(who: str, packages: str, extra: str) -> Iterator[None]:
    """Imports of packages that not everybody has: without them, ImportError says who needs them and how."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "polarmap").partition(".")[0] == "polarmap":
            raise
        raise ImportError(f"{who} needs {packages}: {install_command(extra)}") from error


def install_command(*extras: str) -> str:
    """A command that installs what these extras need, for a message.

    >>> install_command("linalg")
    "pip install 'scipy>=1.11'"
    """
    needed = sorted({text for extra in extras for text in requirements(extra)})
    if not needed:  # run from a checkout, of which pip knows nothing
        return f"pip install '.[{','.join(extras)}]' in a checkout of polarmap"
    return pip_install(*needed)


def pip_install(*needed: str) -> str:
    """The command that installs these requirements."""
    return "pip install " + " ".join(f"'{text}'" for text in needed)


def requirements(extra: str = "") -> list[str]:
    """What polarmap's metadata asks for, or for an extra and those that it names; nothing in a checkout."""
    import importlib.metadata  # for a message only

    try:
        required = importlib.metadata.requires("polarmap") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in required:
        text, _, condition = map(str.strip, line.partition(";"))
        if condition.replace("'", '"') == (f'extra == "{extra}"' if extra else ""):
            others = OF_POLARMAP.match(text)
            if others is None:
                found.append(text)
            else:
                found += [one for other in others[1].split(",") for one in requirements(other)]
    return found


def installed(requirement: str) -> tuple[str, str, bool]:
    """The name in a requirement such as `lithops<3.9,>=3.8`, what there is of it, and whether that will do.

    >>> installed("no-such-package>=1")
    ('no-such-package', 'not installed', False)
    """
    import importlib.metadata

    name, bounds = re.match(r"([\w.-]+)\s*(.*)", requirement).groups()  # type: ignore[union-attr]
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, "not installed", False
    relations = re.findall(r"(==|>=|<)\s*([\w.]+)", bounds)
    if all(RELATIONS[relation](_numbers(found), _numbers(wanted)) for relation, wanted in relations):
        return name, found, True
    return name, f"{found}, polarmap needs {bounds}", False


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]
