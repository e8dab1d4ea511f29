"""What functions were found to be (linear, acting on rows): only the first map of each has to find out.

The rule: a later map trusts what was found of f if the fingerprint of f is the same. A function without
a fingerprint is not trusted, and every map is verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polarmap.driver.fingerprint import compute_function_fingerprint

LINEAR_OR_AFFINE = "linear or affine in its block"
VERIFIED_PROPERTIES: dict[str, Any] = {}  # what maps of this process found


class FunctionProperty:
    """What was known of f as it is when a map begins: whether it is what the code assumes, or something else.

    What the map itself finds out is no reason for it to trust f.

    Parameters
    ----------
    f : callable
    property_name : is known, or not: the assumption of a code.
    dtypes : of the data.
    holds_by_construction : true by construction.

    Attributes
    ----------
    value : Any
        What was noted of f, or of one that reaches the same, on data of such dtypes; None if nothing was.
    """

    def __init__(
        self, f: Any, property_name: str, dtypes: Sequence[np.dtype[Any]], holds_by_construction: bool = False
    ) -> None:
        self._key_arguments = f, property_name, list(dtypes)
        self._cache_key = None if holds_by_construction else _compute_cache_key(*self._key_arguments)
        self.value: Any = True if holds_by_construction else VERIFIED_PROPERTIES.get(self._cache_key or "")

    def remember_value(self, value: Any = True) -> None:
        """Remember something of f for later maps, unless it has changed since this one began."""
        if self._cache_key is not None and self._cache_key == _compute_cache_key(*self._key_arguments):
            VERIFIED_PROPERTIES[self._cache_key] = value


def _compute_cache_key(f: Any, property_name: str, dtypes: Sequence[np.dtype[Any]]) -> str | None:
    """What is told by: None of a function that cannot be compared."""
    digest = compute_function_fingerprint(f)
    return None if digest is None else "\n".join([property_name, *(dtype.str for dtype in dtypes), digest])
