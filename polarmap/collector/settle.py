"""When results that are determined may be handed out: the checks they have to pass first."""

from __future__ import annotations

import warnings
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.code.decoder import Decoder, DecodingPlan
from polarmap.collector.arrivals import Arrivals
from polarmap.collector.localrun import LocalRun
from polarmap.collector.settings import Settings
from polarmap.collector.stopwatch import Stopwatch
from polarmap.collector.verify import NotFiniteError, Verifier
from polarmap.errors import NotDecodableError, NotLinearError

Array = npt.NDArray[Any]

SURPLUS_SECONDS = (0.2, 10.0)  # bounds of the wait for a result to check against
# Then f is evaluated here; the longest wait for that, or for a result where it cannot be:
UNVERIFIED_SECONDS = 20.0
UNVERIFIED_TASKS = 4.0  # times the longest task, if that is more


class Settlement:
    """Looks at the arrivals after each, until their results stand.

    Attributes
    ----------
    results : list of lists of arrays, or None
        Of the k data tasks, flat; of the last time they were decoded.
    decode_seconds : float
    not_finite : bool
        NaN or inf are among the results: nothing can be decoded, every data task has to report.
    """

    def __init__(self, arrivals: Arrivals, verifier: Verifier, settings: Settings, watch: Stopwatch) -> None:
        self._arrivals, self._verifier = arrivals, verifier
        self._settings, self._watch = settings, watch
        self.results: list[list[Array]] | None = None
        self.decode_seconds = 0.0
        self._decoded_by: DecodingPlan | None = None
        self.not_finite = False

    def look(self) -> str | None:
        """How the results were verified, once they are determined and that is settled."""
        decoder = self._arrivals.decoder
        if decoder is None or not decoder.ready:
            return None
        if not len(decoder.missing):
            return self._as_a_plain_map(decoder)
        if self.not_finite:
            return None
        try:
            return self._verify(decoder)
        except NotFiniteError as error:
            if not len(decoder.code.systematic):  # no more results would help
                raise NotDecodableError("results contain NaN or inf, so nothing can be decoded") from error
            self.not_finite = True
            return None

    def _as_a_plain_map(self, decoder: Decoder) -> str | None:
        """Every data task reported: nothing has to be decoded, whatever f is."""
        if self.not_finite:
            self._arrivals.needed = decoder.count
        elif self._verifier.broken:
            try:
                if not self._surplus_holds():  # who is to blame may still turn out
                    return None
            except NotLinearError:
                self._warn_broken()
        self._decode()
        return "not needed"

    def _verify(self, decoder: Decoder) -> str | None:
        if self._settings.verify is False:
            self._decode()
            return "no"
        trusted = self._settings.verify == "auto" and self._verifier.has_passed_before
        if decoder.surplus:
            if not self._surplus_holds():
                return None
            if trusted or (not self._verifier.unchecked() and self._verifier.agrees_here(self._decode())):
                return self._passed("parity")
        elif trusted:
            self._decode()
            return "earlier"
        elif not self._surplus_wait_is_over():
            return None
        return self._check_locally(decoder)

    def _surplus_holds(self) -> bool:
        more = self._arrivals.more_may_come and not self._surplus_wait_is_over()
        holds, failure, culprit = self._verifier.surplus_holds(more, self._watch.remaining)
        if failure is not None:
            self._arrivals.drop(culprit, failure, self._watch.elapsed)
        return holds

    def _check_locally(self, decoder: Decoder) -> str | None:
        """Evaluate f on a block that has to be decoded, in a thread, while results may still come."""
        run = self._verifier.local_run()
        if run.index not in self._verifier.evaluated:
            if not self._is_hopeless(run, decoder):
                return None
            if decoder.surplus:
                return self._passed("parity")
            self._warn_unverified(run)
            self._decode()
            return "no"
        agrees = self._verifier.agrees_here(self._decode())
        time_is_left = self._arrivals.more_may_come and not self._surplus_wait_is_over()
        if time_is_left and (not agrees or self._verifier.unchecked()):
            return None
        if not agrees:
            self._verifier.blame_f(f"f of block {run.index} differs from its decoded result")
        return self._passed("parity" if decoder.surplus else "local")

    def _is_hopeless(self, run: LocalRun, decoder: Decoder) -> bool:
        """Whether neither f here nor another result is worth waiting for any longer."""
        longest = max(task.seconds for task in self._arrivals.tasks if task.seconds is not None)
        if self._since_ready > max(UNVERIFIED_SECONDS, UNVERIFIED_TASKS * longest):
            return True
        if run.error is None:
            return False
        return self._surplus_wait_is_over() if decoder.surplus else not self._arrivals.more_may_come

    def _warn_broken(self) -> None:
        warnings.warn(
            "all data tasks reported, so the results are those of a plain map, but the parity equations are "
            f"off by {self._verifier.residual:.2g} (relative): f is not linear or not deterministic, or a "
            "worker returned garbage",
            RuntimeWarning,
            stacklevel=2,
        )

    def _warn_unverified(self, run: LocalRun) -> None:
        here = f"had not ended after {self._since_ready:.3g} s"
        if run.error is not None:
            here = f"raised {type(run.error).__name__}: {run.error}"
        warnings.warn(
            f"f could not be verified: no result beyond the {self._arrivals.needed} needed arrived, and on "
            f"the driver it {here}",
            RuntimeWarning,
            stacklevel=2,
        )

    def _passed(self, how: str) -> str:
        self._decode()
        self._verifier.note_passed()
        return how

    def _decode(self) -> list[list[Array]]:
        """The results of all data tasks; NotFiniteError if NaN or inf got in the way."""
        assert self._arrivals.decoder is not None
        plan = self._arrivals.decoder.plan
        if plan is not self._decoded_by:
            began = self._watch.elapsed
            self.results, self._decoded_by = self._arrivals.decode(), plan
            self.decode_seconds = self._watch.elapsed - began
        if self.results is None:
            raise NotFiniteError
        return self.results

    @property
    def _since_ready(self) -> float:
        assert self._arrivals.ready_at is not None
        return self._watch.elapsed - self._arrivals.ready_at

    def _surplus_wait_is_over(self) -> bool:
        """At most one median task time, and always within SURPLUS_SECONDS."""
        low, high = SURPLUS_SECONDS
        usual = median(task.seconds for task in self._arrivals.tasks if task.seconds is not None)
        return not self._arrivals.more_may_come or self._since_ready >= float(np.clip(usual, low, high))
