"""What rows of zeros do to f, where they fill up the last block of an array whose rows do not divide.

The result of that block is f of its own rows, which its task evaluates as well. Where that result is missing,
it can be decoded only if f gives one row for each row, so that rows of padding can be cut off, or if rows
of zeros make no difference to f, as to a sum over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.blocks.equal import find_divisors_near
from polarmap.dtypes import Array, DType, is_integer_dtype
from polarmap.errors import CodeError
from polarmap.executors.interface import TaskResult
from polarmap.run.local_run import LocalRun
from polarmap.run.options import MapOptions
from polarmap.run.trusted import Trust
from polarmap.run.verify import leaf_agrees
from polarmap.worker.pytree import Shape, unflatten

Precision = Callable[[DType], DType]  # whose rounding limits results of a dtype

PADDING = "what rows of zeros do to f"
MADE_UP = np.arange(1, 8)  # numbers of rows on which f is tried, where the data has none that tell
FACTOR_STEP = 0.25  # Rows on which f is tried are scaled by 1 + 0.25 row**2: sums of them seldom cancel.


class PaddingEffect(Enum):
    """What rows of zeros at the end of a block do to one array of the result of f."""

    ADDS_ROWS = "one row of the result for each row of the block"
    NO_EFFECT = "rows of zeros make no difference"
    CHANGES = "the result differs"


class KnownPadding(NamedTuple):
    """What earlier maps have found of f.

    effects : for each array of its results.
    same_bits : layouts of blocks, with their rows of data, of which f gave the same bits for these rows,
        whether rows of zeros followed or not.
    """

    effects: tuple[PaddingEffect, ...]
    same_bits: frozenset[Any] = frozenset()

    def cuts_off(self, block: Any) -> bool:
        """Return whether f of such a block need not be evaluated without its rows of zeros."""
        return block in self.same_bits and set(self.effects) == {PaddingEffect.ADDS_ROWS}


class Padding:
    """The rows of zeros in the last block of a map, and what they do to f.

    f is evaluated on the driver, beside the map, on two rows of a block, on four, and on two followed by rows
    of zeros; once for all maps of the same function.

    Parameters
    ----------
    f : callable
        What workers call.
    coded : CodedData
        Blocks of which the last one is filled up.
    options : MapOptions
    is_stored : bool
        Whether results stay in storage, as blocks of equal size.

    Attributes
    ----------
    task, rows : int
        The number of the block that is filled up, and how many rows of data it has.
    is_evaluated_apart : bool
        Whether the task of that block evaluates f on its rows of data alone, too. Not where each row of the
        result is known to come from one row of the block, where results stay in storage, and where no worker
        has a block of the data.
    """

    def __init__(
        self, f: Callable[[Any], Any], coded: CodedData, options: MapOptions, is_stored: bool = False
    ) -> None:
        short_block = coded.data_blocks.padded_block
        assert short_block is not None
        self.task, self.rows = short_block
        self._coded, self._blocks, self._rtol = coded, coded.data_blocks, options.rtol
        self._is_by_rows = options.known.row_by_row
        self._check_is_not_empty()
        self._asked_at: float | None = None
        self._trust = Trust(f, PADDING, self._blocks.dtypes, self._is_by_rows)
        self._known: KnownPadding | None = None if self._is_by_rows else self._trust.known
        self._block = (coded.block_layout(0), self.rows)
        is_cut_off = self._is_by_rows or (self._known is not None and self._known.cuts_off(self._block))
        self._is_stored, self._is_with_workers = is_stored, len(coded.code.systematic_indices) > 0
        self.is_evaluated_apart = not is_cut_off and not is_stored and self._is_with_workers
        self._effects: tuple[PaddingEffect, ...] | None = None
        self._run: LocalRun | None = None
        self._f = f

    def begin(self) -> None:
        """Begin to evaluate f on a few rows, on a thread, if nothing is known of it."""
        if not self._is_by_rows and self._known is None:
            f = self._f
            self._run = LocalRun(lambda blocks: tuple(map(f, blocks)), self._blocks_to_try)

    def _check_is_not_empty(self) -> None:
        """Raise CodeError for a stored array with blocks that hold no row of it."""
        if self.rows <= 0:
            raise CodeError(
                f"the {self._blocks.k} blocks of the coded array hold {self._total} rows in blocks of "
                f"{self._blocks.rows_per_block}, so that some are empty: encode it again"
            )

    @property
    def _total(self) -> int:
        """The number of rows of the data."""
        rows = self._blocks.rows_per_block
        assert rows is not None
        return self._blocks.k * rows - self._blocks.n_padding_rows

    # -- what f does ------------------------------------------------------------------------

    def is_over(self, now: float, patience: float) -> bool:
        """Return whether the effects are known, or have been waited for longer than `patience` seconds."""
        if self._asked_at is None:
            self._asked_at = now
        return self.is_known or now - self._asked_at > patience

    def wait(self, seconds: float) -> None:
        """Wait until the effects are known, for so many seconds at most."""
        if self._run is not None:
            self._run.leaves_within(seconds)

    @property
    def is_known(self) -> bool:
        """Whether f has been evaluated on a few rows, or need not be."""
        return self._run is None or not self._run.is_running

    def effects(self, precision: Precision, shapes: Sequence[Shape]) -> tuple[PaddingEffect, ...]:
        """Return for each array of the results, of these shapes, what rows of zeros do to it.

        What is not known by now counts as a change.
        """
        if self._effects is None or len(self._effects) != len(shapes):
            found = self._found(precision, len(shapes))
            if found is None:
                return (PaddingEffect.CHANGES,) * len(shapes)
            self._effects = found
        return tuple(
            one if self._holds(one, shape) else PaddingEffect.CHANGES
            for one, shape in zip(self._effects, shapes)
        )

    def _holds(self, effect: PaddingEffect, shape: Shape) -> bool:
        """Return whether what was found of f on a few rows is true of results of this shape in this map."""
        if effect is PaddingEffect.ADDS_ROWS:
            return shape[:1] == (self._blocks.rows_per_block,)
        return self._blocks.has_zero_padding

    def _found(self, precision: Precision, count: int) -> tuple[PaddingEffect, ...] | None:
        """Return the effect on each of so many arrays; None if f has not been evaluated so far."""
        if self._is_by_rows:
            return (PaddingEffect.ADDS_ROWS,) * count
        if self._known is not None:
            found = self._known.effects
            return found if len(found) == count else (PaddingEffect.CHANGES,) * count
        leaves = None if self._run is None else self._run.leaves
        if leaves is None:
            return None
        if len(leaves) != 3 * count:
            return (PaddingEffect.CHANGES,) * count
        tried = zip(leaves[:count], leaves[count : 2 * count], leaves[2 * count :])
        return tuple(self._effect(precision, *results) for results in tried)

    def _effect(self, precision: Precision, few: Array, more: Array, filled: Array) -> PaddingEffect:
        """Return the effect on an array of which these are results: of few rows, of more, with zeros."""
        numbers = more[np.isfinite(more)] if more.dtype.kind in "iufc" else np.zeros(0)
        largest = float(np.abs(numbers).max(initial=0))

        def agree(one: Array, other: Array) -> bool:
            return leaf_agrees(one, other, precision(one.dtype), self._rtol, 1.0, largest, 0.0)

        first, second = self._counts
        if (few.shape[:1], more.shape[:1]) == ((first,), (second,)) and agree(few, more[:first]):
            return PaddingEffect.ADDS_ROWS
        if few.shape == filled.shape and agree(few, filled):
            return PaddingEffect.NO_EFFECT
        return PaddingEffect.CHANGES

    @property
    def _counts(self) -> tuple[int, int]:
        """The numbers of rows that f is tried on, which a block has: not one row, which numpy may squeeze."""
        rows = self._blocks.rows_per_block
        assert rows is not None
        few = min(2, rows - 1)
        return few, min(few + 2, rows)

    def _blocks_to_try(self) -> tuple[Any, Any, Any]:
        """Return a few rows of a block of the data, some more of them, and the few filled up with zeros.

        Rows that tell nothing, as those of zeros, are made up, and so are all where the data is in storage.
        """
        few, more = self._counts
        if self._coded.location is None:
            leaves = self._blocks.sample_rows(more)
        else:
            leaves = [np.zeros((more, *shape[1:]), name) for name, shape in self._coded.block_layout(0)]
        if len(leaves) == 1:  # of sparse rows there are three
            leaves = [_telling(leaves[0])]
        cut, structure = self._blocks.copy_padded_rows, self._coded.structure
        counts = ((few, few), (more, more), (few, more))
        one, other, filled = (unflatten(structure, cut(leaves, *count)) for count in counts)
        return one, other, filled

    # -- what follows from that -------------------------------------------------------------

    def note(self, precision: Precision, padded: list[Array] | None, result: TaskResult | None) -> None:
        """Remember for later maps what is known of f by now.

        padded, result : f of the block that is filled up and f of its rows of data, if its task has returned
            them.
        """
        if self._is_by_rows:
            return
        known = self._known
        if known is None and self._run is not None and self._run.leaves is not None:
            found = self._found(precision, len(self._run.leaves) // 3)
            known = None if found is None else KnownPadding(found)
        if known is None:
            return
        if padded is not None and result is not None and _have_same_bits(padded, result, self.rows):
            known = known._replace(same_bits=known.same_bits | {self._block})
        if known != self._known:
            self._trust.note(known)

    def refuse_to_decode(self, effects: Sequence[PaddingEffect]) -> None:
        """Raise CodeError where rows of zeros change a result that no worker returns without them."""
        if PaddingEffect.CHANGES not in effects or self._is_by_rows:
            return
        if self._is_stored:
            why = "results that stay in storage are blocks of equal size"
        elif not self._is_with_workers:
            why = "no worker gets a block of the data as it is"
        elif not self.is_evaluated_apart:
            why = "they did not in an earlier map: f is not deterministic"
        else:
            return
        found = "change the result of f" if self.is_known else "may change the result of f"
        raise CodeError(f"{self.described}. These {found}, and {why}. {self.advice}")

    @property
    def described(self) -> str:
        """What the last block consists of, for messages."""
        return (
            f"{self._total} rows do not divide into {self._blocks.k} blocks, so the last one has {self.rows} "
            f"of {self._blocks.rows_per_block} rows and is filled up with rows of zeros"
        )

    @property
    def advice(self) -> str:
        """The numbers of blocks for which no rows of zeros are needed, as an advice."""
        counts = " or ".join(f"blocks={count}" for count in find_divisors_near(self._total, self._blocks.k))
        return f"Use {counts}, which divides them" if counts else "Use a number of rows that divides"

    def fits(
        self,
        precision: Precision,
        padded: Sequence[Array],
        own: Sequence[Array],
        effects: Sequence[PaddingEffect],
    ) -> bool:
        """Return whether the result of the rows of data is what that of the whole block says it is."""
        if PaddingEffect.CHANGES in effects or len(padded) != len(own):
            return False
        return all(
            leaf_agrees(one, other, precision(one.dtype), self._rtol, 1.0, 0.0, 0.0)
            for one, other in zip(self.without_rows(padded, effects), own)
        )

    def without_rows(self, leaves: Sequence[Array], effects: Sequence[PaddingEffect]) -> list[Array]:
        """Return the arrays of the result of the last block without the rows that stand for padding."""
        pairs = zip(leaves, effects, strict=True)
        return [leaf[: self.rows] if effect is PaddingEffect.ADDS_ROWS else leaf for leaf, effect in pairs]


def _telling(rows: Array) -> Array:
    """Return rows that show whether f mixes them: other numbers where they are not finite, or all zeros.

    They are multiplied by different factors.
    """
    made_up = np.resize(MADE_UP, rows.shape).astype(rows.dtype)
    axes = tuple(range(1, rows.ndim))
    is_zero = ~np.asarray(rows != 0).any(axis=axes, keepdims=True)
    rows = np.where(is_zero | ~np.isfinite(rows), made_up, rows)
    squares = np.square(np.arange(len(rows))).reshape(-1, *[1] * len(axes))
    factors = 1 + squares if is_integer_dtype(rows.dtype) else 1 + FACTOR_STEP * squares
    return np.asarray(rows * factors.astype(rows.dtype))


def _have_same_bits(padded: Sequence[Array], result: TaskResult, rows: int) -> bool:
    """Return whether the first rows of all arrays are, bit for bit, those of the result without padding."""
    if len(padded) != len(result.leaves):
        return False
    return all(
        one.ndim
        and one.dtype == other.dtype
        and one[:rows].shape == other.shape
        and one[:rows].tobytes() == other.tobytes()
        for one, other in zip(padded, result.leaves)
    )
