"""What data must be to be cut into blocks and coded: dense, of numbers, without labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from polarmap.code.dtypes import check_dtype
from polarmap.errors import CodeError
from polarmap.worker.pytree import is_table, numpy_dtype


def check_array(data: Any, name: str = "data") -> None:
    """Refuse an array that cannot be cut into blocks and coded."""
    refuse_masked_and_sparse(data, name)
    if len(data.shape) == 0 or data.shape[0] == 0:
        raise CodeError(f"data of shape {tuple(data.shape)} has no rows to cut into blocks")
    check_dtype(data.dtype, "the data")


def refuse_masked_and_sparse(data: Any, name: str = "data") -> None:
    if isinstance(data, np.ma.MaskedArray):
        raise CodeError(f"{name} is a masked array, and parity blocks have no mask: use {name}.filled(0)")
    if hasattr(data, "toarray"):
        kind = type(data).__name__
        raise CodeError(f"{name} is a sparse {kind}, and parity blocks are not sparse: use {name}.toarray()")
    check_labels_and_dtype(data, name)


def check_labels_and_dtype(data: Any, name: str = "data") -> None:
    """Refuse what looks like an array but is a table, or of a dtype that numpy does not know."""
    kind = type(data)
    if is_table(data):
        raise CodeError(f"{name} is a {kind.__name__}, whose labels f would not see: use {name}.to_numpy()")
    if hasattr(data, "shape") and hasattr(data, "dtype") and numpy_dtype(data) is None:
        raise CodeError(
            f"{name} is a {kind.__module__}.{kind.__name__} of dtype {data.dtype}, which numpy does not "
            f"know: use numpy.asarray({name})"
        )
    if isinstance(data, np.ndarray) and kind not in (np.ndarray, np.memmap, np.matrix):
        raise CodeError(f"{name} is a {kind.__name__}, and f would see arrays: use numpy.asarray({name})")
