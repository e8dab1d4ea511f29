"""What a caller may mean by an executor, told by what it looks like: nothing is imported for it."""

from __future__ import annotations

import os
from typing import Any


def is_localhost(choice: Any) -> bool:
    """Whether it means this machine."""
    return choice is None or (isinstance(choice, str) and choice == "localhost")


def is_path(choice: Any) -> bool:
    """Whether it names a configuration."""
    return isinstance(choice, (str, bytes, os.PathLike)) and not is_localhost(choice)


def is_of_dask(choice: Any) -> bool:
    """Whether a Dask client made it."""
    return type(choice).__module__.startswith("distributed.") and hasattr(choice, "_client")


def is_of_lithops(choice: Any) -> bool:
    """Whether it is a `lithops.FunctionExecutor`."""
    return hasattr(choice, "compute_handler") and hasattr(choice, "internal_storage")
