"""Encoding by workers: each reads a stripe of all data blocks, and leaves its parity in storage."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.arrays.fetching import fetch
from polarmap.arrays.generations import Generation
from polarmap.arrays.nonfinite import NonFiniteCounts, NonFiniteRecord, nonfinite_finder
from polarmap.arrays.readable_parts import ReadableParts
from polarmap.arrays.sources import Source
from polarmap.arrays.stores import place_of
from polarmap.arrays.stripes import StripePlan
from polarmap.arrays.writing import StripeWriter
from polarmap.blocks.uneven import PartBlocks
from polarmap.code.polar import PolarCode
from polarmap.errors import ExecutorError, StorageError
from polarmap.executors.base import Outcome
from polarmap.planning.backups import BACKUPS
from polarmap.run.execute import Launch, run_uncoded
from polarmap.run.options import MapOptions
from polarmap.run.running_map import Observers
from polarmap.storage.base import Store
from polarmap.worker.encryption import Encryption
from polarmap.worker.parts import Part
from polarmap.worker.pytree import Shape
from polarmap.worker.stored_output import OutputSpec

Array = npt.NDArray[Any]

SETTINGS = MapOptions(verify=False, retries=2)
COUNTS = 4  # numbers of a note before the checksums


def writing(
    store: Store,
    source: Source,
    plan: StripePlan,
    seen: NonFiniteRecord,
    executor: Any,
    observers: Observers,
    encryption: Encryption | None = None,
) -> StripeWriter:
    """Workers read, encode and store; late ones get a backup, and the first copy counts.

    Stripes that an earlier run had finished stay if workers find the same data there again. `seen` is
    told of NaN and inf.
    """
    readable = ReadableParts(source, store)
    for slab in plan.hyperslabs:  # refuses what workers cannot read before any starts
        for block in range(plan.code.k):
            readable.parts(block * plan.rows, slab)

    def write(generation: Generation, earlier: dict[int, list[Part]]) -> list[list[Part]]:
        stripes = range(len(plan.hyperslabs))
        done = {stripe: parts for stripe, parts in earlier.items() if stripe in stripes}
        if done:
            tasks = _Stripes(plan, readable, sorted(done))
            examined = run_on_parts(executor, examiner(), tasks, observers)
            for stripe, [note] in zip(tasks.stripes, (one.leaves or [] for one in examined)):
                found, sums = _parsed(note)
                if sums == [part.crc32 for part in done[stripe][: plan.code.k]]:
                    seen.note(stripe, found)
                else:
                    del done[stripe]
        tasks = _Stripes(plan, readable, [stripe for stripe in stripes if stripe not in done])
        if tasks.stripes:
            done |= _encoded(store, tasks, seen, generation, executor, observers, encryption)
        return [done[stripe] for stripe in stripes]

    return write


def _encoded(
    store: Store,
    tasks: _Stripes,
    seen: NonFiniteRecord,
    generation: Generation,
    executor: Any,
    observers: Observers,
    encryption: Encryption | None,
) -> dict[int, list[Part]]:
    """Stripe -> its parts, each noted in the generation as soon as it is stored."""
    code, done = tasks.plan.code, {}

    def note(outcome: Outcome) -> None:
        assert outcome.stored is not None
        stripe, parts = tasks.stripes[outcome.task], list(outcome.stored.parts)
        note_bytes = fetch(store, parts.pop(), encryption)
        if isinstance(note_bytes, str):
            raise StorageError(f"what a worker has noted of stripe {stripe} is {note_bytes}: encode again")
        found, sums = _parsed(np.frombuffer(note_bytes, np.int64))
        seen.note(stripe, found)
        if tasks.readable.is_stored:
            data = [tasks.parts_of(block, stripe)[0] for block in range(code.k)]
            parts = [part._replace(crc32=value) for part, value in zip(data, sums)] + parts
        generation.record(stripe, parts)
        done[stripe] = parts

    arrays = 1 + (code.n - code.k if tasks.readable.is_stored else code.n)
    items = max(tasks.plan.widest_stripe, code.k + COUNTS)  # every row, and the note, is one part
    output = OutputSpec(place_of(store, encryption), f"{generation.prefix}stripes", items, arrays)
    encode = encoder(code, tasks.plan, not tasks.readable.is_stored)
    run_on_parts(executor, encode, tasks, observers, encryption, output, note)
    return done


def run_on_parts(
    executor: Any,
    f: Callable[[Any], Any],
    tasks: PartBlocks,
    observers: Observers,
    encryption: Encryption | None = None,
    output: OutputSpec | None = None,
    note: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """f on workers, of parts that they read themselves; late ones get a backup, the first copy counts."""
    if output is not None and output.source.kind == "driver":
        raise ExecutorError(
            f"the array goes to {output.source.place}, which workers cannot reach: leave executor out"
        )
    options = SETTINGS if encryption is None else replace(SETTINGS, key=encryption.key)
    outcomes, _ = run_uncoded(Launch(executor), f, tasks, options, observers, BACKUPS, output, note)
    return outcomes


def encoder(code: PolarCode, plan: StripePlan, with_data: bool) -> Callable[[Array], list[Array]]:
    """On a worker, which has numpy only: the rows of a stripe and a note of what was found of NaN and inf.

    The rows are data and parity, or parity only; then the note holds the checksums of the data.
    """
    P, find = code.parity_check[:, : code.k], nonfinite_finder()
    dtype = plan.parity_dtype
    if dtype.kind in "iu":
        P = P.astype(dtype)

    def encode(stripe: Array) -> list[Array]:
        with np.errstate(over="ignore", invalid="ignore"):
            parity = np.matmul(P, stripe.astype(dtype) if dtype.kind in "iu" else stripe)
            rows = list(parity.astype(dtype, copy=False))
        found = find(stripe, rows)
        if with_data:
            return [*stripe, *rows, np.array(found, np.int64)]
        return [*rows, np.array([*found, *(zlib.crc32(row.data) for row in stripe)], np.int64)]

    return encode


def examiner() -> Callable[[Array], Array]:
    """On a worker: the note that goes with a stripe which is encoded already."""
    find = nonfinite_finder()
    return lambda stripe: np.array([*find(stripe), *(zlib.crc32(row.data) for row in stripe)], np.int64)


def _parsed(note: Array) -> tuple[NonFiniteCounts, list[int]]:
    """What was found of NaN and inf, and the checksums of data rows if these are in the note."""
    count, block, column, overflowing, *sums = note.tolist()
    return (count, block, column, overflowing), sums


class _Stripes(PartBlocks):
    """What each worker gets: a stripe of all k data blocks, which it reads where they lie."""

    def __init__(self, plan: StripePlan, readable: ReadableParts, stripes: Sequence[int]) -> None:
        self.plan, self.readable, self.stripes = plan, readable, list(stripes)
        super().__init__([], ("array",), len(self.stripes))
        self.source = readable.place

    def parts_of(self, block: int, stripe: int) -> tuple[Part, ...]:
        """Of one data block."""
        return self.readable.parts(block * self.plan.rows, self.plan.hyperslabs[stripe])

    def parts(self, index: int) -> tuple[Part, ...]:
        """Of all of them, in order."""
        blocks = range(self.plan.code.k)
        return tuple(part for block in blocks for part in self.parts_of(block, self.stripes[index]))

    def layout(self, index: int) -> tuple[tuple[str, Shape], ...]:
        """Data blocks as rows."""
        width = self.plan.width(self.stripes[index])
        return ((self.plan.dtype.str, (self.plan.code.k, width)),)

    def piece(self, number: int) -> list[Array]:
        """Read here, for an executor whose workers are this process."""
        stripe, [(_, shape)] = self.stripes[number], self.layout(number)
        rows = np.empty(shape, self.plan.dtype)
        for block, row in enumerate(rows):
            self.readable.source.read(block * self.plan.rows, self.plan.hyperslabs[stripe], row)
        return [rows]
