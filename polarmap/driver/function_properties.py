"""A cache of verified properties of functions, such as "linear", shared by all maps of this process.

The first map of a function f verifies the property. A later map uses the cached value if the fingerprint of f
is the same and f receives arrays of the same dtypes and shapes. The shapes matter: for example, the maximum
over the rows of a block is linear only if blocks have one row. A function without a fingerprint is verified
in every map.
"""

from __future__ import annotations

import threading
from typing import Any

from polarmap.driver.fingerprint import compute_function_fingerprint
from polarmap.worker.pytree import Layout

LINEAR_OR_AFFINE = "linear or affine in its block"
# Cache: key of a function property -> value verified by a map in this process.
VERIFIED_PROPERTIES: dict[str, Any] = {}
# The maximum number of entries of this cache, of about 300 bytes each. The oldest entry is removed first.
MAX_VERIFIED_PROPERTIES = 10_000
_cache_lock = threading.Lock()


class FunctionProperty:
    """A property of a mapped function, such as linearity, which an earlier map may have verified.

    If `value` is None, no verified value is cached, so the current map has to verify the property. `value`
    does not change during the map.

    Parameters
    ----------
    f : callable
        The function.
    property_name : str
        The name of the property, for example "linear".
    argument_layout : Layout
        The dtypes and shapes of the arrays in a block. The property is cached for these only.
    holds_by_construction : bool
        Whether f is known to have the property. The cache is not used then.

    Attributes
    ----------
    value : Any
        The value cached for a function with the same fingerprint as f, or None if no value is cached. True if
        the property holds by construction.
    """

    def __init__(
        self, f: Any, property_name: str, argument_layout: Layout, holds_by_construction: bool = False
    ) -> None:
        self._key_arguments = f, property_name, argument_layout
        self._cache_key = None if holds_by_construction else _compute_cache_key(*self._key_arguments)
        self.value: Any = True if holds_by_construction else VERIFIED_PROPERTIES.get(self._cache_key or "")

    def remember_value(self, value: Any = True) -> None:
        """Cache `value` for later maps unless f has changed since this map started."""
        if self._cache_key is not None and self._cache_key == _compute_cache_key(*self._key_arguments):
            with _cache_lock:
                VERIFIED_PROPERTIES[self._cache_key] = value
                while len(VERIFIED_PROPERTIES) > MAX_VERIFIED_PROPERTIES:
                    del VERIFIED_PROPERTIES[next(iter(VERIFIED_PROPERTIES))]


def _compute_cache_key(f: Any, property_name: str, argument_layout: Layout) -> str | None:
    """Return the cache key of a property of `f`, or None if `f` has no fingerprint."""
    digest = compute_function_fingerprint(f)
    return None if digest is None else f"{property_name}\n{argument_layout}\n{digest}"
