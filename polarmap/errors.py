"""The exceptions that polarmap raises, and functions that make tracebacks and warnings easy to read.

```text
PolarmapError
├── CodeError            (ValueError)    an argument, shape or dtype is not supported
├── ModelError           (ValueError)    a model cannot be fitted to these data or options
├── ExecutorError        (RuntimeError)  the executor or its configuration cannot be used
│   └── WorkerLostError  (BrokenExecutor)  every worker that started the call was lost
├── LimitError           (ValueError)    a block or a timeout exceeds a limit of the backend
├── FunctionExitError    (RuntimeError)  f raised SystemExit, StopIteration or a similar exception
├── NotLinearError       (ValueError)    the results contradict each other
├── NotDecodableError    (RuntimeError)  too few results arrived, and no more will arrive
├── CodedTimeoutError    (TimeoutError)  the timeout of a map expired
│   └── DeadlineExceededError  (TimeoutError)  the deadline of a series of maps passed
└── StorageError         (RuntimeError)  storage, or an object in it, cannot be used
    └── MissingObjectError  (LookupError)  storage has no object of that name
```

Every public function and class checks its arguments before anything runs. If an argument is invalid, it
raises `CodeError` (models raise `ModelError`), with advice on what to pass instead. The `Raises` section of
each docstring lists the other exceptions.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from concurrent.futures import BrokenExecutor
from types import TracebackType


class PolarmapError(Exception):
    """The base class of all polarmap exceptions."""


class CodeError(PolarmapError, ValueError):
    """An argument, shape or dtype is not supported."""


class ModelError(PolarmapError, ValueError):
    """A model cannot be fitted to the given data or with the given options."""


class ExecutorError(PolarmapError, RuntimeError):
    """The executor (the workers, or the service that starts them) cannot be created, reached or used."""


class WorkerLostError(ExecutorError, BrokenExecutor):
    """A call has no result because every worker that started it was killed or exited."""


class LimitError(PolarmapError, ValueError):
    """A limit of the backend on memory, run time, message size or the like is exceeded."""


class FunctionExitError(PolarmapError, RuntimeError):
    """f, the user's function, raised SystemExit, KeyboardInterrupt, StopIteration or a similar exception.

    If such an exception were re-raised in the caller's process, it would silently end the program, a loop or
    a generator. Therefore, this error is raised instead, with the original exception as its `__cause__`.
    """


class NotLinearError(PolarmapError, ValueError):
    """The results contradict each other: the function f is not linear, or a worker returned wrong numbers.

    Attributes
    ----------
    finding : str
        Which check of the results failed and by how much.
    """

    finding = ""


class NotDecodableError(PolarmapError, RuntimeError):
    """The missing results cannot be decoded from the results that arrived, and no more will arrive."""


class CodedTimeoutError(PolarmapError, TimeoutError):
    """The `timeout` of a coded map expired before enough results had arrived."""


class DeadlineExceededError(CodedTimeoutError):
    """The deadline for several coded maps has passed, for example that of `CodedOperator.set_deadline`."""


class StorageError(PolarmapError, RuntimeError):
    """Storage cannot be reached or used, or an object in it is damaged."""


class MissingObjectError(StorageError, LookupError):
    """There is no object or array with this name in storage."""


# An exception raised by the user's function gets a note that ends in this way, such as "f raised this". The
# note distinguishes it from exceptions that are bugs of polarmap.
RAISED_NOTE_SUFFIX = " raised this"
# The frames of these packages, between the user's call and the user's function, are omitted from tracebacks.
INTERNAL_PACKAGES = {"polarmap", "lithops", "dask", "distributed", "concurrent", "contextlib", "threading"}


def annotate_exception(label: str, error: BaseException) -> BaseException:
    """Add the note "<label> raised this" to an exception from the user's function, and return it.

    An exception that would end the calling program is replaced; see `replace_exit_exception`.
    """
    exception = replace_exit_exception(label, error)
    if exception is error:
        add_note(error, label + RAISED_NOTE_SUFFIX)
    return exception


def replace_exit_exception(label: str, error: BaseException) -> BaseException:
    """Replace an exception that would end the calling program, loop or generator if it were re-raised.

    StopIteration, StopAsyncIteration and exceptions that do not derive from Exception, such as SystemExit,
    are replaced with a FunctionExitError whose cause is `error`. Any other exception is returned unchanged.
    """
    if isinstance(error, Exception) and not isinstance(error, (StopIteration, StopAsyncIteration)):
        return error
    name, text = type(error).__name__, ""
    with contextlib.suppress(Exception):  # The user's exception class may have a broken __str__.
        text = f": {error}" if str(error) else ""
    replacement = FunctionExitError(
        f"{label} raised {name}{text}. This error replaces it, because {name} would end the calling program, "
        "loop or generator without a message. Let f return, or raise another exception"
    )
    replacement.__cause__ = error
    return replacement


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception unless it already has the same note."""
    with contextlib.suppress(Exception):  # The user's exception class may override `add_note` and fail.
        if note not in getattr(error, "__notes__", ()):  # The same exception may be raised repeatedly.
            error.add_note(note)


class _TrimmedTracebacks:
    """A context manager that shortens tracebacks so that users see their own code rather than polarmap's.

    A traceback then shows the public function that was called, followed by the frames of the user's function.
    Only exceptions from polarmap and from the user's function are shortened. Any other exception indicates a
    bug in polarmap and keeps its frames.
    """

    def __enter__(self) -> None:
        """Enter the context."""

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and traceback is not None and _is_user_error(error):
            traceback.tb_next = _skip_internal_frames(traceback.tb_next)
            _trim_chained_tracebacks(error)


trimmed_tracebacks = _TrimmedTracebacks()


def trim_traceback(error: BaseException, raised_by_f: bool = False) -> None:
    """Remove internal frames from the traceback of an exception that a future will raise later.

    Users then see their own code rather than polarmap's.

    Parameters
    ----------
    error : BaseException
        The exception. It is modified only if it comes from polarmap or from the user's function f.
    raised_by_f : bool
        Pass True if f raised the exception, but the exception has no note that says so.
    """
    if raised_by_f or _is_user_error(error):
        error.__traceback__ = _skip_internal_frames(error.__traceback__)
        _trim_chained_tracebacks(error)


def _is_user_error(error: BaseException) -> bool:
    notes = getattr(error, "__notes__", ())
    return isinstance(error, PolarmapError) or any(note.endswith(RAISED_NOTE_SUFFIX) for note in notes)


def _trim_chained_tracebacks(error: BaseException) -> None:
    visited_ids = {id(error)}
    cause = error.__cause__ or error.__context__
    while cause is not None and id(cause) not in visited_ids:
        visited_ids.add(id(cause))
        cause.__traceback__ = _skip_internal_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__


def _skip_internal_frames(traceback: TracebackType | None) -> TracebackType | None:
    """Return the traceback without its leading frames from polarmap and other internal packages."""
    while (
        traceback is not None
        and traceback.tb_frame.f_globals.get("__name__", "").partition(".")[0] in INTERNAL_PACKAGES
    ):
        traceback = traceback.tb_next
    return traceback


def warn(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """Issue a warning that points to the line of the user's code that called polarmap."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "polarmap":
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)
