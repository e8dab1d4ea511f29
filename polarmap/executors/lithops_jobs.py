"""FunctionExecutors of Lithops: how they are opened, given functions to run, and seen to end them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from polarmap.clouds import settings
from polarmap.errors import ExecutorError
from polarmap.executors.base import check_folder
from polarmap.executors.choices import is_localhost, is_of_lithops, is_path
from polarmap.executors.lithops_internals import (
    LostError,
    another_like,
    complete_config,
    end,
    ended_silently,
    has_ended,
    interpreter_error,
    keep_monitoring,
    leave,
    load_lithops,
    localhost_functions,
    named_for_lithops,
    objects_of,
    result_of,
)
from polarmap.executors.pickling import pickled_by_value
from polarmap.worker.parts import Place
from polarmap.worker.retry import retry_call

LISTING_SECONDS = 0.1  # between two looks that may ask a storage
SETTLE_SECONDS = 0.1  # that a storage may take to finish a PUT whose sender is gone

TOO_MUCH_ADVICE = (
    ": tasks are told of many parts; say data_limit: 0 in the lithops section of the configuration, or use "
    "fewer and larger parts (memory= of encode)"
)
_answered: set[Path] = set()  # configurations whose storage has answered


class InterpreterError(LostError):
    """A function ended without a result, as its interpreter can run none."""


class Jobs:
    """A FunctionExecutor, and the functions that it was given to run, by key.

    Parameters
    ----------
    choice : "localhost", path or lithops.FunctionExecutor
        With "localhost" there is a process for each function, and all files lie in our temporary folder.
    shares : bool
        Whether a FunctionExecutor is used itself, and left open; else one that is opened like it.
    slots : int or None
        Of one that is opened like a FunctionExecutor on this machine; None: as many as that has.

    Attributes
    ----------
    functions : lithops.FunctionExecutor
    running : dict
        From key to future, of what has not ended as far as is known.
    is_here : bool
        Whether functions run on this machine, where one FunctionExecutor runs its jobs one after another.
    is_private : bool
        Whether "localhost" was chosen.
    """

    def __init__(self, choice: Any, shares: bool = False, slots: int | None = None) -> None:
        self.is_private = is_localhost(choice)
        self._is_owned = not (shares and is_of_lithops(choice))
        if not self._is_owned:
            self.functions = choice
        elif self.is_private:
            self.functions = localhost_functions(1)
        else:
            self.functions = open_functions(choice) if is_path(choice) else another_like(choice, slots)
        self.is_here = self.functions.backend == "localhost"
        self.name = "localhost" if self.is_private else f"lithops/{self.functions.backend}"
        self.running: dict[Any, Any] = {}
        self._unbegun: set[Any] = set()
        self._names: set[str] = set()  # by which Lithops knows the jobs
        self._next_look = 0.0

    def another(self, slots: int | None = None) -> Jobs:
        """The same with a FunctionExecutor of its own; ExecutorError if Lithops makes none now."""
        try:
            return Jobs("localhost" if self.is_private else self.functions, slots=slots)
        except Exception as error:
            raise ExecutorError(f"{self.name} takes no job: {_text(error)}") from error

    def start(self, task: Any, items: Mapping[Any, dict[str, Any]], **options: Any) -> None:
        """Hand functions to Lithops as one job: a task with an item each; ExecutorError if it takes none."""
        if self.is_private:
            # One that sleeps keeps none from starting.
            self.functions.config["localhost"]["worker_processes"] = len(items)
            options["include_modules"] = None
        else:  # Pure-Python modules that f needs travel along; polarmap's worker side does so by value.
            options["exclude_modules"] = ["polarmap", "numpy"]
        try:
            with pickled_by_value():
                futures = self.functions.map(task, list(items.values()), chunksize=1, **options)
        except Exception as error:
            reason = interpreter_error(self.functions) or _text(error)
            advice = TOO_MUCH_ADVICE if "maximum size" in str(error) else ""
            raise ExecutorError(f"{self.name} takes no job: {reason}{advice}") from error
        self.running |= zip(items, futures, strict=True)
        self._unbegun.update(items)
        self._names |= {future.job_key for future in futures}

    def begun(self) -> list[Any]:
        """Those that came to run since the last look: elsewhere at once, as far as is known."""
        found = [key for key in self._unbegun if not self.is_here or self.running[key].running]
        self._unbegun.difference_update(found)
        return found

    def ended(self, may_ask: bool = True) -> dict[Any, Any]:
        """What each has returned that ended since the last look: a LostError if nothing.

        may_ask : their interpreter, why processes have ended without a word.
        """
        done = {key: future for key, future in self.running.items() if has_ended(future)}
        found = {key: self._result(self.running.pop(key)) for key in done}
        if time.monotonic() >= self._next_look:
            found |= self._ended_silently(may_ask)
            self._next_look = time.monotonic() + LISTING_SECONDS
        self._unbegun -= found.keys()
        return found

    def close(self) -> list[str]:
        """Drop or kill what runs; what the keys of the objects begin with that are left."""
        futures = list(self.running.values())
        self.running.clear()
        if self._is_owned:
            end(self.functions)
            return objects_of([self.functions.executor_id])
        leave(self.functions, futures, self._names)
        return objects_of(self._names)

    def check_source(self, source: Place | None, use: str) -> None:
        """ExecutorError for storage that these functions cannot reach; `use`: of the array."""
        if source is None:
            return
        if source.kind == "driver" or self.is_private:
            check_folder(source)
        if source.kind == "folder" and not self.is_here:
            raise ExecutorError(
                f"the array {use} folder {source.place!r} of this machine, which workers on "
                f"{self.functions.backend} cannot reach: use storage= of that backend"
            )
        backend = self.functions.storage.backend
        if source.kind == "bucket" and source.backend != backend:
            raise ExecutorError(
                f"the array {use} {source.backend} bucket {source.place!r}, but this executor stores in "
                f"{backend}: use the Lithops configuration of that bucket for both"
            )

    def _result(self, future: Any) -> Any:
        try:
            return result_of(future, self.functions)
        except LostError as error:
            return error
        except Exception as error:
            return LostError(_text(error))

    def _ended_silently(self, may_ask: bool) -> dict[Any, LostError]:
        """Those whose processes have ended and left nothing: killed, or their storage was away."""
        keys = {future: key for key, future in self.running.items()}
        keep_monitoring(self.functions, list(keys))
        silent = ended_silently(self.functions, list(keys))
        reason = interpreter_error(self.functions) if silent and may_ask else ""
        error = (
            InterpreterError(reason) if reason else LostError("its worker process ended without reporting")
        )
        for future in silent:
            del self.running[keys[future]]
        return {keys[future]: error for future in silent}


def close_all(jobs: Sequence[Jobs]) -> list[str]:
    """Close them; what the keys of the objects begin with that are left, when all of these are there."""
    is_late = any(one.running and not one.is_private for one in jobs)
    left = [prefix for one in jobs for prefix in one.close()]
    if is_late:  # what was on its way when its writer was killed
        time.sleep(SETTLE_SECONDS)
    return left


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


# --- configurations ----------------------------------------------------------------------------


def read_configuration(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A configuration with Lithops' defaults, without asking anything of its cloud."""
    with _configuration(path) as (file, missing):
        return complete_config(file, missing)


def open_functions(path: str | os.PathLike[str]) -> Any:
    """A FunctionExecutor from a Lithops configuration file."""
    with _configuration(path) as (file, missing):
        build = partial(load_lithops().FunctionExecutor, config_file=str(file), log_level=None, **missing)
        functions = retry_call(build) if file.absolute() in _answered else build()
    # Jobs may be told of any number of parts, unless the owner says how much: Lithops allows 4 MiB.
    functions.config["lithops"].setdefault("data_limit", 0)
    _answered.add(file.absolute())
    return functions


@contextlib.contextmanager
def _configuration(path: str | os.PathLike[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A configuration file, and what it should not leave to Lithops, whose interpreter is `python`.

    What Lithops raises becomes an ExecutorError that names the file, and what to install.
    """
    file = Path(path)
    config = settings.read(file)
    is_here = settings.backend_of(config) == "localhost"
    names_one = "runtime" in (config.get("localhost") or {})
    try:
        yield file, {"runtime": named_for_lithops()} if is_here and not names_one else {}
    except Exception as error:
        hint = settings.extra_hint(config, error)
        raise ExecutorError(f"Lithops cannot use {str(file)!r}: {_text(error)}{hint}") from error
