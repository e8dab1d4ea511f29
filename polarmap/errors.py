"""The exceptions that polarmap raises, warnings, and tracebacks without polarmap's own frames.

```text
PolarmapError
├── CodeError            (ValueError)    an argument, shape or dtype is not supported
├── ModelError           (ValueError)    a model cannot be fitted to these data or options
├── ExecutorError        (RuntimeError)  the executor or its configuration cannot be used
│   └── WorkerLostError  (BrokenExecutor)  every worker that started the call was lost
├── LimitError           (ValueError)    a block or a timeout exceeds a limit of the backend
├── FunctionExitError    (RuntimeError)  f raised SystemExit, StopIteration or the like
├── NotLinearError       (ValueError)    the results violate the parity checks
├── NotDecodableError    (RuntimeError)  too few results arrived, and no more can
├── CodedTimeoutError    (TimeoutError)  the timeout of a map expired first
│   └── DeadlineExceededError  (TimeoutError)  the deadline of a series of maps expired first
└── StorageError         (RuntimeError)  storage, or an object in it, cannot be used
    └── MissingObjectError  (LookupError)  storage has no object of that name
```

Every public function and class checks its arguments before anything runs. It raises `CodeError` for an
invalid argument, with advice on what to pass instead; models raise `ModelError`. The `Raises` section of
each docstring lists the other exceptions.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from concurrent.futures import BrokenExecutor
from types import TracebackType


class PolarmapError(Exception):
    """The base class of all exceptions of polarmap."""


class CodeError(PolarmapError, ValueError):
    """An argument, shape or dtype is not supported."""


class ModelError(PolarmapError, ValueError):
    """A model cannot be fitted to these data or with these options."""


class ExecutorError(PolarmapError, RuntimeError):
    """The executor cannot be created, reached or used."""


class WorkerLostError(ExecutorError, BrokenExecutor):
    """Every worker that started this call was killed or exited without a reply."""


class LimitError(PolarmapError, ValueError):
    """A limit of the backend is exceeded: of memory, time, message size or object size."""


class FunctionExitError(PolarmapError, RuntimeError):
    """f raised SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration or the like on a worker.

    Raised again in the caller's process, such an exception would end the program, a loop or a generator
    without a message. It is the `__cause__` of this error.
    """


class NotLinearError(PolarmapError, ValueError):
    """The results violate the parity checks: f is not linear, or a worker returned wrong numbers.

    Attributes
    ----------
    finding : str
        The check that failed and by how much.
    """

    finding = ""


class NotDecodableError(PolarmapError, RuntimeError):
    """The results that arrived do not determine the missing ones, and no more can arrive."""


class CodedTimeoutError(PolarmapError, TimeoutError):
    """The `timeout` of a map expired before enough results had arrived."""


class DeadlineExceededError(CodedTimeoutError):
    """The deadline of a series of maps expired, such as that of `CodedOperator.set_deadline`."""


class StorageError(PolarmapError, RuntimeError):
    """Storage cannot be reached or used, or an object in it is damaged."""


class MissingObjectError(StorageError, LookupError):
    """Storage has no object or array of this name."""


RAISED_NOTE_SUFFIX = " raised this"  # ends the note that marks an exception as raised by f
# Packages whose frames are left out of tracebacks: their code runs between a public function and f.
INTERNAL_PACKAGES = {"polarmap", "lithops", "dask", "distributed", "concurrent", "contextlib", "threading"}


def annotate_exception(label: str, error: BaseException) -> BaseException:
    """Add the note "<label> raised this" to an exception of f, and return the exception to raise for it."""
    exception = replace_exit_exception(label, error)
    if exception is error:
        add_note(error, label + RAISED_NOTE_SUFFIX)
    return exception


def replace_exit_exception(label: str, error: BaseException) -> BaseException:
    """Return the exception to raise in the caller's process when f raised `error` on a worker.

    This is `error` itself, unless raising it would end the calling program, loop or generator. StopIteration,
    StopAsyncIteration and exceptions that are not an Exception, such as SystemExit, are therefore replaced by
    a FunctionExitError with `error` as its cause.
    """
    if isinstance(error, Exception) and not isinstance(error, (StopIteration, StopAsyncIteration)):
        return error
    name, text = type(error).__name__, ""
    with contextlib.suppress(Exception):  # __str__ of a user's class may fail
        text = f": {error}" if str(error) else ""
    replacement = FunctionExitError(
        f"{label} raised {name}{text}. This error replaces it, because {name} would end the calling program, "
        "loop or generator without a message. Let f return, or raise another exception"
    )
    replacement.__cause__ = error
    return replacement


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception, unless it has that note already."""
    with contextlib.suppress(Exception):  # the user's class may define notes of another kind
        if note not in getattr(error, "__notes__", ()):  # f may raise the same object repeatedly
            error.add_note(note)


class _TrimmedTracebacks:
    """A context manager for public functions that removes internal frames from tracebacks.

    A traceback then shows the public function, followed by the frames of the user's code. Only exceptions of
    polarmap and of f are trimmed. Any other exception is a defect of polarmap and keeps its frames.
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

    Parameters
    ----------
    error : BaseException
        An exception of polarmap or of f. Any other exception is not changed.
    raised_by_f : bool
        Whether f raised it, if it has no note that says so.
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
    """Return the traceback without its leading frames of internal packages."""
    while (
        traceback is not None
        and traceback.tb_frame.f_globals.get("__name__", "").partition(".")[0] in INTERNAL_PACKAGES
    ):
        traceback = traceback.tb_next
    return traceback


def warn(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """Issue a warning that points at the line of the user's code that called polarmap."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "polarmap":
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)
