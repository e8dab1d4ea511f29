"""Where the results of one map are written when they stay in storage, and the array they become."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from polarmap.arrays.generations import Generation
from polarmap.arrays.keys import check_name
from polarmap.arrays.manifest import Manifest
from polarmap.arrays.stores import place_of
from polarmap.arrays.writing import replaceable
from polarmap.arrays.zarr_chunks import as_zarr
from polarmap.arrays.zarr_view import chunk_shape
from polarmap.blocks.coded import CodedData
from polarmap.code.dtypes import is_exact
from polarmap.code.polar import PolarCode
from polarmap.errors import CodeError
from polarmap.storage import Store
from polarmap.worker.encryption import Encryption
from polarmap.worker.parts import Part
from polarmap.worker.stored_output import OutputSpec, StoredOutput

STRIPE_BYTES = 64 << 20  # of all n results together, that repairing them later holds at once


class ResultWriter:
    """Where one map's results are written; a context, which leaves nothing when the map fails.

    Attributes
    ----------
    store : Store
    output : OutputSpec
        What executors are told.
    """

    def __init__(
        self, store: Store, name: str, coded: CodedData, encryption: Encryption | None = None
    ) -> None:
        if not isinstance(coded.code, PolarCode):
            raise CodeError(
                f"out=Stored(...) keeps results of linear f, coded by a PolarCode, not by {coded.code!r}"
            )
        self.store, self._name, self._code = store, check_name(name), coded.code
        self._encryption = encryption
        replaceable(store, name, " for Stored(...), or delete it first")
        self._generation = Generation(store, name, {"map": uuid.uuid4().hex})
        items = max(1, STRIPE_BYTES // (8 * coded.n))
        self.output = OutputSpec(place_of(store, encryption), f"{self._generation.prefix}result", items)

    def __enter__(self) -> ResultWriter:
        self._generation.__enter__()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._generation.__exit__(kind, *error)

    def manifest(self, stored: Mapping[int, StoredOutput], padding: int, dtype: np.dtype[Any]) -> Manifest:
        """Make the results an array that can be opened; those that never came are parts to repair.

        The last `padding` rows of the results come from no data, and `dtype` is that of data blocks' results.
        """
        code, parity_dtype = self._code, self._code.parity_dtype(dtype)
        dtypes = [dtype] * code.k + [parity_dtype] * (code.n - code.k)
        for index, one in stored.items():
            found, wanted = np.dtype(one.layout[0][0]), dtypes[index]
            alike = found.itemsize == wanted.itemsize == 8 and is_exact(found) and is_exact(wanted)
            if found != wanted and not alike:  # the bits of 64-bit integers are the same, signed or not
                raise CodeError(
                    f"results cannot be kept as a coded array: that of block {index} is {found.str} where "
                    f"{wanted.str} is due; let f return {parity_dtype.str} for any block"
                )
        [(_, shape)] = stored[min(stored)].layout
        rows, *inner = shape or (1,)
        total, counts = code.k * rows - padding, _counts(prod(shape), self.output.items)
        parts = [
            stored[index].parts if index in stored else self._absent(index, counts, dtypes[index])
            for index in range(code.n)
        ]
        shape_of_all, is_number = (total, *inner), shape == ()
        made = Manifest(
            self._name, shape_of_all, dtype, code, tuple(parts), is_number, None, self._encryption
        )
        if self._encryption is None:
            chunk = chunk_shape((rows, *inner), (rows, *inner))
            made = as_zarr(self.store, made, self._generation.prefix, chunk)
        self._generation.publish(made, None)
        return made

    def _absent(self, index: int, counts: list[int], dtype: np.dtype[Any]) -> tuple[Part, ...]:
        """Entries of the manifest for parts that never came; missing until they are repaired."""
        prefix = f"{self.output.prefix}/{index}-absent"
        return tuple(Part(f"{prefix}/{i}", count * dtype.itemsize) for i, count in enumerate(counts))


def _counts(size: int, items: int) -> list[int]:
    """How many numbers each part of a result has.

    >>> _counts(7, 3)
    [3, 3, 1]
    """
    return [min(items, size - start) for start in range(0, size, items)]
