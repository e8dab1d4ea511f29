"""Read and validate Lithops configuration files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from polarmap.clouds.runtime_images import RUNTIME_IMAGES
from polarmap.errors import ExecutorError
from polarmap.optional import format_extras_install_command

# The optional dependencies (extras) of polarmap that install the client library of a storage. The name of the
# extra is the first part of the storage's name in Lithops: "aws_s3" needs polarmap[aws].
STORAGE_EXTRAS = {
    "aws",
    "azure",
    "gcp",
    "ibm",
}
_PLACEHOLDER_PATTERN = re.compile(r"<[^<>]+>")


def read_config(config_path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a Lithops configuration file.

    Raises ExecutorError if the file does not exist, is not a valid configuration, or still contains template
    placeholders.
    """
    file = Path(config_path)
    if not file.is_file():
        raise ExecutorError(f"the Lithops configuration {str(file)!r} does not exist")
    try:
        config = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ExecutorError(f"{str(file)!r} is not YAML: {error}") from error
    except OSError as error:
        raise ExecutorError(f"{str(file)!r} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ExecutorError(
            f"{str(file)!r} is not a Lithops configuration, which is a mapping with a section 'lithops'"
        )
    for name in config:
        if "lithops" not in config and str(name).lower() == "lithops":
            raise ExecutorError(f"{str(file)!r}: Lithops ignores the section {name!r}: name it 'lithops'")
    for name in chain(["lithops"], _list_referenced_sections(config)):
        if not isinstance(section := config.get(name) or {}, dict):
            type_name = type(section).__name__
            raise ExecutorError(f"{str(file)!r}: the section {name!r} must be a mapping, not a {type_name}")
    unfilled = [f"{key}: {value}" for key, value in find_placeholders(config)]
    if unfilled:
        raise ExecutorError(
            f"{str(file)!r} is a template. Copy it, and fill in these settings:\n  "
            + "\n  ".join(unfilled)
            + "\nThe comments of the file explain them."
        )
    return config


def read_config_for_backend(config_path: str | os.PathLike[str], backend: str) -> dict[str, Any]:
    """Read a Lithops configuration file, and check that it configures the given compute backend.

    Raises ExecutorError if the file is invalid or configures another backend.
    """
    config = read_config(config_path)
    if get_backend_name(config) != backend:
        raise ExecutorError(f"{config_path} is for {get_backend_name(config)!r}, not for {backend!r}")
    return config


def find_placeholders(config: Mapping[str, Any], key_prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the value of each setting that the user has not filled in yet.

    Such a setting still contains a placeholder in <angle brackets>.

    >>> list(find_placeholders({"aws": {"region": "<region>"}, "lithops": {"backend": "aws_lambda"}}))
    [('aws.region', '<region>')]
    """
    for key, value in config.items():
        if isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            yield from find_placeholders(value, f"{key_prefix}{key}.")
        elif isinstance(value, str) and _PLACEHOLDER_PATTERN.search(value):
            yield f"{key_prefix}{key}", value


def get_backend_name(config: Mapping[str, Any]) -> str:
    """Return the name of a configuration's compute backend, which defaults to aws_lambda as in Lithops.

    >>> get_backend_name({"lithops": {"backend": "k8s"}}), get_backend_name({})
    ('k8s', 'aws_lambda')
    """
    return str((config.get("lithops") or {}).get("backend", "aws_lambda"))


def make_missing_client_hint(config: Mapping[str, Any], error: BaseException) -> str:
    """Return a hint on how to install the client libraries that a configuration needs.

    Return "" if `error` is not a ModuleNotFoundError, or if the backend is not known.

    >>> error = ModuleNotFoundError("No module named 'kubernetes'")
    >>> make_missing_client_hint({"lithops": {"backend": "k8s"}}, error)
    "; install it: pip install 'boto3' 'lithops[kubernetes]<3.9,>=3.8'"
    """
    backend, storage = _list_referenced_sections(config)
    if not isinstance(error, ModuleNotFoundError) or backend not in RUNTIME_IMAGES:
        return ""
    storage_extras = STORAGE_EXTRAS.intersection([storage.partition("_")[0]])
    extras = {RUNTIME_IMAGES[backend].polarmap_extra, *storage_extras} - {""}
    return f"; install it: {format_extras_install_command(*sorted(extras))}" if extras else ""


def _list_referenced_sections(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of two sections of the configuration: the compute backend's and the storage's.

    Examples are "aws_lambda" and "aws_s3".
    """
    yield get_backend_name(config)
    yield str((config.get("lithops") or {}).get("storage", ""))
