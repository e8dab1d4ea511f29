"""The results of a map, as it returns them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, overload

from polarmap.blocks.equal import concatenate_results
from polarmap.driver.reports import LazyReport
from polarmap.report import Report

T = TypeVar("T")


class CodedResult(Sequence[T]):
    """The k results of a coded map, in order, as `[f(block) for block in blocks]` gives them.

    Parameters
    ----------
    results : sequence
    lazy_report : LazyReport
    """

    def __init__(self, results: Sequence[T], lazy_report: LazyReport) -> None:
        self._results, self._lazy_report = list(results), lazy_report

    @property
    def report(self) -> Report:
        """Who arrived when, what was decoded, how accurate it is."""
        return self._lazy_report.report

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
        return concatenate_results(self._results, axis)
