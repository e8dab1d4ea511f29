"""Does f act on rows? With subtasks the f of a block is put together from the f of its pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy.typing as npt

from polarmap.blocks.base import CodedData
from polarmap.errors import CodeError, warn
from polarmap.run.acceptance import longest_wait
from polarmap.run.codeword import Codeword, Codewords
from polarmap.run.local_evaluation import LocalRun
from polarmap.run.options import MapOptions
from polarmap.run.schedule import Stopwatch
from polarmap.run.trusted import Trust
from polarmap.run.verify import leaf_agrees
from polarmap.worker.pytree import unflatten

Array = npt.NDArray[Any]

ROW_BY_ROW = "row by row"
BLOCK = 0  # whose f is evaluated whole


class RowByRowCheck:
    """f of one whole block, evaluated on the driver while the map runs, against its joined pieces.

    On the first use of f with subtasks, and whenever verify=True.
    """

    def __init__(
        self,
        f: Callable[[Any], Any],
        coded: CodedData,
        options: MapOptions,
        watch: Stopwatch,
    ) -> None:
        self._coded, self._watch = coded, watch
        self._rtol = options.rtol
        self._trust = Trust(options.trust, f, ROW_BY_ROW, coded.blocks.dtypes, options.verify is False)
        wanted = options.verify is True or not self._trust.is_known
        self._run = LocalRun(f, partial(self._block), BLOCK) if wanted else None
        self._settled_at: float | None = None

    def is_over(self, codewords: Codewords) -> bool:
        """Whether the results may be handed out; CodeError if f does not act on rows.

        The wait for f is at most 20 s, or four times the longest task, after everything else.
        """
        if self._run is None:
            return True
        if self._settled_at is None:
            self._settled_at = self._watch.elapsed
        if self._run.is_running and not self._is_hopeless(codewords):
            return False
        if self._run.leaves is None:
            self._warn()
        elif not self._agrees(codewords.members, codewords.results[BLOCK]):
            raise CodeError(
                f"f of block {BLOCK} is not what f gives of its rows piece by piece, joined along axis 0: "
                "leave Subtasks out for this f"
            )
        else:
            self._trust.note()
        return True

    def _agrees(self, words: Sequence[Codeword], joined: list[Array]) -> bool:
        whole = self._run.leaves if self._run is not None and self._run.leaves is not None else []
        if len(whole) != len(joined):
            return False
        amplification = max(word.decoder.amplification for word in words)
        largest = [max(float(abs(one).max(initial=0)) for one in (a, b)) for a, b in zip(whole, joined)]
        precision = words[0].received.precision
        return all(
            leaf_agrees(one, other, precision(other.dtype), self._rtol, amplification, most, 0.0)
            for one, other, most in zip(whole, joined, largest)
        )

    def _is_hopeless(self, codewords: Codewords) -> bool:
        assert self._settled_at is not None
        longest = max(word.received.seconds.largest for word in codewords.members)
        return self._watch.elapsed - self._settled_at > longest_wait(longest)

    def _warn(self) -> None:
        assert self._run is not None
        here = "did not end" if self._run.error is None else f"raised {self._run.words}"
        warn(f"it could not be verified that f acts on each row by itself, as Subtasks need: here it {here}")

    def _block(self) -> Any:
        return unflatten(self._coded.structure, [leaf.copy() for leaf in self._coded.blocks.leaves(BLOCK)])
