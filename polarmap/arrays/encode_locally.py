"""Encoding in this process: data to n blocks in storage, stripe by stripe, in bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.arrays.generations import Generation
from polarmap.arrays.manifest import checksum
from polarmap.arrays.nonfinite import NonFiniteRecord, nonfinite_finder
from polarmap.arrays.sources import Source
from polarmap.arrays.stripes import StripePlan
from polarmap.arrays.writing import StripeWriter
from polarmap.arrays.zarr_chunks import filled
from polarmap.arrays.zarr_view import ZarrView
from polarmap.storage import Store
from polarmap.worker.parts import Part

Array = npt.NDArray[Any]

TRANSFERS = 8  # objects sent at once

ShowCount = Callable[[int], None]


def stripe_writer(
    store: Store, source: Source, plan: StripePlan, seen: NonFiniteRecord, show: ShowCount
) -> StripeWriter:
    """Reads, encodes and stores here.

    Stripes that an earlier run of the same plan had finished are kept if the source still holds
    the same numbers there, which is seen by reading it again; others are encoded anew.
    `seen` is told of NaN and inf, `show` the number of stripes that are done.
    """

    def write(generation: Generation, earlier: dict[int, list[Part]]) -> list[list[Part]]:
        return list(_StripeEncoder(store, source, plan, seen, generation, earlier).run(show))

    return write


class _StripeEncoder:
    """Reads, encodes and stores one stripe after another; two are in memory at once."""

    def __init__(
        self,
        store: Store,
        source: Source,
        plan: StripePlan,
        seen: NonFiniteRecord,
        generation: Generation,
        earlier: dict[int, list[Part]],
    ) -> None:
        self._store, self._source, self._plan = store, source, plan
        self._seen, self._find = seen, nonfinite_finder()
        self._generation, self._earlier = generation, earlier
        self._zarr = None
        if plan.chunk_shape is not None and plan.stripes_are_chunks:
            self._zarr = ZarrView(generation.zarr_path, plan.chunk_shape)
        n, k = plan.code.n, plan.code.k
        self._buffers = [
            (
                np.empty(k * plan.widest_stripe, plan.dtype),
                np.empty((n - k) * plan.widest_stripe, plan.parity_dtype),
            )
            for _ in range(min(2, len(plan.hyperslabs)))
        ]

    def run(self, show: ShowCount) -> Iterator[list[Part]]:
        """The n parts of each stripe, in order, once they are stored."""
        pool = ThreadPoolExecutor(TRANSFERS)
        with contextlib.ExitStack() as stack:
            stack.callback(pool.shutdown, cancel_futures=True)
            sending: list[Future[Part]] = []
            for stripe in range(len(self._plan.hyperslabs)):
                kept = self._prepare(stripe, pool)
                if stripe:
                    yield self._wait(stripe - 1, sending)
                    show(stripe)
                sending = self._send(stripe, kept, pool)
            if sending:
                yield [future.result() for future in sending]
                show(len(self._plan.hyperslabs))

    def _rows(self, stripe: int) -> tuple[Array, Array]:
        """Data and parity rows of a stripe, in the buffer that is not being sent."""
        width = self._plan.width(stripe)
        data, parity = self._buffers[stripe % 2]
        k = self._plan.code.k
        rows = data[: k * width].reshape(k, width)
        return rows, parity[: (self._plan.code.n - k) * width].reshape(-1, width)

    def _prepare(self, stripe: int, pool: ThreadPoolExecutor) -> list[Part] | None:
        """Read and encode a stripe, unless it was stored by an earlier run: then its parts."""
        data, parity = self._rows(stripe)
        slab = self._plan.hyperslabs[stripe]
        for block, row in enumerate(data):
            self._source.read(block * self._plan.rows, slab, row)
        kept = self._earlier.get(stripe)
        if kept is not None:
            now = list(pool.map(checksum, data))
            if now == [part.crc32 for part in kept[: len(data)]]:
                self._seen.note(stripe, self._find(data))
                return kept
        self._plan.code.parity(data, out=parity)
        self._seen.note(stripe, self._find(data, parity))
        return None

    def _send(self, stripe: int, kept: list[Part] | None, pool: ThreadPoolExecutor) -> list[Future[Part]]:
        data, parity = self._rows(stripe)
        if kept is not None:
            moved = [pool.submit(self._adopt, block, stripe, kept[block]) for block in range(len(data))]
            return moved + [_done(part) for part in kept[len(data) :]]
        rows = [*data, *parity]
        return [pool.submit(self._put, block, stripe, row) for block, row in enumerate(rows)]

    def _put(self, block: int, stripe: int, row: Array) -> Part:
        raw = row.data.cast("B")
        if block < self._plan.code.k:
            place = self._source.locate(block * self._plan.rows, self._plan.hyperslabs[stripe])
            if place is not None:
                return place._replace(crc32=checksum(raw))
            chunk = self._chunk_key(block, stripe)
            if self._zarr and chunk:
                self._store.put(chunk, filled(raw, self._zarr.chunk_bytes(self._plan.dtype)))
                return Part(chunk, raw.nbytes, checksum(raw))
        return self._generation.put_part(block, stripe, raw)

    def _adopt(self, block: int, stripe: int, part: Part) -> Part:
        """A data part of an earlier run, copied beside the Zarr chunks of this one if the storage can."""
        chunk = self._chunk_key(block, stripe)
        if chunk is None:
            return part
        is_copied = hasattr(self._store, "join") and self._store.join([part.key], chunk)
        return part._replace(key=chunk) if is_copied else part

    def _chunk_key(self, block: int, stripe: int) -> str | None:
        plan = self._plan
        return self._zarr and self._zarr.chunk_key(plan.shape, plan.rows, block, stripe)

    def _wait(self, stripe: int, sending: list[Future[Part]]) -> list[Part]:
        parts = [future.result() for future in sending]
        self._generation.record(stripe, parts)
        return parts


def _done(part: Part) -> Future[Part]:
    future: Future[Part] = Future()
    future.set_result(part)
    return future
