"""One codeword of a map: its blocks, what has arrived of its results, and whether they are accepted.

A map without subtasks is one codeword. With s subtasks it is s of them: the first rows of all
coded blocks, the next rows, and so on; each is decoded as soon as enough workers handed it in.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping
from functools import partial
from math import inf
from typing import Any

import numpy.typing as npt

from polarmap.blocks.base import CodedData
from polarmap.code.decoder import Decoder
from polarmap.errors import NotDecodableError, NotLinearError, warn
from polarmap.executors.base import Failure, Outcome
from polarmap.run.acceptance import AS_A_PLAIN_MAP, Acceptance
from polarmap.run.failure_message import FailureMessage, raise_if_all_fail
from polarmap.run.options import MapOptions
from polarmap.run.received import Received
from polarmap.run.schedule import Stopwatch
from polarmap.run.subtask_rows import Rows, by_subtask, joined
from polarmap.run.tasks import TaskTable
from polarmap.run.trusted import Trust
from polarmap.run.verify import Verifier

Array = npt.NDArray[Any]

SETTLE_SECONDS = 0.25  # between looks whether it is time to do without what is waited for, at most


class Codeword:
    """The blocks, results and checks of one codeword.

    Attributes
    ----------
    received, acceptance
    verification : str or None
        How its results were verified, once they are accepted.
    """

    def __init__(
        self,
        f: Callable[[Any], Any],
        coded: CodedData,
        options: MapOptions,
        tasks: TaskTable,
        watch: Stopwatch,
        trust: Trust,
        number: int = 0,
    ) -> None:
        many = options.subtasks > 1
        self._coded: CodedData = Rows(coded, options.subtasks, number) if many else coded
        # Without a circle: the blocks are to be gone as soon as their map is over.
        model = weakref.WeakMethod(self._model)
        self.received = Received(self._coded, tasks, number, options, lambda: _result_of(model))
        verifier = partial(Verifier, f, self._coded, self.received, options, trust)
        self.acceptance = Acceptance(self.received, verifier, trust, tasks, options, watch)
        self.verification: str | None = None
        self._watch = watch
        self._late: list[tuple[Outcome, float]] = []  # came after the results were accepted

    def add(self, outcome: Outcome, elapsed: float) -> None:
        """Take in a result; what is accepted stays as it is."""
        if self.verification is None:
            self.received.add(outcome, elapsed)
        else:
            self._late.append((outcome, elapsed))
            self.received.note_late(outcome, elapsed)

    def step(self) -> bool:
        """Whether the results are accepted, after another look at them."""
        self.verification = self.verification or self.acceptance.step()
        return self.verification is not None

    @property
    def is_short(self) -> bool:
        """Whether more results are needed."""
        is_determined = self.received.ready_at is not None and self.acceptance.refusal is None
        return self.verification is None and not is_determined

    def could_finish(self, accurately: bool = True) -> bool:
        """Whether what arrived, still runs or is held back can determine the results."""
        return self.received.could_finish(self.acceptance.refusal is not None, accurately)

    @property
    def error_bound(self) -> float:
        """What the results may be off by, as a share of the largest number among them."""
        return self.acceptance.verifier.error_bound(self.results)

    def distrust(self, task: int, attempt: int, failure: Failure) -> None:
        """A worker was found out in another codeword: what that attempt returned here counts no more."""
        received = self.received.results.get(task)
        self.received.convicted[task] = max(attempt, self.received.convicted.get(task, -1))
        if received is not None and received.attempt <= attempt:
            self.received.drop(task, failure, self._watch.elapsed)
            self.verification, late, self._late = None, self._late, []
            for outcome, elapsed in late:
                self.received.arrived.pop(outcome.task, None)
                self.received.add(outcome, elapsed)

    @property
    def decoder(self) -> Decoder:
        """Of the results, which are accepted."""
        assert self.received.decoder is not None
        return self.received.decoder

    @property
    def results(self) -> list[list[Array]]:
        """Of the k data blocks, flat."""
        assert self.acceptance.results is not None
        return self.acceptance.results

    def _model(self) -> list[Array] | None:
        return self.acceptance.verifier.evaluate_data(0, self._watch.remaining)


def _result_of(model: weakref.WeakMethod[Callable[[], list[Array] | None]]) -> list[Array] | None:
    method = model()
    return None if method is None else method()


class Codewords:
    """All codewords of a map: what they need of its tasks (the `Need` of its schedule).

    Attributes
    ----------
    members : list of Codeword
        One, or one for each subtask.
    """

    def __init__(
        self,
        f: Callable[[Any], Any],
        coded: CodedData,
        options: MapOptions,
        tasks: TaskTable,
        watch: Stopwatch,
    ) -> None:
        self._code, self._tasks, self._options, self._watch = coded.code, tasks, options, watch
        is_ours = options.trusted or options.verify is False  # nobody asks
        trust = Trust(options.trust, f, coded.code.assumption, coded.blocks.dtypes, is_ours)
        self.members = [
            Codeword(f, coded, options, tasks, watch, trust, number) for number in range(options.subtasks)
        ]

    def add(self, outcome: Outcome, elapsed: float) -> None:
        """Take in what became of an attempt, or of some subtasks of it."""
        if outcome.failure is None:
            parts = by_subtask(outcome) if outcome.subtasks else [(0, outcome)]
            for number, part in parts:
                self.members[number].add(part, elapsed)

    def step(self) -> bool:
        """Whether the results of all are accepted, after another look at them."""
        accepted = [word.step() for word in self.members]
        self._spread_garbage()
        return all(accepted) and all(word.verification for word in self.members)

    @property
    def results(self) -> list[list[Array]]:
        """Of the k data blocks, flat."""
        if len(self.members) == 1:
            return self.members[0].results
        return joined([word.results for word in self.members])

    @property
    def not_finite_message(self) -> str:
        """What is said where NaN or inf keep what arrived from being decoded."""
        return self._message.too_few(not_finite=True)

    @property
    def count(self) -> int:
        """Results that arrived, of the codeword of which fewest did."""
        return min(len(word.received.results) for word in self.members)

    @property
    def arrived(self) -> Mapping[int, float]:
        """When results arrived, of the same codeword."""
        return min((word.received.arrived for word in self.members), key=len)

    # -- what the schedule asks -------------------------------------------------------------

    @property
    def is_met(self) -> bool:
        """Whether every codeword is determined."""
        return not any(word.is_short for word in self.members)

    @property
    def received(self) -> Collection[int]:
        """The tasks whose results count, of a map without subtasks."""
        return self.members[0].received.results.keys()

    @property
    def is_protected(self) -> bool:
        """Whether parity helps: not where a codeword cannot be decoded."""
        return not any(word.acceptance.refusal for word in self.members)

    def failed(self) -> list[int]:
        """Tasks whose results are needed, that failed; raises what f raises if it does so everywhere."""
        found = sorted({task for word in self._short for task in word.received.failed})
        if not found:
            return []
        any_returned = any(word.received.results for word in self.members)
        raise_if_all_fail(self._tasks, any_returned, self._code.n - self._code.recovery_threshold)
        return found

    def would_be_met(self, tasks: Collection[int]) -> bool:
        """Whether results of these tasks would determine those of the data, without subtasks."""
        return self.members[0].received.would_determine(set(tasks))

    def is_out_of_reach(self) -> bool:
        """Whether a codeword cannot be determined by what arrived, runs or is held back."""
        return any(not word.could_finish() for word in self._short)

    def look_seconds(self) -> float:
        """Often once f may run here, or what is determined is inaccurate; at first more often."""
        received = (word.received for word in self.members)
        waits = (one.determined_at if one.ready_at is None else one.ready_at for one in received)
        passed = (self._watch.elapsed - since for since in waits if since is not None)
        seconds = [min(max(0.02, one / 20), SETTLE_SECONDS) for one in passed]
        return min(seconds, default=inf)

    def settle_for_less(self, nothing_can_come: bool) -> None:
        """Decode what arrived as accurately as it can be, or say that it does not tell enough."""
        for word in self._short:
            is_stuck = bool(word.received.failed) and not word.could_finish()
            if nothing_can_come or is_stuck or word.acceptance.is_accuracy_hopeless():
                self._make_do(word, nothing_can_come)

    def timed_out(self, timeout: float) -> tuple[str, BaseException | None]:
        """What to say when the timeout has passed, and the exception behind it.

        NotLinearError where a linear f would have been done by now.
        """
        for refusal in (word.acceptance.refusal for word in self.members):
            if isinstance(refusal, NotLinearError):
                raise refusal from self._tasks.first_cause
        return self._message.late(timeout, not self.is_protected), self._tasks.first_cause

    # ---------------------------------------------------------------------------------------

    @property
    def _short(self) -> list[Codeword]:
        return [word for word in self.members if word.is_short]

    def _make_do(self, word: Codeword, nothing_can_come: bool) -> None:
        may_come = word.received.more_may_come and not word.acceptance.is_accuracy_hopeless()
        if may_come and not nothing_can_come and word.could_finish(accurately=False):
            return
        refusal = word.acceptance.refusal
        if refusal is None and word.received.accept(self._watch.elapsed):
            return
        if self._options.deadline is not None and word.received.results:
            return
        if isinstance(refusal, NotLinearError):
            raise refusal from self._tasks.first_cause
        message = self._message.too_few(refusal is not None, nothing_can_come)
        raise NotDecodableError(message) from self._tasks.first_cause

    def _spread_garbage(self) -> None:
        """A worker whose result contradicts the others in one codeword is not trusted in any."""
        if len(self.members) > 1:
            for one in self.members:
                for task, attempt in one.received.convicted.items():
                    garbage = [
                        failure for failure, _ in self._tasks[task].failures if failure.kind == "garbage"
                    ]
                    for word in self.members:
                        if garbage and word.received.convicted.get(task, -1) < attempt:
                            word.distrust(task, attempt, garbage[-1])

    @property
    def _message(self) -> FailureMessage:
        """Of the codeword of which least has arrived."""
        open_ones = [word for word in self.members if word.verification is None] or self.members
        worst = min(open_ones, key=lambda word: len(word.received.arrived))
        return FailureMessage(
            self._tasks,
            self._code.recovery_threshold,
            arrived=worst.received.arrived.keys(),
            received=worst.received.results.keys(),
            data=worst.received.data_count,
            is_ready=worst.received.ready_at is not None,
            running=worst.received.running,
        )

    def warn(self) -> None:
        """Say of the results that they contradict each other, or are less accurate than was asked for."""
        found = (word.acceptance.contradiction for word in self.members)
        contradiction = next((one for one in found if one is not None), None)
        if contradiction is not None:
            warn(f"{AS_A_PLAIN_MAP}, but {contradiction}")
        bounds = [word.error_bound for word in self.members if word.received.is_inaccurate]
        if bounds:
            warn(
                "what arrived determines the other results, but no more accurately than to "
                f"{max(bounds):.2g} (relative), which is more than rtol: no further result came"
            )
