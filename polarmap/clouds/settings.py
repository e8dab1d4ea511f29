"""Lithops configuration files as data: which backend they name and what is still to be filled in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from polarmap.clouds.extras import install_command
from polarmap.clouds.runtimes import RUNTIMES
from polarmap.errors import ExecutorError

OF_STORAGES = {
    "aws",
    "azure",
    "gcp",
    "ibm",
}  # extras with their client libraries: the first words of their names
_PLACEHOLDER = re.compile(r"<[^<>]+>")


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a Lithops configuration; ExecutorError unless it is one, with nothing left to fill in."""
    file = Path(path)
    if not file.is_file():
        raise ExecutorError(f"there is no Lithops configuration {str(file)!r}")
    try:
        config = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ExecutorError(f"{str(file)!r} is not YAML: {error}") from error
    except OSError as error:
        raise ExecutorError(f"{str(file)!r} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ExecutorError(
            f"{str(file)!r} holds no Lithops configuration: a mapping with a 'lithops' section"
        )
    for name in config:
        if "lithops" not in config and str(name).lower() == "lithops":
            raise ExecutorError(f"{str(file)!r}: Lithops reads no section {name!r}: call it 'lithops'")
    for name in chain(["lithops"], _named(config)):
        if not isinstance(section := config.get(name) or {}, dict):
            kind = type(section).__name__
            raise ExecutorError(f"{str(file)!r}: the section {name!r} must be a mapping, not a {kind}")
    missing = [f"{key}: {value}" for key, value in placeholders(config)]
    if missing:
        raise ExecutorError(
            f"{str(file)!r} is a template: copy it and fill in\n  "
            + "\n  ".join(missing)
            + "\n(what these are stands in the comments of the file)"
        )
    return config


def read_for(path: str | os.PathLike[str], backend: str) -> dict[str, Any]:
    """Read a complete configuration of a backend; ExecutorError for one of another, too."""
    config = read(path)
    if backend_of(config) != backend:
        raise ExecutorError(f"{path} is for {backend_of(config)!r}, not for {backend!r}")
    return config


def placeholders(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys whose values still hold something in <angle brackets>, and those values.

    >>> list(placeholders({"aws": {"region": "<region>"}, "lithops": {"backend": "aws_lambda"}}))
    [('aws.region', '<region>')]
    """
    for key, value in config.items():
        if isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            yield from placeholders(value, f"{above}{key}.")
        elif isinstance(value, str) and _PLACEHOLDER.search(value):
            yield f"{above}{key}", value


def backend_of(config: Mapping[str, Any]) -> str:
    """The compute backend a configuration names; Lithops takes aws_lambda when it names none.

    >>> backend_of({"lithops": {"backend": "k8s"}}), backend_of({})
    ('k8s', 'aws_lambda')
    """
    return str((config.get("lithops") or {}).get("backend", "aws_lambda"))


def extra_hint(config: Mapping[str, Any], error: BaseException) -> str:
    """What to install when Lithops lacks a client library; nothing where polarmap does not know.

    >>> extra_hint({"lithops": {"backend": "k8s"}}, ModuleNotFoundError("No module named 'kubernetes'"))
    "; install it: pip install 'boto3' 'lithops[kubernetes]<3.9,>=3.8'"
    """
    backend, storage = _named(config)
    if not isinstance(error, ModuleNotFoundError) or backend not in RUNTIMES:
        return ""
    extras = {RUNTIMES[backend].extra, *OF_STORAGES.intersection([storage.partition("_")[0]])} - {""}
    return f"; install it: {install_command(*sorted(extras))}" if extras else ""


def _named(config: Mapping[str, Any]) -> Iterator[str]:
    """The sections that the general one names: those of backend and storage."""
    yield backend_of(config)
    yield str((config.get("lithops") or {}).get("storage", ""))
