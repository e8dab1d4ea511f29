"""Results of f: that of one block, as it comes from a worker, and those of a map, as it returns them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar, overload

from polarmap.blocks.equal import concatenate
from polarmap.code.dtypes import Array, DType
from polarmap.report import Report
from polarmap.worker.messages import StoredOutput
from polarmap.worker.pytree import Structure

T = TypeVar("T")

_KIND, _SHAPE = attrgetter("dtype.kind"), attrgetter("shape")


class Result(NamedTuple):
    """What f returned for a block, on a worker.

    leaves, structure : its arrays, and how they make it up.
    stored : where it lies in storage, if the arrays are only a sample of it.
    """

    leaves: list[Array]
    structure: Structure
    stored: StoredOutput | None

    @property
    def kind(self) -> Any:
        """What results of one f have in common: their dtypes but for the width of integers, too."""
        return repr(self.structure), kind_of(self.leaves)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of its arrays."""
        return [leaf.shape for leaf in self.leaves]

    @property
    def dtypes(self) -> list[DType]:
        """Of its arrays."""
        return [leaf.dtype for leaf in self.leaves]

    @property
    def is_well_formed(self) -> bool:
        """Whether numbers are single ones: what says otherwise has not come from f."""
        kinds = kinds_of(self.structure)
        return all(one.size == 1 for one, kind in zip(self.leaves, kinds) if kind in ("python", "numpy"))

    def __str__(self) -> str:
        return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in self.leaves) or "nothing"


def kind_of(leaves: Sequence[Array]) -> Any:
    """What must agree between the arrays of results: any integer goes with any other."""
    return "".join(map(_KIND, leaves)).replace("u", "i"), tuple(map(_SHAPE, leaves))


def kinds_of(structure: Structure) -> list[str]:
    """What each leaf of a tree of this structure was: "array", "numpy" or "python"."""
    if len(structure) < 3 or structure[0] == "sample":
        return [structure[0]]
    return [kind for part in structure[2] for kind in kinds_of(part)]


class CodedResult(Sequence[T]):
    """The k results of a coded map, in order, as `[f(block) for block in blocks]` gives them.

    Attributes
    ----------
    report : Report
        Who arrived when, what was decoded, how accurate it is.
    """

    def __init__(self, results: Sequence[T], report: Report) -> None:
        self._results, self.report = list(results), report

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        return self._results[index]

    def __iter__(self) -> Iterator[T]:
        return iter(self._results)

    def __repr__(self) -> str:
        return f"<CodedResult of {len(self)} blocks, {len(self.report.recovered)} decoded>"

    def concatenate(self, axis: int = 0) -> Any:
        """The results as one array.

        Parameters
        ----------
        axis : int
            Along which results are joined. Scalars are stacked.

        Raises
        ------
        CodeError
            If the results are containers rather than arrays, or their shapes do not fit.
        """
        return concatenate(self._results, axis)
