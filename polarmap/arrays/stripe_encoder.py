"""From data to an array that can be opened: n blocks, stripe by stripe, and the manifest last of all."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from polarmap.arrays.array_tasks import TaskRunner
from polarmap.arrays.generations import Generation, replaceable
from polarmap.arrays.manifest import Manifest, array_prefix, describe_code
from polarmap.arrays.sources import Source
from polarmap.arrays.stripes import StripePlan
from polarmap.arrays.weighted_sums import weighted_sums, weights_of
from polarmap.arrays.zarr_chunks import as_zarr, put_stripe
from polarmap.dtypes import Array
from polarmap.errors import CodeError, StorageError, warn
from polarmap.executors.base import Coded
from polarmap.storage import Store
from polarmap.worker.messages import OutputSpec
from polarmap.worker.parts import Part
from polarmap.worker.pytree import Layout

# What is found of NaN and inf in a stripe: how many among the data, where the first of them is, and columns
# of finite data whose parity overflows. A note says that, and then the checksums if it has them.
COUNTS = 3


class StripeEncoder:
    """Has the stripes of all data blocks read, encoded and stored, each by one task.

    Workers read the data where they lie, which is refused at once where they cannot, and store no copy of
    data blocks that lie in the store.
    """

    def __init__(self, runner: TaskRunner, source: Source, plan: StripePlan) -> None:
        self._runner, self._source, self._plan = runner, source, plan
        self._notes: dict[int, Array] = {}  # of stripes
        places = itertools.product(range(plan.code.k), range(len(plan.hyperslabs)))
        if not runner.is_here and not all(source.locate(plan.slab(*place)) for place in places):
            raise CodeError(
                "with executor=, the data has to lie where workers can read it themselves: a .npy file "
                "or memory map on this machine, or objects in the storage of which each block is a whole "
                "number, without padding rows; leave executor out to send it through the driver"
            )

    def write(self, name: str, overwrite: bool) -> Manifest:
        """Have the n blocks stored and, last of all, their manifest; warns of NaN and inf among them."""
        plan, store = self._plan, self._runner.parts.store
        before = replaceable(store, name, "" if overwrite else ", or pass overwrite=True")
        if hasattr(store, "sweep"):
            store.sweep()
        with Generation(self._runner.parts, name, _purpose(plan)) as generation:
            kept = self._unchanged(generation.finished_stripes())
            stripes = range(len(plan.hyperslabs))
            done = kept | self._encoded([stripe for stripe in stripes if stripe not in kept], generation)
            parts = tuple(tuple(done[stripe][block] for stripe in stripes) for block in range(plan.code.n))
            made = Manifest(name, plan.shape, plan.dtype, plan.code, parts)
            if plan.chunk_shape is not None:
                made = as_zarr(generation, made, plan.chunk_shape)
                if not made.is_zarr and not plan.stripes_are_chunks:  # a block is too large to be held
                    made = replace(made, zarr=None)
            if kept:
                _check_still_there(store, made)
            made = generation.publish(made, before)
        warn_of_nonfinite(plan, self._notes.items())
        return made

    def _unchanged(self, earlier: dict[int, list[Part]]) -> dict[int, list[Part]]:
        """The parts of those stripes of earlier runs of which the source still holds the same numbers.

        That is seen by reading it again. Not those that would be filled up to be chunks: nothing tells
        whether they were.
        """
        plan, kept = self._plan, dict[int, list[Part]]()
        stripes = [
            one for one in range(len(plan.hyperslabs)) if one in earlier and not plan.is_filled_up(one)
        ]

        def compare(task: int, parts: list[Part], note: Array) -> None:
            stripe = stripes[task]
            if note[COUNTS:].tolist() == [part.crc32 for part in earlier[stripe][: plan.code.k]]:
                self._notes[stripe], kept[stripe] = note, earlier[stripe]

        tasks = StripeTasks(plan, self._source, stripes)
        self._runner.run(encoder(None, copies=False), tasks, compare)
        return kept

    def _encoded(self, stripes: Sequence[int], generation: Generation) -> dict[int, list[Part]]:
        """The parts of stripes, each noted in the generation as soon as it is stored, but for the last."""
        plan, code, done = self._plan, self._plan.code, dict[int, list[Part]]()
        tasks = StripeTasks(plan, self._source, stripes)
        copies = self._runner.is_here or not self._source.object_rows

        def put(task: int, number: int, row: Array) -> Part:
            return self._put(generation, number, stripes[task], row)

        def take(task: int, parts: list[Part], note: Array) -> None:
            stripe = stripes[task]
            self._notes[stripe] = note
            if not copies:
                data = zip(tasks.parts(task), note[COUNTS:].tolist())
                parts = [part._replace(crc32=value) for part, value in data] + parts
            done[stripe] = parts
            if len(done) < len(stripes):  # else the manifest comes next
                generation.record(stripe, parts)

        count, items = code.n if copies else code.n - code.k, max(plan.widest_stripe, code.k + COUNTS)
        output = OutputSpec(self._runner.parts.place, f"{generation.prefix}stripes", items, count)
        parity: Callable[[Any], Any] = code.encode_parity
        if not self._runner.is_here:
            weights = weights_of(code, plan.dtype, range(code.k, code.n))
            parity = weighted_sums(weights, [plan.parity_dtype] * len(weights))
        self._runner.run(encoder(parity, copies), tasks, take, output, put)
        return done

    def _put(self, generation: Generation, block: int, stripe: int, row: Array) -> Part:
        """Store a row from here, where Zarr looks for it; not if it lies in the store already."""
        plan = self._plan
        if block < plan.code.k:
            if self._source.object_rows:
                for place in self._source.locate(plan.slab(block, stripe)):
                    return place._replace(crc32=zlib.crc32(row.data))
            chunk = put_stripe(generation, plan, block, stripe, row)
            if chunk is not None:
                return chunk
        return generation.put(block, stripe, row)


def _purpose(plan: StripePlan) -> dict[str, Any]:
    """What two runs must agree on for one to go on where the other stopped."""
    return {
        "shape": list(plan.shape),
        "dtype": plan.dtype.str,
        "code": describe_code(plan.code),
        "stripes": [len(plan.hyperslabs), plan.widest_stripe],
        "chunk": plan.chunk_shape and list(plan.chunk_shape),
    }


def _check_still_there(store: Store, made: Manifest) -> None:
    """Parts kept from earlier runs may have been swept by another process."""
    folder = array_prefix(made.name)
    gone = {key for key in made.objects if key.startswith(folder)} - set(store.keys(folder))
    if gone:
        raise StorageError(
            f"{len(gone)} parts of {made.name!r} in {store.name} were removed by another process "
            "meanwhile; encode again"
        )


class StripeTasks(Coded):
    """What each task is about: a stripe of all k data blocks, which workers read where they lie."""

    def __init__(self, plan: StripePlan, data: Source, stripes: Sequence[int]) -> None:
        self._plan, self._data, self._stripes = plan, data, stripes
        self.n, self.structure = len(stripes), ("array",)
        self.source = data.place

    def parts(self, index: int) -> tuple[Part, ...]:
        """The parts of all data blocks in stripe `index`, in order."""
        plan, stripe = self._plan, self._stripes[index]
        slabs = (plan.slab(block, stripe) for block in range(plan.code.k))
        return tuple(part for slab in slabs for part in self._data.locate(slab))

    def layout(self, index: int) -> Layout:
        """Data blocks as rows."""
        width = self._plan.width(self._stripes[index])
        return ((self._plan.dtype.str, (self._plan.code.k, width)),)

    def piece(self, number: int) -> list[Array]:
        """Read here, for a worker that is this process."""
        [(_, shape)] = self.layout(number)
        rows = np.empty(shape, self._plan.dtype)
        for block, row in enumerate(rows):
            self._data.read(self._plan.slab(block, self._stripes[number]), row)
        return [rows]


def warn_of_nonfinite(plan: StripePlan, notes: Iterable[tuple[int, Array]]) -> None:
    """Say what NaN and inf the notes of stripes tell of, in whose places nothing lost can be decoded."""
    found = [(stripe, note[:COUNTS].tolist()) for stripe, note in notes]
    count, overflowing = (sum(one[number] for _, one in found) for number in (0, 2))
    text = []
    if count:
        starts = list(accumulate(map(plan.width, range(len(plan.hyperslabs))), initial=0))
        spoilt = [(stripe, *divmod(first, plan.width(stripe))) for stripe, (some, first, _) in found if some]
        position = min(block * starts[-1] + starts[stripe] + column for stripe, block, column in spoilt)
        first = [int(place) for place in np.unravel_index(position, plan.shape)]
        entries = "1 entry is" if count == 1 else f"{count} entries are"
        text.append(f"{entries} NaN or inf, the first at {first}")
    if overflowing:
        places = "1 place" if overflowing == 1 else f"{overflowing} places"
        text.append(f"at {places} of the blocks the parity overflows {plan.parity_dtype}")
    if text:
        warn(
            f"{' and '.join(text)}: a lost part cannot be decoded where it, or another block in the same "
            "place, holds such an entry"
        )


# --- what travels to workers, which have numpy only ----------------------------------------------


def encoder(parity: Callable[[Any], Any] | None, copies: bool) -> Callable[[Array], list[Array]]:
    """The rows of a stripe and a note of what was found of NaN and inf.

    The rows are data and parity, or, without `copies`, parity; then the note holds the checksums of the data.
    Without `parity` the stripe is encoded already: there is only the note.
    """

    def nonfinite(stripe: Array, rows: Sequence[Array]) -> list[int]:
        if stripe.dtype.kind in "iu" or (rows and all(np.isfinite(row).all() for row in rows)):
            return [0, 0, 0]
        count, first, width = 0, 0, stripe.shape[1]
        spoiled, overflowing = np.zeros(width, bool), np.zeros(width, bool)
        for block, row in enumerate(stripe):  # a mask of all rows would be memory that nobody has counted
            found = ~np.isfinite(row)
            if not count and found.any():
                first = block * width + int(found.argmax())
            count += int(found.sum())
            spoiled |= found
        for row in rows:
            overflowing |= ~np.isfinite(row)
        return [count, first, int((overflowing & ~spoiled).sum())]

    def encode(stripe: Array) -> list[Array]:
        rows = [] if parity is None else list(parity(stripe))
        found = nonfinite(stripe, rows)
        if copies:
            return [*stripe, *rows, np.array(found, np.int64)]
        return [*rows, np.array([*found, *(zlib.crc32(row.data) for row in stripe)], np.int64)]

    return encode
