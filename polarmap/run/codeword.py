"""The codeword of a map: its blocks, what has arrived of its results, and whether they are accepted."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from functools import partial
from math import inf
from typing import Any

import numpy.typing as npt

from polarmap.blocks.base import CodedData
from polarmap.code.decoder import Decoder
from polarmap.errors import NotDecodableError, NotLinearError, warn
from polarmap.executors.base import Outcome
from polarmap.run.acceptance import AS_A_PLAIN_MAP, Acceptance
from polarmap.run.failure_message import FailureMessage, raise_if_all_fail
from polarmap.run.options import MapOptions
from polarmap.run.received import Received
from polarmap.run.schedule import Stopwatch
from polarmap.run.tasks import TaskTable
from polarmap.run.trusted import Trust
from polarmap.run.verify import Verifier

Array = npt.NDArray[Any]

SETTLE_SECONDS = 0.25  # between looks whether it is time to do without what is waited for, at most


class Codeword:
    """The blocks, results and checks of a map: what it needs of its tasks (the `Need` of its schedule).

    Attributes
    ----------
    state : Received
    acceptance
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
    ) -> None:
        self._code, self._tasks, self._options, self._watch = coded.code, tasks, options, watch
        is_ours = options.trusted or options.verify is False  # nobody asks
        trust = Trust(options.trust, f, coded.code.assumption, coded.blocks.dtypes, is_ours)
        # Without a circle: the blocks are to be gone as soon as their map is over.
        model = weakref.WeakMethod(self._model)
        self.state = Received(coded, tasks, options, lambda: _result_of(model))
        verifier = partial(Verifier, f, coded, self.state, options, trust)
        self.acceptance = Acceptance(self.state, verifier, trust, tasks, options, watch)
        self.verification: str | None = None

    def add(self, outcome: Outcome, elapsed: float) -> None:
        """Take in what became of an attempt; what is accepted stays as it is."""
        if self.verification is None:
            self.state.add(outcome, elapsed)
        else:
            self.state.note_late(outcome, elapsed)

    def step(self) -> bool:
        """Whether the results are accepted, after another look at them."""
        self.verification = self.verification or self.acceptance.step()
        return self.verification is not None

    @property
    def error_bound(self) -> float:
        """What the results may be off by, as a share of the largest number among them."""
        return self.acceptance.verifier.error_bound(self.results)

    @property
    def decoder(self) -> Decoder:
        """Of the results, which are accepted."""
        assert self.state.decoder is not None
        return self.state.decoder

    @property
    def results(self) -> list[list[Array]]:
        """Of the k data blocks, flat."""
        assert self.acceptance.results is not None
        return self.acceptance.results

    @property
    def not_finite_message(self) -> str:
        """What is said where NaN or inf keep what arrived from being decoded."""
        return self._message.too_few(not_finite=True)

    # -- what the schedule asks -------------------------------------------------------------

    @property
    def is_met(self) -> bool:
        """Whether no more results are needed."""
        is_determined = self.state.ready_at is not None and self.acceptance.refusal is None
        return self.verification is not None or is_determined

    @property
    def received(self) -> Collection[int]:
        """The tasks whose results count."""
        return self.state.results.keys()

    @property
    def is_protected(self) -> bool:
        """Whether parity helps: not where nothing can be decoded."""
        return self.acceptance.refusal is None

    def failed(self) -> list[int]:
        """Tasks whose results are needed, that failed; raises what f raises if it does so everywhere."""
        found = sorted(self.state.failed)
        if found:
            spare = self._code.n - self._code.recovery_threshold
            raise_if_all_fail(self._tasks, bool(self.state.results), spare)
        return found

    def would_be_met(self, tasks: Collection[int]) -> bool:
        """Whether results of these tasks would determine those of the data."""
        return self.state.would_determine(set(tasks))

    def is_out_of_reach(self) -> bool:
        """Whether what arrived, runs and is held back cannot determine the results."""
        return not self._could_finish()

    def look_seconds(self) -> float:
        """Often once f may run here, or what is determined is inaccurate; at first more often."""
        since = self.state.determined_at if self.state.ready_at is None else self.state.ready_at
        if since is None:
            return inf
        return min(max(0.02, (self._watch.elapsed - since) / 20), SETTLE_SECONDS)

    def settle_for_less(self, nothing_can_come: bool) -> None:
        """Decode what arrived as accurately as it can be, or say that it does not tell enough."""
        is_hopeless = self.acceptance.is_accuracy_hopeless()
        is_stuck = bool(self.state.failed) and not self._could_finish()
        if not (nothing_can_come or is_stuck or is_hopeless):
            return
        may_come = self.state.more_may_come and not is_hopeless
        if may_come and not nothing_can_come and self._could_finish(accurately=False):
            return
        refusal = self.acceptance.refusal
        if refusal is None and self.state.accept(self._watch.elapsed):
            return
        if self._options.deadline is not None and self.state.results:
            return
        if isinstance(refusal, NotLinearError):
            raise refusal from self._tasks.first_cause
        message = self._message.too_few(refusal is not None, nothing_can_come)
        raise NotDecodableError(message) from self._tasks.first_cause

    def timed_out(self, timeout: float) -> tuple[str, BaseException | None]:
        """What to say when the timeout has passed, and the exception behind it.

        NotLinearError where a linear f would have been done by now.
        """
        if isinstance(self.acceptance.refusal, NotLinearError):
            raise self.acceptance.refusal from self._tasks.first_cause
        return self._message.late(timeout, not self.is_protected), self._tasks.first_cause

    # ---------------------------------------------------------------------------------------

    def _could_finish(self, accurately: bool = True) -> bool:
        """Whether what arrived, still runs or is held back can determine the results."""
        return self.state.could_finish(self.acceptance.refusal is not None, accurately)

    @property
    def _message(self) -> FailureMessage:
        return FailureMessage(
            self._tasks,
            self._code.recovery_threshold,
            arrived=self.state.arrived.keys(),
            received=self.state.results.keys(),
            data=self.state.data_count,
            is_ready=self.state.ready_at is not None,
            running=self.state.running,
        )

    def warn(self) -> None:
        """Say of the results that they contradict each other, or are less accurate than was asked for."""
        if self.acceptance.contradiction is not None:
            warn(f"{AS_A_PLAIN_MAP}, but {self.acceptance.contradiction}")
        if self.state.is_inaccurate:
            warn(
                "what arrived determines the other results, but no more accurately than to "
                f"{self.error_bound:.2g} (relative), which is more than rtol: no further result came"
            )

    def _model(self) -> list[Array] | None:
        return self.acceptance.verifier.evaluate_data(0, self._watch.remaining)


def _result_of(model: weakref.WeakMethod[Callable[[], list[Array] | None]]) -> list[Array] | None:
    method = model()
    return None if method is None else method()
