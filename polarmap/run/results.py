"""Results of f, as they arrive or as f gives them here, and what a map returns of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, overload

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.blocks.equal import concatenate
from polarmap.code.dtypes import EPS, Array, DType, is_exact
from polarmap.errors import CodeError
from polarmap.executors.base import Outcome
from polarmap.report import Report
from polarmap.worker.messages import describe
from polarmap.worker.pytree import Structure, flatten, unflatten
from polarmap.worker.threads import run_on_daemon

T = TypeVar("T")

LOOK_SECONDS = 0.005  # that one look takes, so that a loop over it does not spin


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


def leaves_of(outcome: Outcome) -> list[Array]:
    """The arrays of a result."""
    assert outcome.leaves is not None
    return outcome.leaves


def signature(outcome: Outcome) -> Any:
    """What results of one f have in common; parity blocks of integers may be wider."""
    kinds = tuple((kind_of(leaf.dtype), leaf.shape) for leaf in leaves_of(outcome))
    return repr(outcome.structure), kinds


def are_alike(one: Outcome, other: Outcome) -> bool:
    """Whether results are of one structure, and their arrays of one dtype and shape."""
    mine, theirs = one.leaves or [], other.leaves or []
    if one.structure != other.structure or len(mine) != len(theirs):
        return False
    for leaf, another in zip(mine, theirs):
        if leaf.dtype != another.dtype or leaf.shape != another.shape:
            return False
    return True


def kind_of(dtype: DType) -> str:
    """What must agree between results: any integer goes with any other."""
    return "integer" if is_exact(dtype) else dtype.kind


def is_well_formed(outcome: Outcome) -> bool:
    """Whether numbers are single ones: what says otherwise has not come from f."""
    kinds = kinds_of(outcome.structure or ("array",))
    return all(
        leaf.size == 1 or kind not in ("python", "numpy") for kind, leaf in zip(kinds, leaves_of(outcome))
    )


def shapes_of(outcome: Outcome) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in leaves_of(outcome)]


def kinds_of(structure: Structure) -> list[str]:
    """What each leaf of a tree of this structure was: "array", "numpy" or "python"."""
    if len(structure) < 3 or structure[0] == "sample":
        return [structure[0]]
    return [kind for part in structure[2] for kind in kinds_of(part)]


def unwrapped(
    weights: Array, received: list[int], data: int, blocks: Array, are_small: bool, may_wrap: bool
) -> list[Array]:
    """Python integers, which do not wrap, from what they are modulo 2^64 and from what they are about.

    CodeError for one that may be another that is the same modulo 2^64. Of those from 2^63 on, or
    negative, one is certain if a result of a data block lies on that side: else f may add up in 64 bits,
    with a sign or without one.

    received : what arrived, first those of so many data blocks.
    are_small : whether sums of the data stay below 2^63.
    may_wrap : whether parity blocks of the data may.
    """
    values = np.array(received, np.float64)
    about = weights @ values
    margin = 16 * EPS * (np.abs(weights) @ np.abs(values)) + 1
    sides = {value < 0 for value in received[:data] if not 0 <= value < 1 << 63}
    found = []
    for near, off, modular in zip(about.tolist(), margin.tolist(), blocks[:, 0].tolist()):
        exact = modular % 2**64
        is_low = exact < 1 << 63
        exact -= (not is_low and exact - near > 1 << 63) << 64
        fits = not may_wrap and abs(exact - near) <= off
        if not (fits and (is_low or (exact < 0) in sides)) and not (is_low and are_small):
            raise CodeError(
                "f returns Python integers, and a lost one may be off by 2^64, modulo which parity of the "
                "data is decoded: return numpy integers, as in numpy.int64(total)"
            )
        found.append(np.array([exact]))
    return found


def describe_result(outcome: Outcome) -> str:
    return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves_of(outcome)) or "nothing"


# --- f on the driver, beside the map -----------------------------------------------------------


class LocalRun:
    """f on one block, which is made on the same daemon thread of the driver.

    Attributes
    ----------
    index : int
        The block.
    leaves, structure : list of arrays and Structure, or None
        Of the result, once there is one.
    error : BaseException or None
        What f raised.
    """

    def __init__(self, f: Callable[[Any], Any], block: Callable[[], Any], index: int = 0) -> None:
        self.index = index
        self.leaves: list[Array] | None = None
        self.structure: Structure | None = None
        self.error: BaseException | None = None
        self._ended = threading.Event()
        run_on_daemon(partial(self._run, f, block))

    def _run(self, f: Callable[[Any], Any], block: Callable[[], Any]) -> None:
        try:
            leaves, self.structure = flatten(f(block()))
            self.leaves = leaves  # by which others see that it has ended
        except BaseException as error:
            self.error = error
        finally:
            self._ended.set()

    @property
    def words(self) -> str:
        """What f raised, whatever the exception's own methods do."""
        assert self.error is not None
        said = describe(self.error)
        return f"{said.type}: {said.message}"

    def join(self, timeout: float) -> None:
        """Wait for it, at most `timeout` seconds."""
        self._ended.wait(timeout)

    @property
    def is_running(self) -> bool:
        """Whether f has not ended, also not within a moment that the question takes."""
        return not self._ended.wait(LOOK_SECONDS)


def evaluated_here(f: Callable[[Any], Any], block: Callable[[], Any], seconds: float) -> list[Array] | None:
    """The result of f on a block; None if it raises or takes too long."""
    run = LocalRun(f, block)
    run.join(seconds)
    return run.leaves


def coded_block(coded: CodedData, index: int) -> Any:
    """A coded block that f may change."""
    return unflatten(coded.structure, [leaf.copy() for leaf in coded.leaves(index)])


def data_block(coded: CodedData, index: int) -> Any:
    """A data block that f may change, which no coded block is where each is a mixture."""
    if len(coded.code.systematic):
        return coded_block(coded, index)
    return unflatten(coded.structure, [leaf.copy() for leaf in coded.blocks.leaves(index)])
