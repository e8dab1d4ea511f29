"""From data to n blocks in storage, stripe by stripe."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.arrays.array_tasks import TaskRunner
from polarmap.arrays.generations import Generation
from polarmap.arrays.manifest import checksum
from polarmap.arrays.nonfinite import NonFiniteCounts, NonFiniteRecord, nonfinite_finder
from polarmap.arrays.sources import Source
from polarmap.arrays.stripes import StripePlan
from polarmap.arrays.zarr_chunks import put_stripe
from polarmap.code.polar import PolarCode
from polarmap.errors import CodeError
from polarmap.executors.base import Coded
from polarmap.worker.parts import Part
from polarmap.worker.pytree import Layout
from polarmap.worker.stored_output import OutputSpec

Array = npt.NDArray[Any]

COUNTS = 4  # numbers of a note before the checksums


class StripeEncoder:
    """Has the stripes of all data blocks read, encoded and stored, each by one task.

    `seen` is told of NaN and inf. Workers read the data where they lie, which is refused at once where they
    cannot, and store no copy of data blocks that lie in the store.
    """

    def __init__(self, runner: TaskRunner, source: Source, plan: StripePlan, seen: NonFiniteRecord) -> None:
        self._runner, self._source, self._plan, self._seen = runner, source, plan, seen
        if not runner.is_here:
            for slab in plan.hyperslabs:
                for block in range(plan.code.k):
                    _check_located(source.locate(block * plan.rows, slab))

    def write(self, generation: Generation, earlier: dict[int, list[Part]]) -> list[list[Part]]:
        """The n parts of each stripe, once they are stored.

        Stripes that an earlier run of the same plan had finished are kept if the source still holds the same
        numbers there, which is seen by reading it again.
        """
        stripes = range(len(self._plan.hyperslabs))
        done = self._unchanged(earlier)
        done |= self._encoded([stripe for stripe in stripes if stripe not in done], generation)
        return [done[stripe] for stripe in stripes]

    def _unchanged(self, earlier: dict[int, list[Part]]) -> dict[int, list[Part]]:
        """The parts of those stripes of which the data are what was encoded.

        Not those that would be filled up to be chunks: nothing tells whether they were.
        """
        plan, kept = self._plan, {}
        stripes = [
            one for one in range(len(plan.hyperslabs)) if one in earlier and not plan.is_filled_up(one)
        ]

        def compare(task: int, parts: list[Part], note: Array) -> None:
            stripe, (found, sums) = stripes[task], _parsed(note)
            if sums == [part.crc32 for part in earlier[stripe][: plan.code.k]]:
                self._seen.note(stripe, found)
                kept[stripe] = earlier[stripe]

        self._runner.run(examiner(), self._tasks(stripes), compare)
        return kept

    def _encoded(self, stripes: Sequence[int], generation: Generation) -> dict[int, list[Part]]:
        """The parts of stripes, each noted in the generation as soon as it is stored, but for the last."""
        plan, code, done = self._plan, self._plan.code, {}
        tasks = self._tasks(stripes)
        copies = self._runner.is_here or not self._source.is_stored

        def put(task: int, number: int, row: Array) -> Part:
            return self._put(generation, number, stripes[task], row)

        def note(task: int, parts: list[Part], told: Array) -> None:
            stripe, (found, sums) = stripes[task], _parsed(told)
            self._seen.note(stripe, found)
            if not copies:
                data = zip(tasks.parts(task), sums)
                parts = [part._replace(crc32=value) for part, value in data] + parts
            done[stripe] = parts
            if len(done) < len(stripes):  # else the manifest comes next
                generation.record(stripe, parts)

        count, items = code.n if copies else code.n - code.k, max(plan.widest_stripe, code.k + COUNTS)
        output = OutputSpec(self._runner.parts.place, f"{generation.prefix}stripes", items, count)
        parity = code.parity if self._runner.is_here else multiplier(code, plan.parity_dtype)
        self._runner.run(encoder(parity, copies), tasks, note, output, put)
        return done

    def _tasks(self, stripes: Sequence[int]) -> StripeTasks:
        return StripeTasks(self._plan, self._source, stripes)

    def _put(self, generation: Generation, block: int, stripe: int, row: Array) -> Part:
        """Store a row from here, where Zarr looks for it; not if it lies in the store already."""
        plan = self._plan
        if block < plan.code.k:
            if self._source.is_stored:
                for place in self._source.locate(block * plan.rows, plan.hyperslabs[stripe]):
                    return place._replace(crc32=checksum(row))
            chunk = put_stripe(generation.store, generation.prefix, plan, block, stripe, row)
            if chunk is not None:
                return chunk
        return self._runner.parts.put(generation.part_key(block, stripe), row)


def _check_located(parts: Sequence[Part]) -> None:
    """Raise CodeError if only this process can read the data."""
    if not parts:
        raise CodeError(
            "with executor=, the data has to lie where workers can read it themselves: a .npy file "
            "or memory map on this machine, or objects in the storage of which each block is a whole "
            "number, without padding rows; leave executor out to send it through the driver"
        )


def multiplier(code: PolarCode, dtype: np.dtype[Any]) -> Callable[[Array], Array]:
    """On a worker, which has numpy only: the parity, of that dtype, of the data rows of a stripe."""
    P = code.parity_check[:, : code.k]
    if dtype.kind in "iu":
        P = P.astype(dtype)

    def parity(stripe: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            rows: Array = np.matmul(P, stripe.astype(dtype) if dtype.kind in "iu" else stripe)
            return rows.astype(dtype, copy=False)

    return parity


def encoder(parity: Callable[[Array], Array], copies: bool) -> Callable[[Array], list[Array]]:
    """On a worker, which has numpy only: the rows of a stripe and a note of what was found of NaN and inf.

    The rows are data and parity, or, without `copies`, parity; then the note holds the checksums of the data.
    """
    find = nonfinite_finder()

    def encode(stripe: Array) -> list[Array]:
        rows = list(parity(stripe))
        found = find(stripe, rows)
        if copies:
            return [*stripe, *rows, np.array(found, np.int64)]
        return [*rows, np.array([*found, *(zlib.crc32(row.data) for row in stripe)], np.int64)]

    return encode


def examiner() -> Callable[[Array], list[Array]]:
    """On a worker: the note that goes with a stripe which is encoded already, with the checksums."""
    find = nonfinite_finder()
    return lambda stripe: [np.array([*find(stripe), *(zlib.crc32(row.data) for row in stripe)], np.int64)]


def _parsed(note: Array) -> tuple[NonFiniteCounts, list[int]]:
    """What was found of NaN and inf, and the checksums of data rows if these are in the note."""
    count, block, column, overflowing, *sums = note.tolist()
    return (count, block, column, overflowing), sums


class StripeTasks(Coded):
    """What each task is about: a stripe of all k data blocks, which workers read where they lie."""

    def __init__(self, plan: StripePlan, data: Source, stripes: Sequence[int]) -> None:
        self._plan, self._data, self._stripes = plan, data, stripes
        self.n, self.structure = len(stripes), ("array",)
        self.source = data.place

    def parts(self, index: int) -> tuple[Part, ...]:
        """The parts of all data blocks in stripe `index`, in order."""
        plan, slab = self._plan, self._plan.hyperslabs[self._stripes[index]]
        blocks = range(plan.code.k)
        return tuple(part for block in blocks for part in self._data.locate(block * plan.rows, slab))

    def layout(self, index: int) -> Layout:
        """Data blocks as rows."""
        width = self._plan.width(self._stripes[index])
        return ((self._plan.dtype.str, (self._plan.code.k, width)),)

    def piece(self, number: int) -> list[Array]:
        """Read here, for a worker that is this process."""
        slab, [(_, shape)] = self._plan.hyperslabs[self._stripes[number]], self.layout(number)
        rows = np.empty(shape, self._plan.dtype)
        for block, row in enumerate(rows):
            self._data.read(block * self._plan.rows, slab, row)
        return [rows]
