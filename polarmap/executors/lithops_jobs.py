"""FunctionExecutors and storages of Lithops: how they are opened, and functions run on the former."""

from __future__ import annotations

import contextlib
import copy
import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from polarmap.clouds import settings
from polarmap.errors import ExecutorError, StorageError
from polarmap.executors.choices import is_localhost, is_of_lithops
from polarmap.executors.lithops_internals import (
    LostError,
    another_like,
    build_functions,
    call_when_seen,
    end,
    ended_silently,
    has_ended,
    impatient_storage,
    interpreter_error,
    keep_monitoring,
    leave,
    load_lithops,
    localhost_functions,
    named_for_lithops,
    objects_of,
    result_of,
    runs_here,
    storage_settings,
)
from polarmap.executors.pickling import pickled_by_value
from polarmap.worker.retries import retry_request

AGAIN_SECONDS = 1.0  # in which Lithops is given a job again that it could not store
LISTING_SECONDS = 0.1  # between two looks that may ask a storage
SETTLE_SECONDS = 0.1  # that a storage may take to finish a PUT whose sender is gone
TIMEOUT = 10  # seconds to connect to one, and to wait for the next byte; whoever asks decides how often

TOO_MUCH_ADVICE = (
    ": tasks are told of many parts; say data_limit: 0 in the lithops section of the configuration, or use "
    "fewer and larger parts (memory= of encode)"
)
_answered: set[Path] = set()  # configurations whose storage has answered


class InterpreterError(LostError):
    """A function ended without a result, as its interpreter can run none."""


class Jobs:
    """Functions that Lithops was given to run, by key, on as many FunctionExecutors as that takes.

    Parameters
    ----------
    choice : "localhost", path or lithops.FunctionExecutor
        With "localhost" there is a process for each function, and all files lie in our temporary folder.
    shares : whether a FunctionExecutor is used itself, and left open; else one that is opened like it.

    Attributes
    ----------
    functions : lithops.FunctionExecutor
        The first. On this machine, where one runs its jobs one after another, each further job has its own.
    running : dict
        From key to future, of what has not ended as far as is known.
    is_private : bool
        Whether "localhost" was chosen.
    is_here : bool
        Whether functions are processes of this machine, in no container.
    reach : pair of str
        `away` and `storage` of these functions, as `check_reachable` takes them.
    """

    def __init__(self, choice: Any, shares: bool = False) -> None:
        self.is_private = is_localhost(choice)
        self._shared = choice if shares and is_of_lithops(choice) else None
        self._jobs: dict[Any, set[str]] = {}  # FunctionExecutors, and how Lithops calls the jobs of each
        self.functions = open_functions(choice) if self._shared is None else self._shared
        self._jobs[self.functions] = set()
        self.is_here = runs_here(self.functions)
        storage = "" if self.is_private else self.functions.storage.backend
        self.reach = "" if self.is_here else self.functions.backend, storage
        self.name = "localhost" if self.is_private else f"lithops/{self.functions.backend}"
        self.running: dict[Any, Any] = {}
        self._unbegun: set[Any] = set()
        self._next_look = 0.0
        self._news = threading.Event()

    def functions_for_next(self, slots: int | None = None) -> Any:
        """What the next job is to be started on; ExecutorError if Lithops makes none now.

        slots : that the job needs on this machine, as its functions do not return; None: those configured.
        """
        if self.functions.backend != "localhost" or not (self._jobs[self.functions] or slots):
            return self.functions
        try:
            made = open_functions("localhost" if self.is_private else self.functions, slots)
        except Exception as error:
            raise ExecutorError(f"{self.name} takes no job: {_text(error)}") from error
        self._jobs[made] = set()
        return made

    def start(self, functions: Any, task: Any, items: Mapping[Any, dict[str, Any]], **options: Any) -> None:
        """Hand functions to Lithops as one job: a task with an item each; ExecutorError if it takes none."""
        if self.is_private:
            # One that sleeps keeps none from starting.
            functions.config["localhost"]["worker_processes"] = len(items)
            options["include_modules"] = None
        else:  # Pure-Python modules that f needs travel along; polarmap's worker side does so by value.
            options["exclude_modules"] = ["polarmap", "numpy"]
        try:
            with pickled_by_value():
                submit = partial(functions.map, task, list(items.values()), chunksize=1, **options)
                # Here another map may just have removed the folder of jobs, when it was empty.
                futures = retry_request(submit, AGAIN_SECONDS if self.is_here else 0.0)
        except Exception as error:
            reason = interpreter_error(functions) or _text(error)
            advice = TOO_MUCH_ADVICE if "maximum size" in str(error) else ""
            raise ExecutorError(f"{self.name} takes no job: {reason}{advice}") from error
        call_when_seen(futures, self._news.set)
        self._news.set()  # what it has seen by now
        self.running |= zip(items, futures, strict=True)
        self._unbegun.update(items)
        self._jobs[functions] |= {future.job_key for future in futures}

    def wait(self, seconds: float) -> None:
        """Until Lithops has seen a task begin or end, `wake` was called, or it is time to look."""
        self._news.wait(min(seconds, LISTING_SECONDS))
        self._news.clear()

    def wake(self) -> None:
        """Let a wait end, this or the next one."""
        self._news.set()

    def begun(self, counts_unseen: bool = False) -> list[Any]:
        """The tasks that came to run since the last look; on a cloud that is at once, as far as is known.

        counts_unseen : whether to count tasks that Lithops has not seen begin.
        """
        counts_all = counts_unseen or not self.is_here
        found = [key for key in self._unbegun if counts_all or self.running[key].running]
        self._unbegun.difference_update(found)
        return found

    def ended(self, may_ask: bool = True) -> dict[Any, Any]:
        """What each has returned that ended since the last look: a LostError if nothing.

        may_ask : their interpreter, why processes have ended without a word.
        """
        done = [key for key, future in self.running.items() if has_ended(future)]
        found = {key: self._result(self.running.pop(key)) for key in done}
        if time.monotonic() >= self._next_look:
            for functions in self._jobs:
                found |= self._ended_silently(functions, may_ask)
            self._next_look = time.monotonic() + LISTING_SECONDS
        self._unbegun -= found.keys()
        return found

    def close(self) -> list[str]:
        """Drop or kill what runs; what the keys of objects begin with that are left, once all are there."""
        is_late = bool(self.running) and not self.is_private
        left = self._close(list(self._jobs))
        if is_late:  # what was on its way when its writer was killed
            time.sleep(SETTLE_SECONDS)
        return left

    def close_idle(self) -> list[str]:
        """Let go of those FunctionExecutors but the first that run nothing any more; what is left of them."""
        return self._close([one for one in self._jobs if one is not self.functions and not self._of(one)])

    def _of(self, functions: Any) -> dict[Any, Any]:
        """From key to future, of what runs on one of them."""
        return {key: one for key, one in self.running.items() if one.job_key in self._jobs[functions]}

    def _close(self, every: Sequence[Any]) -> list[str]:
        left = []
        for functions in every:
            running = self._of(functions)
            for key in running:
                del self.running[key]
            names: Collection[str] = self._jobs.pop(functions)
            if functions is self._shared:
                leave(functions, list(running.values()), names)
            else:
                end(functions)
                names = [functions.executor_id]
            left += objects_of(names)
        return left

    def _result(self, future: Any) -> Any:
        try:
            return result_of(future, self.functions)
        except LostError as error:
            return error
        except Exception as error:
            return LostError(_text(error))

    def _ended_silently(self, functions: Any, may_ask: bool) -> dict[Any, LostError]:
        """Those whose processes have ended and left nothing: killed, or their storage was away."""
        keys = {future: key for key, future in self._of(functions).items()}
        keep_monitoring(functions, list(keys))
        silent = ended_silently(functions, list(keys))
        reason = interpreter_error(functions) if silent and may_ask else ""
        error = (
            InterpreterError(reason) if reason else LostError("its worker process ended without reporting")
        )
        for future in silent:
            del self.running[keys[future]]
        return {keys[future]: error for future in silent}


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


# --- configurations ----------------------------------------------------------------------------


def read_configuration(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A configuration with Lithops' defaults, without asking anything of its cloud."""
    with _configuration(path) as (file, missing):
        config: dict[str, Any] = load_lithops().config.default_config(str(file), None, {"backend": missing})
        return config


def open_functions(choice: Any, slots: int | None = None) -> Any:
    """A new FunctionExecutor: ours on this machine, from a configuration file, or like another one.

    slots : of one like another on this machine; None: as many as that has.
    """
    if is_localhost(choice):
        return localhost_functions()
    if is_of_lithops(choice):
        return another_like(choice, slots)
    with _configuration(choice) as (file, missing):
        build = partial(build_functions, config_file=str(file), **missing)
        functions = retry_request(build) if file.absolute() in _answered else build()
    # Jobs may be told of any number of parts, unless the owner says how much: Lithops allows 4 MiB.
    functions.config["lithops"].setdefault("data_limit", 0)
    _answered.add(file.absolute())
    return functions


def open_storage(choice: Any) -> Any:
    """A `lithops.Storage` of our own, for a YAML path or a FunctionExecutor.

    Raises
    ------
    StorageError
        If Lithops cannot make one of it.
    """
    file = Path(choice) if isinstance(choice, (str, os.PathLike)) else None
    where = f"lithops/{choice.backend}" if file is None else repr(str(file))
    if file is not None and not file.is_file():
        raise StorageError(f"there is no Lithops configuration {where}")
    try:
        found = choice.storage.get_storage_config() if file is None else storage_settings(file)
        storage = impatient_storage(copy.deepcopy(found), TIMEOUT)
    except Exception as error:
        raise StorageError(f"Lithops has no storage for {where}: {type(error).__name__}: {error}") from error
    if file is None:
        storage.bucket = choice.storage.bucket  # which may be one that it made itself
    return storage


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
