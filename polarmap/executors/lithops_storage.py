"""The storage of a Lithops configuration or executor, with clients that do not wait for minutes."""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from polarmap.errors import StorageError
from polarmap.executors.lithops import load_lithops

TIMEOUT = 10  # seconds to connect, and to wait for the next byte; whoever asks decides how often
_building = threading.Lock()


def open_storage(choice: Any) -> tuple[Any, str]:
    """A `lithops.Storage` of our own and its bucket, for a YAML path or a FunctionExecutor.

    Raises
    ------
    StorageError
        If Lithops cannot make one of it.
    """
    if isinstance(choice, (str, os.PathLike)):
        file = Path(choice)
        if not file.is_file():
            raise StorageError(f"there is no Lithops configuration {str(file)!r}")
        storage = _built(f"{str(file)!r}", lambda lithops: _settings_of(lithops, file))
    else:
        config = choice.storage.get_storage_config()
        storage = _built(f"lithops/{choice.backend}", lambda lithops: copy.deepcopy(config))
        storage.bucket = choice.storage.bucket  # which may be one that it made itself
    return storage, str(storage.bucket)


def _settings_of(lithops: Any, file: Path) -> dict[str, Any]:
    """The storage settings in a file; as everywhere in Lithops, localhost has localhost storage."""
    config: dict[str, Any] = lithops.config.load_yaml_config(str(file)) or {}
    section = config.setdefault("lithops", {})
    if "storage" not in section and section.get("backend", "localhost") == "localhost":
        section["storage"] = "localhost"
    complete = lithops.config.default_storage_config(config_data=config)
    settings: dict[str, Any] = lithops.config.extract_storage_config(complete)
    return settings


def _built(where: str, settings_of: Callable[[Any], dict[str, Any]]) -> Any:
    """A `lithops.Storage` whose clients wait TIMEOUT and ask once: Lithops' own ask six times.

    Its S3 clients take this from their modules, that of Redis from its settings.
    """
    try:
        lithops = load_lithops()
        settings = settings_of(lithops)
        kind = settings["backend"]
        if kind == "redis":
            settings[kind] = {**_redis_settings(), **settings[kind]}
        module = importlib.import_module(f"lithops.storage.backends.{kind}.{kind}")
        with _building, _replaced(module, CONN_READ_TIMEOUT=TIMEOUT, OBJ_REQ_RETRIES=0):
            storage = lithops.Storage(storage_config=settings)
    except Exception as error:
        raise StorageError(f"Lithops has no storage for {where}: {type(error).__name__}: {error}") from error
    for name in ("s3_client", "cos_client"):
        if hasattr(storage.storage_handler, name):
            client = getattr(storage.storage_handler, name)
            setattr(storage.storage_handler, name, _Impatient(client))
    return storage


def _redis_settings() -> dict[str, Any]:
    once = importlib.import_module("redis.backoff").NoBackoff()
    retry = importlib.import_module("redis.retry").Retry(once, 0)
    return {"socket_connect_timeout": TIMEOUT, "socket_timeout": TIMEOUT, "retry": retry}


@contextlib.contextmanager
def _replaced(module: Any, **settings: Any) -> Iterator[None]:
    """Give those settings that a module has other values for a while."""
    before = {name: getattr(module, name) for name in settings if hasattr(module, name)}
    try:
        for name in before:
            setattr(module, name, settings[name])
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


class _Impatient:
    """A botocore client whose read timeouts Lithops does not see, so that it does not ask again."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if not callable(value):
            return value

        def ask(*args: Any, **options: Any) -> Any:
            try:
                return value(*args, **options)
            except Exception as error:
                if type(error).__name__ == "ReadTimeoutError":
                    raise TimeoutError(str(error)) from error
                raise

        return ask
