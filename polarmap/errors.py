"""Every error polarmap raises on purpose, one tree.

```text
PolarmapError
├── CodeError            (ValueError)    a code, block or dtype that cannot be used
├── ModelError           (ValueError)    data or options that a model cannot be fitted to
├── ExecutorError        (RuntimeError)  the executor or its configuration is unusable
│   └── WorkerLostError  (BrokenExecutor)  each worker that began a call was lost
├── LimitError           (ValueError)    a block or time the backend does not allow
├── NotLinearError       (ValueError)    the results break the parity equations
├── NotDecodableError    (RuntimeError)  nothing more can arrive and too little did
├── CodedTimeoutError    (TimeoutError)  the deadline passed first
└── StorageError         (RuntimeError)  storage, or what lies there, cannot be used
    └── MissingObjectError  (LookupError)  storage holds nothing of that name
```
"""

from __future__ import annotations

import sys
import warnings
from concurrent.futures import BrokenExecutor


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


class NotLinearError(PolarmapError, ValueError):
    """f is not linear or affine in its block, or a worker returned garbage."""


class NotDecodableError(PolarmapError, RuntimeError):
    """Too few results arrived and no more can."""


class CodedTimeoutError(PolarmapError, TimeoutError):
    """The caller's `timeout` passed before the results were determined."""


class StorageError(PolarmapError, RuntimeError):
    """Storage cannot be reached or used, or what lies there is not what it should be."""


class MissingObjectError(StorageError, LookupError):
    """Storage works, and holds nothing of that name."""


def warn(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn of the line outside polarmap that called it, which its user can do something about."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "polarmap":
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)
