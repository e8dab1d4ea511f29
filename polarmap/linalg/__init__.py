"""Coded linear algebra: linear operators, matrix products, Gram matrices and sketches."""

from __future__ import annotations

import typing

from polarmap import lazy_names

if typing.TYPE_CHECKING:
    from polarmap.linalg.sketch import sketched_gram as sketched_gram
    from polarmap.linalg.sketch import sketched_lstsq as sketched_lstsq
else:
    __getattr__, __dir__, __all__ = lazy_names.make_lazy_exports(
        __name__,
        {"sketch": ["sketched_gram", "sketched_lstsq"]},
    )
