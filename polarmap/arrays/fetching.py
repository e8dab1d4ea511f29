"""Reading parts: checked against the manifest, and decoded from others where they are damaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.arrays.decode import decode_blocks, decoder_of, is_finite
from polarmap.arrays.manifest import Manifest
from polarmap.arrays.stores import PartStore
from polarmap.errors import NotDecodableError
from polarmap.worker.parts import DamagedError, Part

Array = npt.NDArray[Any]

TRANSFERS = 8  # objects fetched at once
KINDS = ("missing", "truncated", "corrupt", "forged", "appended", "foreign")


class Damage(NamedTuple):
    """A part that is not what was stored.

    kind : one of KINDS but the last. What is appended to is whole, and read as it was; what is forged has the
        right checksum, and was not encrypted with the key of the array for this place in it.
    """

    block: int
    stripe: int
    kind: str
    key: str


@contextmanager
def whole_before() -> Iterator[None]:
    """Damage of parts that were whole when they were looked at is an error of the call that finds it."""
    try:
        yield
    except DamagedError as error:
        raise NotDecodableError(f"{error}, since it was looked at: call it again") from error


def damage_of(parts: PartStore, part: Part) -> str:
    """The kind of damage of a part, which is read; empty if there is none."""
    try:
        parts.get(part)
    except DamagedError as error:
        return error.kind
    return ""


def fetch_blocks(
    parts: PartStore, manifest: Manifest, stripe: int, blocks: Sequence[int], pool: ThreadPoolExecutor
) -> tuple[dict[int, Array], list[DamagedError]]:
    """The good parts of a stripe as flat arrays by block, and what is wrong with the others."""

    def fetch(block: int) -> Array | DamagedError:
        dtype = manifest.dtype_of(block)
        try:
            data = parts.get(manifest.parts[block][stripe])
        except DamagedError as error:
            return error
        return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)

    each = map if len(blocks) == 1 else pool.map  # one needs no thread
    found = list(zip(blocks, each(fetch, blocks)))
    good = {block: row for block, row in found if not isinstance(row, DamagedError)}
    return good, [error for _, error in found if isinstance(error, DamagedError)]


def read_stripe(
    parts: PartStore, manifest: Manifest, stripe: int, block: int, columns: slice, pool: ThreadPoolExecutor
) -> Array:
    """Some columns of one part of a data block; decoded from parts of other blocks if it is damaged."""
    good, damaged = fetch_blocks(parts, manifest, stripe, [block], pool)
    if not damaged:
        return good[block][columns]
    decoder = decoder_of(manifest, strict=True)
    others = [other for other in range(manifest.code.n) if other != block]
    while others and not (decoder.ready and is_finite(good.values())):
        lot, others = others[: manifest.code.k], others[manifest.code.k :]
        more, _ = fetch_blocks(parts, manifest, stripe, lot, pool)
        for index, row in more.items():
            good[index] = row[columns]
            decoder.add(index)
    return decode_blocks(manifest, stripe, [block], good, columns.start)[block]


class ArrayReader:
    """Reads the rows and blocks of a stored array; a `BlockReader`."""

    def __init__(self, parts: PartStore, manifest: Manifest) -> None:
        self._parts, self._manifest = parts, manifest

    def rows(self, start: int, stop: int) -> Array:
        """Rows start..stop of the array; no more is held than these and one stripe of each block."""
        manifest, inner = self._manifest, self._manifest.shape[1:]
        out = np.empty((stop - start, *inner), manifest.dtype.newbyteorder("="))
        flat, width = out.reshape(-1), prod(inner)
        size = manifest.rows * width  # of a block
        with ThreadPoolExecutor(TRANSFERS) as pool:
            for block in range(start // manifest.rows, -(-stop // manifest.rows)):
                base = block * size  # of this block, in elements of the whole
                first, last = max(start * width, base), min(stop * width, base + size)
                for stripe, (low, high) in enumerate(pairwise(manifest.bounds)):
                    low, high = max(first, base + low), min(last, base + high)
                    if low < high:
                        offset = base + manifest.bounds[stripe]
                        columns = slice(low - offset, high - offset)
                        part = read_stripe(self._parts, manifest, stripe, block, columns, pool)
                        flat[low - start * width : high - start * width] = part
        return out

    def read(self, index: int) -> Array:
        """Block `index`; what is damaged of a data block is decoded."""
        if index >= self._manifest.code.k:
            return self.read_as_stored(index)
        rows = self._manifest.rows
        return self.rows(index * rows, (index + 1) * rows).reshape(self._manifest.block_shape)

    def read_as_stored(self, index: int) -> Array:
        """Block `index`; DamagedError if it is not what was stored."""
        manifest, stripes = self._manifest, []
        with ThreadPoolExecutor(TRANSFERS) as pool:
            for stripe in range(len(manifest.parts[index])):
                good, damaged = fetch_blocks(self._parts, manifest, stripe, [index], pool)
                for error in damaged:
                    raise error
                stripes.append(good[index])
        dtype = manifest.dtype_of(index).newbyteorder("=")
        return np.concatenate([np.empty(0, dtype), *stripes]).reshape(manifest.block_shape)
