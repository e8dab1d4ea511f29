"""One codeword of a map: its blocks, what has arrived of its results, and whether they stand.

A map without subtasks is one codeword. With s subtasks it is s of them: the first rows of all
coded blocks, the next rows, and so on; each is decoded as soon as enough workers handed it in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from polarmap.blocks.base import CodedData
from polarmap.blocks.equal import Blocks
from polarmap.code.base import Code
from polarmap.code.recovery import Decoder
from polarmap.errors import CodeError
from polarmap.executors.base import Failure, Outcome
from polarmap.run.acceptance import Settlement
from polarmap.run.options import Settings
from polarmap.run.received import Arrivals
from polarmap.run.stopwatch import Stopwatch
from polarmap.run.verify import Verifier
from polarmap.worker.partial_results import rows
from polarmap.worker.pytree import Structure

Array = npt.NDArray[Any]


class Codeword:
    """The collector's view of one codeword.

    Attributes
    ----------
    arrivals, verifier, settlement
    how : str or None
        How its results were verified, once they are settled.
    """

    def __init__(
        self,
        f: Callable[[Any], Any],
        coded: CodedData,
        settings: Settings,
        watch: Stopwatch,
        is_known: bool,
        number: int = 0,
    ) -> None:
        many = settings.subtasks > 1
        self._coded = cast(CodedData, Rows(coded, settings.subtasks, number)) if many else coded
        self.number = number
        self.arrivals = Arrivals(self._coded, settings.rtol, self._model, settings.trusted, settings.shape)
        self.verifier = Verifier(f, self._coded, self.arrivals, settings, is_known)
        self.settlement = Settlement(self.arrivals, self.verifier, settings, watch)
        self.how: str | None = None
        self._watch = watch
        self._late: list[tuple[Outcome, float]] = []  # came after the results were settled

    def take_in(self, outcome: Outcome, elapsed: float) -> None:
        """Note what became of a task here; what is settled stays as it is."""
        if self.how is None:
            self.arrivals.absorb(outcome, elapsed)
        else:
            self._late.append((outcome, elapsed))
            self.arrivals.note(outcome, elapsed)

    def look(self) -> bool:
        """Whether the results are settled."""
        self.how = self.how or self.settlement.look()
        return self.how is not None

    @property
    def is_short(self) -> bool:
        """Whether more results are needed."""
        return self.how is None and (self.arrivals.ready_at is None or self.settlement.not_finite)

    def could_finish(self, accurately: bool = True) -> bool:
        """Whether what arrived, still runs or is held back can determine the results."""
        return self.arrivals.could_finish(self.settlement.not_finite, accurately)

    @property
    def error_bound(self) -> float:
        """What the results may be off by, as a share of the largest number among them."""
        return self.verifier.error_bound(self.results)

    def distrust(self, task: int, attempt: int, failure: Failure) -> None:
        """A worker was found out in another codeword: what that attempt returned here counts no more."""
        received = self.arrivals.received.get(task)
        self.arrivals.convicted[task] = max(attempt, self.arrivals.convicted.get(task, -1))
        if received is not None and received.attempt <= attempt:
            self.arrivals.drop(task, failure, self._watch.elapsed)
            self.how, late, self._late = None, self._late, []
            for outcome, elapsed in late:
                self.arrivals.tasks[outcome.task].arrived = None
                self.arrivals.absorb(outcome, elapsed)

    @property
    def garbage(self) -> dict[int, tuple[int, Failure]]:
        """The tasks whose results contradicted the others: in which attempt, and what is said of it."""
        found = {}
        for index, attempt in self.arrivals.convicted.items():
            for failure in self.arrivals.tasks[index].failures:
                if failure.kind == "garbage":
                    found[index] = attempt, failure
        return found

    @property
    def decoder(self) -> Decoder:
        """Of the results, which are settled."""
        assert self.arrivals.decoder is not None
        return self.arrivals.decoder

    @property
    def results(self) -> list[list[Array]]:
        """Of the k data blocks, flat."""
        assert self.settlement.results is not None
        return self.settlement.results

    def _model(self) -> list[Array] | None:
        return self.verifier.evaluate(0, self._watch.remaining)


class Rows:
    """Some rows of all coded blocks: coded blocks of the same code."""

    def __init__(self, coded: CodedData, count: int, number: int) -> None:
        self._all, self._count, self._number = coded, count, number
        self.n, self.k, self.structure, self.source = coded.n, coded.k, coded.structure, coded.source

    @property
    def encode_seconds(self) -> float:
        """Of all rows."""
        return self._all.encode_seconds

    @property
    def unprotected_warning(self) -> str:
        """Of all rows."""
        return self._all.unprotected_warning

    @property
    def code(self) -> Code:
        """Of all rows."""
        return self._all.code

    @property
    def blocks(self) -> Blocks:
        """These rows of the data blocks."""
        return cast(Blocks, RowsOfData(self._all.blocks, self._count, self._number))

    def leaves(self, index: int) -> list[Array]:
        """These rows of block `index`."""
        return cut_rows(self._all.leaves(index), self._count, self._number)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._all, name)  # what executors ask for is the whole block


class RowsOfData:
    """Some rows of all data blocks."""

    def __init__(self, blocks: Blocks, count: int, number: int) -> None:
        self._blocks, self._count, self._number = blocks, count, number
        self.k, self.structure, self.dtypes = blocks.k, blocks.structure, blocks.dtypes

    def largest(self, leaf: int) -> int:
        """Of all rows, which bounds that of these."""
        return self._blocks.largest(leaf)

    def leaves(self, index: int) -> list[Array]:
        """These rows of data block `index`."""
        return cut_rows(self._blocks.leaves(index), self._count, self._number)


def cut_rows(leaves: Sequence[Array], count: int, number: int) -> list[Array]:
    """Of each array the rows that a subtask takes."""
    return [leaf[rows(len(leaf), count, number)] for leaf in leaves]


def check_rows(coded: CodedData, subtasks: int) -> None:
    """CodeError for blocks that cannot be cut into so many subtasks."""
    for name, shape in coded.layout(0):
        if not shape or shape[0] < subtasks:
            raise CodeError(
                f"subtasks={subtasks} cuts every array of a block along its first axis, and one is {name} of "
                f"shape {tuple(shape)}: use fewer subtasks"
            )


def by_subtask(outcome: Outcome, count: int) -> list[tuple[int, Outcome]]:
    """An outcome for each codeword that it says something of."""
    if outcome.leaves is None or not outcome.subtasks:
        return [(number, outcome) for number in range(count)]
    assert outcome.structure is not None
    found, first = [], 0
    for subtask, structure in zip(outcome.subtasks, outcome.structure[2], strict=True):
        size = count_leaves(structure)
        part = outcome._replace(
            leaves=outcome.leaves[first : first + size], structure=structure, subtasks=(), over=True
        )
        found.append((subtask, part))
        first += size
    return found


def count_leaves(structure: Structure) -> int:
    """Of a tree of this structure."""
    return 1 if len(structure) == 1 else sum(map(count_leaves, structure[2]))


def joined(parts: Sequence[list[list[Array]]]) -> list[list[Array]]:
    """Results of the data blocks from those of their subtasks."""
    if len(parts) == 1:
        return parts[0]
    kinds = [[leaf.shape[1:] for leaf in part[0]] for part in parts]
    if any(kind != kinds[0] for kind in kinds) or any(not leaf.ndim for part in parts for leaf in part[0]):
        raise CodeError(
            "f of the pieces of a block gave results that cannot be joined along axis 0: leave subtasks out "
            "for this f, unless workers returned garbage"
        )
    return [
        [np.concatenate(leaves) for leaves in zip(*(part[block] for part in parts), strict=True)]
        for block in range(len(parts[0]))
    ]
