"""Every error polarmap raises on purpose, one tree.

```text
PolarmapError
├── CodeError            (ValueError)    a code, block or dtype that cannot be used
├── ModelError           (ValueError)    data or options that a model cannot be fitted to
├── ExecutorError        (RuntimeError)  the executor or its configuration is unusable
│   └── WorkerLostError  (BrokenExecutor)  each worker that began a call was lost
├── LimitError           (ValueError)    a block or time the backend does not allow
├── FunctionExitError    (RuntimeError)  f raised what would end its caller without a message
├── NotLinearError       (ValueError)    the results break the parity equations
├── NotDecodableError    (RuntimeError)  nothing more can arrive and too little did
├── CodedTimeoutError    (TimeoutError)  the timeout of a map passed first
│   └── DeadlineExceededError  (TimeoutError)  the deadline of a series of maps passed first
└── StorageError         (RuntimeError)  storage, or what lies there, cannot be used
    └── MissingObjectError  (LookupError)  storage holds nothing of that name
```

Any public function or class raises `CodeError` for an argument that cannot be, before anything runs, and
says what to pass instead; models raise `ModelError`. Their `Raises` sections say what else there is.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from concurrent.futures import BrokenExecutor
from types import TracebackType


class PolarmapError(Exception):
    """The root: `except PolarmapError` catches everything below."""


class CodeError(PolarmapError, ValueError):
    """An argument, shape or dtype that no code can carry."""


class ModelError(PolarmapError, ValueError):
    """Data or options that no model can be fitted to."""


class ExecutorError(PolarmapError, RuntimeError):
    """The executor cannot be built, reached or used."""


class WorkerLostError(ExecutorError, BrokenExecutor):
    """Each worker that began this call was killed, or ended without a word."""


class LimitError(PolarmapError, ValueError):
    """More than a worker, a call or an object of this backend can hold."""


class FunctionExitError(PolarmapError, RuntimeError):
    """f raised SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration or the like on a worker.

    Raised again in the caller's process, such an exception would end the program, a loop or a generator
    without a message. It is the `__cause__` of this error.
    """


class NotLinearError(PolarmapError, ValueError):
    """f is not linear or affine in its block, or a worker returned garbage."""


class NotDecodableError(PolarmapError, RuntimeError):
    """Too few results arrived and no more can."""


class CodedTimeoutError(PolarmapError, TimeoutError):
    """The caller's `timeout` passed before the results were determined."""


class DeadlineExceededError(CodedTimeoutError):
    """The deadline of a series of maps passed, such as that of `CodedOperator.set_deadline`."""


class StorageError(PolarmapError, RuntimeError):
    """Storage cannot be reached or used, or what lies there is not what it should be."""


class MissingObjectError(StorageError, LookupError):
    """Storage works, and holds nothing of that name."""


RAISED_NOTE_SUFFIX = " raised this"  # ends the note by which an exception is known to be one of f
# Packages whose code runs between a public function and f, or what failed.
INTERNAL_PACKAGES = {"polarmap", "lithops", "dask", "distributed", "concurrent", "contextlib", "threading"}


def annotate_exception(label: str, error: BaseException) -> BaseException:
    """Add a note of what raised it to an exception of f, and return what is to be raised for it."""
    exception = replace_exit_exception(label, error)
    if exception is error:
        add_note(error, label + RAISED_NOTE_SUFFIX)
    return exception


def replace_exit_exception(label: str, error: BaseException) -> BaseException:
    """Return what is to be raised in the caller's process for an exception that f raised on a worker.

    This is the exception itself, or a FunctionExitError in the place of one that would end its caller: what
    is not an Exception, and what ends loops.
    """
    if isinstance(error, Exception) and not isinstance(error, (StopIteration, StopAsyncIteration)):
        return error
    name, text = type(error).__name__, ""
    with contextlib.suppress(Exception):  # of a __str__ of the caller's own
        text = f": {error}" if str(error) else ""
    replacement = FunctionExitError(
        f"{label} raised {name}{text}. This error replaces it, because {name} would end the calling program, "
        "loop or generator without a message. Let f return, or raise another exception"
    )
    replacement.__cause__ = error
    return replacement


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception of the caller's, unless it has that note already."""
    with contextlib.suppress(Exception):  # of notes of the caller's own kind
        if note not in getattr(error, "__notes__", ()):  # f may raise one object again and again
            error.add_note(note)


class _TrimmedTracebacks:
    """As a context of a public function: what it raises shows its frame, and then those of the caller's code.

    That is for errors of ours and of f: any other is a defect, and keeps its frames.
    """

    def __enter__(self) -> None:
        """There is nothing to do before an error."""

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
    """The same for an exception that somebody will raise later; `raised_by_f`: of a call, which needs no
    note.
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
    """A traceback from the first frame on that is not one between a public function and f."""
    while (
        traceback is not None
        and traceback.tb_frame.f_globals.get("__name__", "").partition(".")[0] in INTERNAL_PACKAGES
    ):
        traceback = traceback.tb_next
    return traceback


def warn(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn of the line outside polarmap that called it, which its user can do something about."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "polarmap":
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)
