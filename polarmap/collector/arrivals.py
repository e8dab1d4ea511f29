"""What has arrived: results of one shape, what became of each task, and the decoder they feed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.code.decoder import Decoder
from polarmap.code.dtypes import DType, check_dtype, default_rtol, epsilon, is_exact
from polarmap.code.encode import ignoring_inf
from polarmap.data.encoded import Encoded
from polarmap.executors.base import Failure, Outcome
from polarmap.remote.tree import Structure

Array = npt.NDArray[Any]


@dataclass
class Task:
    """What is known of one task."""

    attempts: int = 1
    running: bool = True
    launched: float | None = 0.0  # when it was first handed out; None while it is held back
    began: float | None = None  # when it, or its latest attempt, came to run, where that is known
    took: float | None = None  # from then until its result was here
    returned: float | None = None  # when it reported a result, in whatever shape
    arrived: float | None = None  # the same if the result is used
    seconds: float | None = None
    failures: list[Failure] = field(default_factory=list)


class Arrivals:
    """The results received so far, and whether they determine those of the data tasks.

    Attributes
    ----------
    tasks : list of Task
    received : dict from task to Outcome
        Results of the most common structure and shape; others are failures of their tasks.
    decoder : Decoder or None
        None until the first result tells the dtypes.
    ready_at : float or None
        When the received results first determined the rest, in seconds after the start.
    needed : int
        How many they were.
    """

    def __init__(self, coded: Encoded, rtol: float | None, model: Callable[[], list[Array] | None]) -> None:
        self._coded, self._code, self._rtol_wanted = coded, coded.code, rtol
        self._evaluate = model  # f of a data block, evaluated here
        self._model: list[Array] | None = None
        self._groups: dict[Any, dict[int, Outcome]] = {}
        self.tasks = [Task() for _ in range(coded.n)]
        self.received: dict[int, Outcome] = {}
        self.decoder: Decoder | None = None
        self.ready_at: float | None = None
        self.needed = 0

    def absorb(self, outcome: Outcome, elapsed: float) -> None:
        """Note what became of an attempt, `elapsed` seconds after the start."""
        task = self.tasks[outcome.task]
        task.running = False
        if task.arrived is not None:
            return
        if outcome.failure is not None:
            task.failures.append(outcome.failure)
            return
        task.returned, task.seconds = elapsed, outcome.seconds
        task.took = outcome.seconds if task.began is None else elapsed - task.began
        for group in self._groups.values():  # an odd result, tried again
            group.pop(outcome.task, None)
        group = self._groups.setdefault(_signature(outcome), {})
        group[outcome.task] = outcome
        if group is self.received:
            self._accept(outcome.task)
            self._add(outcome.task, elapsed)
        elif len(group) > len(self.received):
            self._follow(group, elapsed)
        else:
            self._reject_odd(outcome.task, outcome)

    def note(self, outcome: Outcome, elapsed: float) -> None:
        """Note that a result came, or why not, without making use of it."""
        task = self.tasks[outcome.task]
        task.running = False
        if task.arrived is not None:
            return
        if outcome.failure is not None:
            task.failures.append(outcome.failure)
        else:
            task.arrived, task.seconds = elapsed, outcome.seconds

    def hold_back(self, indices: Iterable[int]) -> None:
        """These tasks are not started with the others."""
        for index in indices:
            self.tasks[index] = Task(attempts=0, running=False, launched=None)

    def launch(self, indices: Iterable[int], elapsed: float) -> None:
        """These are handed out, for the first time or once more."""
        for index in indices:
            task = self.tasks[index]
            task.attempts += 1
            task.running, task.began = True, None
            if task.launched is None:
                task.launched = elapsed

    def reject(self, index: int, failure: Failure) -> None:
        """A result turned out to be none."""
        task = self.tasks[index]
        task.arrived = None
        task.failures.append(failure)

    def drop(self, index: int, failure: Failure, elapsed: float) -> None:
        """Take a received result back out of the decoder."""
        del self.received[index]
        self.reject(index, failure)
        self._restart_decoder(elapsed)

    @property
    def more_may_come(self) -> bool:
        """Whether any task still runs."""
        return any(task.running for task in self.tasks)

    @property
    def count(self) -> int:
        """Results that count."""
        return sum(task.arrived is not None for task in self.tasks)

    @property
    def failed(self) -> list[int]:
        """Tasks without a result that do not run, though they were started."""
        tasks = enumerate(self.tasks)
        return [i for i, task in tasks if task.arrived is None and not task.running and task.attempts]

    def could_finish(self, all_data: bool) -> bool:
        """Whether what arrived, still runs or is held back can determine the results.

        Results that look odd now may turn out to be the usual ones. `all_data`: decoding does not
        help, every data task has to report.
        """
        tasks = enumerate(self.tasks)
        running = {index for index, task in tasks if task.running or not task.attempts}
        candidates = [running | group.keys() for group in self._groups.values() or [{}]]
        return any(self.would_determine(indices, all_data) for indices in candidates)

    def rows(self, leaf: int) -> dict[int, Array]:
        """Leaf number `leaf` of every received result, flat."""
        return {index: leaves_of(one)[leaf].reshape(-1) for index, one in self.received.items()}

    def dtypes(self) -> list[DType]:
        """Of the leaves of the results, as data tasks return them.

        Parity blocks of integers are wider, and so may be f of them: when nothing else arrived, f
        of a data block tells.
        """
        first = min(self.received)
        found = [leaf.dtype for leaf in leaves_of(self.received[first])]
        if first < len(self._code.systematic) or not any(map(is_exact, self._coded.blocks.dtypes)):
            return found
        if self._model is None:
            self._model = self._evaluate() or []
        if [leaf.shape for leaf in self._model] != [leaf.shape for leaf in leaves_of(self.received[first])]:
            return found
        return [leaf.dtype for leaf in self._model]

    @property
    def precisions(self) -> list[DType]:
        """The dtypes whose rounding limits the leaves of the results; integers are as they are."""
        return [one if is_exact(one) else self.precision(one) for one in self.dtypes()]

    @property
    def structure(self) -> Structure:
        """Of the results."""
        return self.received[min(self.received)].structure or ("array",)

    def precision(self, dtype: DType) -> DType:
        """The dtype whose rounding limits results of `dtype`: parity blocks are rounded to the data's."""
        if is_exact(dtype):
            return np.dtype(np.float64)
        coarse = [one for one in self._coded.blocks.dtypes if not is_exact(one)]
        return max([dtype, *coarse], key=epsilon)

    def decode(self) -> list[list[Array]] | None:
        """The leaves of the k results; None if NaN or inf got in the way of decoding."""
        assert self.decoder is not None
        plan = self.decoder.plan
        recovered = []
        for leaf, dtype in enumerate(self.dtypes()):
            with ignoring_inf():
                blocks = plan.recover(self.rows(leaf), dtype)
            if dtype.kind in "fc" and not np.isfinite(blocks).all():
                return None
            recovered.append(blocks)
        shapes = [leaf.shape for leaf in leaves_of(next(iter(self.received.values())))]
        place = {int(index): row for row, index in enumerate(plan.missing)}

        def result(index: int) -> list[Array]:
            if index not in place:
                return leaves_of(self.received[index])
            return [blocks[place[index]].reshape(shape) for blocks, shape in zip(recovered, shapes)]

        return [result(index) for index in range(self._code.k)]

    def _follow(self, group: dict[int, Outcome], elapsed: float) -> None:
        """More results look like these than like any others: the others are failures of their tasks."""
        odd, self.received = self.received, group
        for index in group:
            self._accept(index)
        for index, outcome in odd.items():
            self._reject_odd(index, outcome)
        self._restart_decoder(elapsed)

    def _accept(self, index: int) -> None:
        task = self.tasks[index]
        task.arrived, task.running = task.returned, False
        task.failures = [failure for failure in task.failures if failure.kind != "shape"]

    def _reject_odd(self, index: int, outcome: Outcome) -> None:
        usual = _describe(next(iter(self.received.values())))
        message = f"returned {_describe(outcome)}, others {usual}"
        self.reject(index, Failure("shape", "WrongShape", message))

    def _restart_decoder(self, elapsed: float) -> None:
        dtypes = [leaf.dtype for leaf in leaves_of(next(iter(self.received.values())))]
        for dtype in dtypes:
            check_dtype(dtype, "the result of f")
        exact = self._code.kernel == "arikan" and any(is_exact(dtype) for dtype in dtypes)
        inexact = [self.precision(dtype) for dtype in dtypes if not (exact and is_exact(dtype))]
        limits = [self._rtol(dtype) / epsilon(dtype) for dtype in inexact]
        self.decoder = Decoder(self._code, exact=exact, max_amplification=min(limits, default=np.inf))
        self.ready_at = None
        for index in self.received:
            self._add(index, elapsed)

    def _add(self, index: int, elapsed: float) -> None:
        assert self.decoder is not None
        if self.decoder.add(index) and self.ready_at is None:
            self.ready_at, self.needed = elapsed, self.decoder.count

    def would_determine(self, indices: set[int], all_data: bool = False) -> bool:
        """Whether results of these tasks would; `all_data`: if decoding is no help."""
        if all_data:
            return self._has_all_data(indices)
        if self.decoder is None or len(indices) < self._code.needed:
            return len(indices) >= self._code.needed or self._has_all_data(indices)
        limit = self.decoder.max_amplification
        trial = Decoder(self._code, exact=self.decoder.exact, max_amplification=limit)
        for index in indices:
            trial.add(index)
        return trial.ready

    def _has_all_data(self, indices: set[int]) -> bool:
        return len(self._code.systematic) > 0 and indices.issuperset(self._code.systematic)

    def _rtol(self, dtype: DType) -> float:
        return default_rtol(dtype) if self._rtol_wanted is None else self._rtol_wanted


def leaves_of(outcome: Outcome) -> list[Array]:
    """The arrays of a result."""
    assert outcome.leaves is not None
    return outcome.leaves


def _signature(outcome: Outcome) -> Any:
    """What results of one f have in common; parity blocks of integers may be wider."""
    kinds = tuple((kind_of(leaf.dtype), leaf.shape) for leaf in leaves_of(outcome))
    return repr(outcome.structure), kinds


def kind_of(dtype: DType) -> str:
    """What must agree between results: any integer goes with any other."""
    return "integer" if is_exact(dtype) else dtype.kind


def _describe(outcome: Outcome) -> str:
    return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves_of(outcome)) or "nothing"
