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
from polarmap.arrays.manifest import Manifest, checksum
from polarmap.errors import MissingObjectError, NotDecodableError
from polarmap.storage import Store
from polarmap.worker.encryption import Encryption, decrypt_part, encrypted_size
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


def fetch(store: Store, part: Part, encryption: Encryption | None = None) -> bytes | str:
    """The bytes of a part, decrypted, or the kind of its damage."""
    size = part.size if encryption is None else encrypted_size(part.size)
    try:
        data = store.get(part.key, part.offset, part.offset + size) if size else b""
    except MissingObjectError:
        return "missing"
    if len(data) != size:
        return "truncated"
    if part.crc32 not in (None, checksum(data)):
        return "corrupt"
    try:
        return data if encryption is None else decrypt_part(encryption, part, data)
    except DamagedError:
        return "forged"


@contextmanager
def whole_before() -> Iterator[None]:
    """Damage of parts that were whole when they were looked at is an error of the call that finds it."""
    try:
        yield
    except DamagedError as error:
        raise NotDecodableError(f"{error}, since it was looked at: call it again") from error


def read_part(store: Store, part: Part, encryption: Encryption | None = None) -> bytes:
    """The bytes of a part, decrypted; DamagedError if it is not what was stored."""
    data = fetch(store, part, encryption)
    if isinstance(data, str):
        raise DamagedError(f"{part.key} is {data}")
    return data


def fetch_blocks(
    store: Store, manifest: Manifest, stripe: int, blocks: Sequence[int], pool: ThreadPoolExecutor
) -> tuple[dict[int, Array], list[Damage]]:
    """The good parts of a stripe as flat arrays by block, and the others."""
    parts = [manifest.parts[block][stripe] for block in blocks]
    good: dict[int, Array] = {}
    damaged: list[Damage] = []
    each = map if len(parts) == 1 else pool.map  # one needs no thread
    for block, part, data in zip(
        blocks, parts, each(lambda part: fetch(store, part, manifest.encryption), parts)
    ):
        if isinstance(data, str):
            damaged.append(Damage(block, stripe, data, part.key))
        else:
            dtype = manifest.dtype_of(block)
            good[block] = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
    return good, damaged


def read_stripe(
    store: Store, manifest: Manifest, stripe: int, block: int, columns: slice, pool: ThreadPoolExecutor
) -> Array:
    """Some columns of one part of a data block; decoded from parts of other blocks if it is damaged."""
    good, damaged = fetch_blocks(store, manifest, stripe, [block], pool)
    if not damaged:
        return good[block][columns]
    decoder = decoder_of(manifest, strict=True)
    others = [other for other in range(manifest.code.n) if other != block]
    while others and not (decoder.ready and is_finite(good.values())):
        lot, others = others[: manifest.code.k], others[manifest.code.k :]
        more, _ = fetch_blocks(store, manifest, stripe, lot, pool)
        for index, row in more.items():
            good[index] = row[columns]
            decoder.add(index)
    return decode_blocks(manifest, stripe, [block], good, columns.start)[block]


class ArrayReader:
    """Reads the rows and blocks of a stored array; a `BlockReader`."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store, self._manifest = store, manifest

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
                        part = read_stripe(self._store, manifest, stripe, block, columns, pool)
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
                good, damaged = fetch_blocks(self._store, manifest, stripe, [index], pool)
                for damage in damaged:
                    raise DamagedError(f"{damage.key} is {damage.kind}")
                stripes.append(good[index])
        dtype = manifest.dtype_of(index).newbyteorder("=")
        return np.concatenate([np.empty(0, dtype), *stripes]).reshape(manifest.block_shape)
