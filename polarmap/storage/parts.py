"""Reading parts: checked against the manifest, and decoded from others where they are damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from polarmap.code.decoder import Decoder
from polarmap.code.dtypes import default_rtol, epsilon, is_exact
from polarmap.errors import MissingObjectError, NotDecodableError
from polarmap.remote.stored import Part
from polarmap.storage.base import Store
from polarmap.storage.manifest import Manifest, checksum

Array = npt.NDArray[Any]

TRANSFERS = 8  # objects fetched at once


KINDS = ("missing", "truncated", "corrupt")


class Damage(NamedTuple):
    """A part that is not what was stored.

    kind : one of KINDS.
    """

    block: int
    stripe: int
    kind: str
    key: str


def fetch(store: Store, part: Part) -> bytes | str:
    """The bytes of a part, or the kind of its damage."""
    if part.crc32 is None:
        return "missing"
    try:
        data = store.get(part.key, part.offset, part.offset + part.size)
    except MissingObjectError:
        return "missing"
    if len(data) != part.size:
        return "truncated"
    return data if checksum(data) == part.crc32 else "corrupt"


def fetch_blocks(
    store: Store, manifest: Manifest, stripe: int, blocks: Sequence[int], pool: ThreadPoolExecutor
) -> tuple[dict[int, Array], list[Damage]]:
    """The good parts of a stripe as flat arrays by block, and the others."""
    parts = [manifest.parts[block][stripe] for block in blocks]
    good: dict[int, Array] = {}
    damaged: list[Damage] = []
    for block, part, data in zip(blocks, parts, pool.map(lambda part: fetch(store, part), parts)):
        if isinstance(data, str):
            damaged.append(Damage(block, stripe, data, part.key))
        else:
            dtype = manifest.dtype_of(block)
            good[block] = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
    return good, damaged


def decoder_of(manifest: Manifest, strict: bool = True) -> Decoder:
    """For one stripe; when `strict`, it asks for more blocks rather than lose digits."""
    dtype = manifest.dtype
    exact = is_exact(dtype)
    limit = default_rtol(dtype) / epsilon(dtype) if strict and not exact else np.inf
    return Decoder(manifest.code, exact=exact, max_amplification=limit)


def recover(manifest: Manifest, stripe: int, good: Mapping[int, Array]) -> dict[int, Array]:
    """The data blocks of a stripe that are not among the good ones, decoded from all of these.

    Raises
    ------
    NotDecodableError
        If the good ones do not determine them.
    """
    decoder = decoder_of(manifest, strict=False)
    for block in good:
        decoder.add(block)
    if not decoder.ready:
        code = manifest.code
        raise NotDecodableError(
            f"stripe {stripe} of the coded array {manifest.name!r} is lost: {len(good)} of its "
            f"{code.n} parts are good and do not determine the {code.k} data blocks"
        )
    plan = decoder.plan
    rows = plan.recover(dict(good), manifest.dtype.newbyteorder("="))
    return dict(zip(plan.missing.tolist(), rows))


def read_stripe(store: Store, manifest: Manifest, stripe: int, block: int, pool: ThreadPoolExecutor) -> Array:
    """One part of a data block, flat; decoded from parts of other blocks if it is damaged."""
    good, damaged = fetch_blocks(store, manifest, stripe, [block], pool)
    if not damaged:
        return good[block]
    decoder = decoder_of(manifest)
    others = [other for other in range(manifest.code.n) if other != block]
    while others and not decoder.ready:
        lot, others = others[: manifest.code.k], others[manifest.code.k :]
        more, _ = fetch_blocks(store, manifest, stripe, lot, pool)
        good |= more
        for index in more:
            decoder.add(index)
    return recover(manifest, stripe, good)[block]
