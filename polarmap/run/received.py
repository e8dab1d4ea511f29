"""What has arrived: results of one shape, what became of each task, and the decoder they feed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.blocks.base import CodedData
from polarmap.code.dtypes import DType, check_dtype, default_rtol, epsilon, is_exact
from polarmap.code.recovery import Decoder
from polarmap.code.tiled import ignoring_inf
from polarmap.errors import CodeError
from polarmap.executors.base import Failure, Outcome
from polarmap.worker.pytree import Shape, Structure

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
    determined_at, ready_at : float or None
        When the received results first determined the rest, and as accurately as is asked for, in
        seconds after the start.
    needed : int
        How many they were.
    is_inaccurate : bool
        Whether they are taken although more would have to come for the accuracy asked for.
    """

    def __init__(
        self,
        coded: CodedData,
        rtol: float | None,
        model: Callable[[], list[Array] | None],
        trusted: bool = False,
        shape: Shape | None = None,
    ) -> None:
        self._coded, self._code, self._rtol_wanted = coded, coded.code, rtol
        self._trusted, self._shape = trusted, shape
        self._evaluate = model  # f of a data block, evaluated here
        self._model: list[Array] | None = None
        self._groups: dict[Any, dict[int, Outcome]] = {}
        self.tasks = [Task() for _ in range(coded.n)]
        self.received: dict[int, Outcome] = {}
        self.decoder: Decoder | None = None
        self.determined_at: float | None = None
        self.ready_at: float | None = None
        self.needed = 0
        self.is_inaccurate = False
        self.convicted: dict[int, int] = {}  # task -> the last attempt of it that returned garbage

    def absorb(self, outcome: Outcome, elapsed: float) -> None:
        """Note what became of an attempt, `elapsed` seconds after the start."""
        task = self.tasks[outcome.task]
        task.running = False
        if task.arrived is not None:
            return
        if outcome.failure is not None:
            task.failures.append(outcome.failure)
            return
        if outcome.attempt <= self.convicted.get(outcome.task, -1):
            return
        if not _is_well_formed(outcome) or self._shape not in (None, *_shapes(outcome)):
            due = "a number" if self._shape is None else f"shape {self._shape}"
            message = f"returned {_describe(outcome)} where {due} is due"
            task.failures.append(Failure("shape", "WrongShape", message))
            return
        task.returned, task.seconds = elapsed, outcome.seconds
        task.took = outcome.seconds if task.began is None else elapsed - task.began
        for group in self._groups.values():  # an odd result, tried again
            group.pop(outcome.task, None)
        group = self._groups.setdefault(_signature(outcome), {})
        group[outcome.task] = outcome
        if group is self.received:
            self._accept(outcome.task)
            if self.decoder is None:  # all of them had been garbage
                self._restart_decoder(elapsed)
            else:
                self._add(outcome.task, elapsed)
        elif not self.received or self._overrules(group):
            self._follow(group, elapsed)
        else:
            self._reject_odd(outcome.task, outcome)

    def _overrules(self, group: dict[int, Outcome]) -> bool:
        """Whether these results are followed rather than those so far: if they are more.

        Where they are as many, or only their dtypes differ, those of parity blocks alone overrule none of
        data blocks: f of wider integers may be of another kind.
        """
        one, other = next(iter(group.values())), self._any_received
        has_data, had_data = (min(some) < len(self._code.systematic) for some in (group, self.received))
        are_alike = one.structure == other.structure and _shapes(one) == _shapes(other)
        if has_data != had_data and (are_alike or len(group) == len(self.received)):
            return has_data
        return len(group) > len(self.received)

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
        """Take a received result, which is garbage, back out of the decoder."""
        self.convicted[index] = self.received[index].attempt
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
    def data_count(self) -> int:
        """Those of data blocks among them."""
        return sum(self.tasks[index].arrived is not None for index in self._code.systematic)

    @property
    def failed(self) -> list[int]:
        """Tasks without a result that do not run, though they were started."""
        tasks = enumerate(self.tasks)
        return [i for i, task in tasks if task.arrived is None and not task.running and task.attempts]

    def could_finish(self, all_data: bool, accurately: bool = True) -> bool:
        """Whether what arrived, still runs or is held back can determine the results.

        Results that look odd now may turn out to be the usual ones. `all_data`: decoding does not
        help, every data task has to report. `accurately`: as accurately as is asked for.
        """
        tasks = enumerate(self.tasks)
        running = {index for index, task in tasks if task.running or not task.attempts}
        candidates = [running | group.keys() for group in self._groups.values() or [{}]]
        return any(self.would_determine(indices, all_data, accurately) for indices in candidates)

    def rows(self, leaf: int) -> dict[int, Array]:
        """Leaf number `leaf` of every received result, flat."""
        return {index: leaves_of(one)[leaf].reshape(-1) for index, one in self.received.items()}

    def all_finite(self) -> bool:
        """Whether every data task reported, or nothing received is NaN or inf."""
        if self._has_all_data(set(self.received)):
            return True
        leaves = (leaf for one in self.received.values() for leaf in leaves_of(one))
        return all(leaf.dtype.kind not in "fc" or bool(np.isfinite(leaf).all()) for leaf in leaves)

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
        """The leaves of the k results; None if NaN or inf got in the way of decoding.

        Raises CodeError for Python integers that parity does not determine.
        """
        assert self.decoder is not None
        plan = self.decoder.plan
        recovered: list[list[Array]] = []
        kinds = kinds_of(self.structure)
        for leaf, dtype in enumerate(self.dtypes()):
            with ignoring_inf():
                blocks = plan.recover(self.rows(leaf), dtype)
            if dtype.kind in "fc" and not np.isfinite(blocks).all():
                return None
            is_python = kinds[leaf] == "python" and is_exact(dtype) and plan.exact and len(plan.missing) > 0
            if is_python:
                received = np.stack([self.rows(leaf)[int(index)] for index in plan.arrived])
                recovered.append(unwrapped(plan.weights, received, blocks))
            else:
                recovered.append(list(blocks))
        shapes = [leaf.shape for leaf in leaves_of(self._any_received)]
        place = {int(index): row for row, index in enumerate(plan.missing)}

        def result(index: int) -> list[Array]:
            if index not in place:
                return leaves_of(self.received[index])
            return [blocks[place[index]].reshape(shape) for blocks, shape in zip(recovered, shapes)]

        return [result(index) for index in range(self._code.k)]

    @property
    def are_stored(self) -> bool:
        """Whether the blocks lie in storage."""
        return self._coded.source is not None

    @cached_property
    def wraps(self) -> bool:
        """Whether f turned integers into floats whose parity blocks may have wrapped modulo 2^64."""
        if self._trusted or all(is_exact(dtype) for dtype in self.dtypes()):
            return False
        blocks = self._coded.blocks
        wide = [leaf for leaf, dtype in enumerate(blocks.dtypes) if is_exact(dtype) and dtype.itemsize == 8]
        return any(
            blocks.dtypes[leaf].kind == "u" or blocks.largest(leaf) * self._code.norm_inf >= 1 << 63
            for leaf in wide
        )

    def why_not_protected(self) -> str:
        """Why parity is of no use for this f, and what to do."""
        wide = [str(dtype) for dtype in self._coded.blocks.dtypes if is_exact(dtype)]
        made = [str(dtype) for dtype in self.dtypes() if not is_exact(dtype)]
        return (
            f"f turns {wide[0]} blocks into {made[0]}, and parity blocks of such 64-bit integers wrap modulo "
            "2^64, which floats do not undo: use data.astype(float)"
            + (", or data.astype(numpy.int64) for numbers below 2^63" if wide[0] == "uint64" else "")
        )

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
        usual = _describe(self._any_received)
        message = f"returned {_describe(outcome)}, others {usual}"
        if index >= len(self._code.systematic) and _shapes(outcome) == _shapes(self._any_received):
            data, parity = (self._coded.layout(place)[0][0] for place in (0, self._code.n - 1))
            message += (
                f": f of {np.dtype(parity)} blocks, which parity of {np.dtype(data)} is, has another kind of "
                "result; convert the data, or what f combines it with, so that both have one"
            )
        self.reject(index, Failure("shape", "WrongShape", message))

    @property
    def _any_received(self) -> Outcome:
        return next(iter(self.received.values()))

    def _restart_decoder(self, elapsed: float) -> None:
        self.ready_at = self.determined_at = self.decoder = None
        self.is_inaccurate = False
        self.__dict__.pop("wraps", None)
        if not self.received:
            return
        dtypes = [leaf.dtype for leaf in leaves_of(self._any_received)]
        for dtype in dtypes:
            check_dtype(dtype, "the result of f")
        whole = any(is_exact(dtype) for dtype in self._coded.blocks.dtypes or dtypes)  # else f rounds
        exact = self._code.kernel == "arikan" and whole and any(is_exact(dtype) for dtype in dtypes)
        inexact = [self.precision(dtype) for dtype in dtypes if not (exact and is_exact(dtype))]
        limits = [self.rtol(dtype) / epsilon(dtype) for dtype in inexact]
        self.decoder = Decoder(self._code, exact=exact, max_amplification=min(limits, default=np.inf))
        for index in self.received:
            self._add(index, elapsed)

    def _add(self, index: int, elapsed: float) -> None:
        assert self.decoder is not None
        if self.decoder.add(index) and self.ready_at is None:
            self.ready_at, self.needed = elapsed, self.decoder.count
        if self.determined_at is None and (self.decoder.ready or self.decoder.is_inaccurate):
            self.determined_at = elapsed

    def accept(self, elapsed: float) -> bool:
        """Take the results at any accuracy, as no more can come; whether they determine the rest."""
        if self.decoder is None or not (self.decoder.is_inaccurate and self.decoder.accept()):
            return False
        self.ready_at, self.needed, self.is_inaccurate = elapsed, self.decoder.count, True
        return True

    def would_determine(self, indices: set[int], all_data: bool = False, accurately: bool = True) -> bool:
        """Whether results of these tasks would; `all_data`: if decoding is no help."""
        if all_data:
            return self._has_all_data(indices)
        if self.decoder is None or len(indices) < self._code.recovery_threshold:
            return len(indices) >= self._code.recovery_threshold or self._has_all_data(indices)
        limit = self.decoder.max_amplification if accurately else np.inf
        trial = Decoder(self._code, exact=self.decoder.exact, max_amplification=limit)
        for index in indices:
            trial.add(index)
        return trial.ready

    def _has_all_data(self, indices: set[int]) -> bool:
        return len(self._code.systematic) > 0 and indices.issuperset(self._code.systematic)

    def rtol(self, dtype: DType) -> float:
        """The relative error accepted from decoding results of `dtype`."""
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


def _is_well_formed(outcome: Outcome) -> bool:
    """Whether numbers are single ones: what says otherwise has not come from f."""
    kinds = kinds_of(outcome.structure or ("array",))
    return all(
        leaf.size == 1 or kind not in ("python", "numpy") for kind, leaf in zip(kinds, leaves_of(outcome))
    )


def _shapes(outcome: Outcome) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in leaves_of(outcome)]


def kinds_of(structure: Structure) -> list[str]:
    """What each leaf of a tree of this structure was: "array", "numpy" or "python"."""
    if len(structure) < 3 or structure[0] == "sample":
        return [structure[0]]
    return [kind for part in structure[2] for kind in kinds_of(part)]


def unwrapped(weights: Array, received: Array, blocks: Array) -> list[Array]:
    """Python integers, which do not wrap, from what they are modulo 2^64 and from what they are about.

    CodeError where the two contradict each other: then parity has wrapped.
    """
    values = received.astype(np.float64)
    about = (weights @ values)[:, 0]
    margin = 16 * np.finfo(float).eps * (np.abs(weights) @ np.abs(values))[:, 0] + 1
    found = []
    for near, off, modular in zip(about.tolist(), margin.tolist(), blocks[:, 0].tolist()):
        exact = modular + (round((near - modular) / 2**64) << 64)
        if not abs(exact - near) <= off or not -(1 << 63) <= exact < 1 << 64:
            raise CodeError(
                "f returns Python integers, and parity blocks of the data wrap modulo 2^64, which Python "
                "integers do not: return numpy integers, as in numpy.int64(total)"
            )
        found.append(np.array([exact]))
    return found


def _describe(outcome: Outcome) -> str:
    return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves_of(outcome)) or "nothing"
