"""Decoding the data of a stripe: entry by entry where NaN or inf stands in some of its blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

import numpy as np

from polarmap.arrays.manifest import Manifest
from polarmap.code.decoder import Decoder
from polarmap.code.dtypes import Array, Indices, default_rtol, epsilon, is_exact
from polarmap.code.tiled import ignoring_inf
from polarmap.errors import NotDecodableError


def decoder_of(manifest: Manifest, blocks: Iterable[int] = (), strict: bool = False) -> Decoder:
    """A decoder of a stripe with `blocks`; if `strict`, it asks for more rather than lose digits."""
    dtype = manifest.dtype
    exact = is_exact(dtype)
    limit = default_rtol(dtype) / epsilon(dtype) if strict and not exact else np.inf
    decoder = Decoder(manifest.code, exact=exact, max_amplification=limit)
    for block in blocks:
        decoder.add(block)
    return decoder


def is_finite(rows: Iterable[Array]) -> bool:
    """Whether no array of `rows` has NaN or inf."""
    return all(is_exact(row.dtype) or bool(np.isfinite(row).all()) for row in rows)


def decode_blocks(
    manifest: Manifest, stripe: int, wanted: Sequence[int], good: Mapping[int, Array], start: int = 0
) -> dict[int, Array]:
    """The data blocks `wanted` of a stripe, none of which is good, decoded from the good ones.

    `good` holds these from element `start` of the stripe on, all of them or as many as are asked
    for. NaN and inf count as erasures of single entries.

    Raises
    ------
    NotDecodableError
        If the good ones do not determine them; names the entries if it is only some.
    """
    decoder = decoder_of(manifest, good)
    if not decoder.ready:
        code = manifest.code
        raise NotDecodableError(
            f"stripe {stripe} of the coded array {manifest.name!r} is lost: {len(good)} of its "
            f"{code.n} parts are good and do not determine the {code.k} data blocks"
        )
    places = np.array(wanted, np.intp)
    with ignoring_inf():
        rows = _decoded(decoder, manifest, good, places)
        if not is_finite([*good.values(), rows]):
            first = places[:, None] * prod(manifest.block_shape) + manifest.bounds[stripe] + start
            unknown = _decode_spoiled(manifest, good, places, rows, first)
            if unknown.size:
                raise NotDecodableError(_describe(manifest, unknown))
    return dict(zip(places.tolist(), rows))


def _decoded(decoder: Decoder, manifest: Manifest, good: Mapping[int, Array], wanted: Indices) -> Array:
    recovery = decoder.recovery
    rows = recovery.recover(dict(good), manifest.dtype.newbyteorder("="))
    return rows if len(rows) == len(wanted) else rows[np.searchsorted(recovery.missing, wanted)]


def _decode_spoiled(
    manifest: Manifest, good: Mapping[int, Array], wanted: Indices, rows: Array, first: Indices
) -> Indices:
    """Decode the columns with NaN or inf anew, each from the blocks that are finite there.

    Returns the positions in the whole array of entries that these do not determine; `first` are
    those of the first entries of the rows. Padding is zero where no parity says otherwise.
    """
    unknown = []
    for columns, blocks in _alike(good, rows):
        some = {block: good[block][columns] for block in blocks}
        decoder, positions = decoder_of(manifest, some), first + columns
        if decoder.ready:
            rows[:, columns] = _decoded(decoder, manifest, some, wanted)
        else:
            rows[:, columns] = np.nan
            if max(blocks, default=0) < manifest.code.k:
                rows[:, columns] = np.where(positions < prod(manifest.shape), rows[:, columns], 0)
        unknown.append(positions[~np.isfinite(rows[:, columns])])
    return np.concatenate(unknown)


def _alike(good: Mapping[int, Array], decoded: Array) -> Iterator[tuple[Indices, list[int]]]:
    """Columns in which the same good blocks are finite, and which blocks; none where all is finite."""
    spoiled = np.zeros(decoded.shape[1], bool)
    for row in (*good.values(), *decoded):
        spoiled |= ~np.isfinite(row)
    columns = np.flatnonzero(spoiled)
    finite = np.stack([np.isfinite(row[columns]) for row in good.values()])
    patterns, which = np.unique(finite, axis=1, return_inverse=True)
    order = np.argsort(which.reshape(-1), kind="stable")
    groups = np.split(columns[order], np.cumsum(np.bincount(which.reshape(-1)))[:-1])
    for pattern, group in zip(patterns.T, groups):
        yield group, [block for block, is_there in zip(good, pattern.tolist()) if is_there]


def _describe(manifest: Manifest, unknown: Indices) -> str:
    """The message about entries that cannot be decoded."""
    entries = "1 entry" if unknown.size == 1 else f"{unknown.size} entries"
    blocks = np.unique(unknown // prod(manifest.block_shape)).tolist()
    shape = (manifest.code.k * manifest.rows, *manifest.shape[1:])
    first = [int(place) for place in np.unravel_index(unknown.min(), shape)]
    return (
        f"{entries} of blocks {blocks} of the coded array {manifest.name!r} cannot be decoded, the first at "
        f"{first}: parts of these blocks are damaged, and the good ones hold NaN or inf in the same places. "
        "Nothing was changed; slices without such entries can be read"
    )
