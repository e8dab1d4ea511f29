"""FunctionExecutors made of a Lithops configuration file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from polarmap.clouds import settings
from polarmap.errors import ExecutorError
from polarmap.executors.lithops_internals import complete_config, lift_data_limit, load_lithops
from polarmap.executors.private_folder import named_for_lithops
from polarmap.worker.retry import retry_call

SETTLE_SECONDS = 0.1  # that a storage may take to finish a PUT whose sender is gone
_opened: set[Path] = set()  # configurations whose storage has answered


def read_configuration(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A configuration with Lithops' defaults, without asking anything of its cloud."""
    file = Path(path)
    config = settings.read(file)
    with _naming(file, config):
        return complete_config(file, _missing_settings(config))


def open_functions(path: str | os.PathLike[str]) -> Any:
    """A FunctionExecutor from a Lithops configuration file."""
    file = Path(path)
    config = settings.read(file)
    lithops, missing = load_lithops(), _missing_settings(config)
    build = partial(lithops.FunctionExecutor, config_file=str(file), log_level=None, **missing)
    with _naming(file, config):
        functions = retry_call(build) if file.absolute() in _opened else build()
    lift_data_limit(functions)
    _opened.add(file.absolute())
    return functions


@contextlib.contextmanager
def _naming(file: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """What Lithops raises becomes an ExecutorError that names the file, and what to install."""
    try:
        yield
    except Exception as error:
        hint = settings.extra_hint(config, error)
        raise ExecutorError(
            f"Lithops cannot use {str(file)!r}: {type(error).__name__}: {error}{hint}"
        ) from error


def _missing_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a localhost configuration should not leave to Lithops: its interpreter is `python`."""
    if settings.backend_of(config) == "localhost" and "runtime" not in (config.get("localhost") or {}):
        return {"runtime": named_for_lithops()}
    return {}
