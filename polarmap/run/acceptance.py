"""Whether the results of a map are handed out: the checks that they have to pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.blocks.coded import CodedData
from polarmap.code.algebra import Recovery
from polarmap.code.decoder import Decoder
from polarmap.errors import CodeError, NotDecodableError, NotLinearError, warn
from polarmap.run.need import Stopwatch
from polarmap.run.options import MapOptions
from polarmap.run.received import Received
from polarmap.run.results import LocalRun
from polarmap.run.tasks import TaskTable
from polarmap.run.trusted import Trust
from polarmap.run.verify import NotFiniteError, Verifier
from polarmap.worker.parts import DamagedError

Array = npt.NDArray[Any]

SURPLUS_SECONDS = (0.2, 10.0)  # bounds of the wait for a result to check against: then f is evaluated here
AS_A_PLAIN_MAP = "all data tasks reported, so the results are those of a plain map"


class Acceptance(Received):
    """The results of a map, and whether they are good enough to be handed out.

    Attributes
    ----------
    verification : str or None
        How the results were verified, once they are accepted.
    decoded : list of lists of arrays
        The results of the k data tasks, flat; of the last time they were decoded, empty before.
    decode_seconds : float
    refusal : NotFiniteError, NotLinearError or None
        Why nothing can be decoded from these results, so that every data task has to report.
    contradiction : NotLinearError or None
        Of results that are handed out all the same, as every data task did report.
    """

    def __init__(
        self,
        f: Callable[[Any], Any],
        coded: CodedData,
        options: MapOptions,
        tasks: TaskTable,
        watch: Stopwatch,
    ) -> None:
        super().__init__(f, coded, options, tasks, watch)
        is_ours = options.known.fits or options.verify is False  # nobody asks
        self._trust = Trust(f, coded.code.assumption, coded.blocks.dtypes, is_ours)
        self.verification: str | None = None
        self.decoded: list[list[Array]] = []
        self.decode_seconds = 0.0
        self._decoded_by: Recovery | None = None
        self.refusal: NotFiniteError | NotLinearError | None = None
        self.contradiction: NotLinearError | None = None
        self._refused: tuple[Decoder | None, int] = None, 0  # by whom, and how many results it had

    @property
    def error_bound(self) -> float:
        """What the results may be off by, as a share of the largest number among them."""
        return self.verifier.error_bound(self.decoded)

    def _warn(self) -> None:
        """Say of the results that they contradict each other, or are less accurate than was asked for."""
        if self.contradiction is not None:
            warn(f"{AS_A_PLAIN_MAP}, but {self.contradiction}")
        if self.is_inaccurate:
            warn(
                "what arrived determines the other results, but no more accurately than to "
                f"{self.error_bound:.2g} (relative), which is more than rtol: no further result came"
            )

    def _verdict(self) -> str | None:
        """How the results were verified, once they are determined and that is settled.

        Results that contradict each other are looked at again with every further one: it may tell who
        is to blame.
        """
        decoder = self.decoder
        if isinstance(self.refusal, NotLinearError) and self._refused != (decoder, decoder and decoder.count):
            self.refusal = None
        if decoder is None or not decoder.ready or (self.refusal is not None and len(decoder.missing)):
            return None
        try:
            how = self._verify(decoder) if len(decoder.missing) else self._as_a_plain_map(decoder)
            if how is not None:
                self._decode()
            if how in ("parity", "local") and self._trust.known is None and self.verifier.is_mixing:
                self.verifier.note_passed()
            return how
        except NotFiniteError as error:
            if not len(decoder.code.systematic):  # no more results would help
                raise NotDecodableError("results contain NaN or inf, so nothing can be decoded") from error
            self.refusal = error
        except NotLinearError as error:
            if not len(decoder.code.systematic) or self._options.known.fits or self._options.verify is True:
                raise
            self.refusal, self._refused = error, (decoder, decoder.count)
        return None

    def _as_a_plain_map(self, decoder: Decoder) -> str | None:
        """Every data task reported: nothing has to be decoded, whatever f is.

        On first use one parity equation is looked at all the same: better a warning now than an error
        when a worker is missing.
        """
        if self.refusal is not None:
            self.needed = decoder.count
        if not isinstance(self.refusal, NotFiniteError) and (self._is_first_use or self.is_broken):
            try:
                if not self._is_protected(decoder):
                    return None
            except NotLinearError as error:
                if self._options.verify is True:
                    raise
                self.contradiction = error
            except NotFiniteError as error:
                self.refusal = error
        return "not needed"

    @cached_property
    def verifier(self) -> Verifier:
        """What checks results: made when it is asked for, as a map that decodes nothing needs none."""
        # Without a circle: the blocks are to be gone as soon as their map is over.
        received: Received = weakref.proxy(self)
        return Verifier(self._f, self._coded, received, self._options, self._trust)

    @property
    def residual(self) -> float | None:
        """Largest relative residual of the left-over equations when last evaluated; None if never."""
        return self.verifier.residual if "verifier" in self.__dict__ else None

    @property
    def is_broken(self) -> bool:
        """Whether one of them did not hold then, and nobody has been found who did it."""
        return "verifier" in self.__dict__ and self.verifier.broken

    @property
    def _is_first_use(self) -> bool:
        """Whether it is to be found out what f is."""
        verify = self._options.verify
        return verify is True or (verify == "auto" and self._trust.known is None)

    def _is_protected(self, decoder: Decoder) -> bool:
        """Whether it has turned out, as far as it will, that lost results could be decoded.

        NotLinearError if they could not.
        """
        if decoder.code.n == decoder.code.wanted:
            return True
        if not self.are_stored and self.wraps:  # else all would be read to tell
            return self._say_not_protected(self.why_not_protected())
        if decoder.surplus and not self._surplus_holds():
            return False
        if not (self._is_first_use and self.verifier.can_mix):
            return True
        if self.verifier.is_mixing:
            self.verifier.note_passed()
            return True
        if not self._surplus_wait_is_over() and self.watch.remaining > 0:
            return False
        return self._parity_is_checked_here(decoder)

    def _parity_is_checked_here(self, decoder: Decoder) -> bool:
        """The same by f of a parity block on the driver, where no parity result came."""
        if decoder.code.recovery_threshold > decoder.code.wanted:  # a polynomial takes more than one
            return self._say_unverified("too few results beyond those of the data came")
        run = self.verifier.parity_run()
        if run.is_running:
            return self._is_given_up and self._say_unverified(f"here it had not ended after {self._waited}")
        if run.leaves is None:
            if isinstance(run.error, DamagedError):  # says nothing of f
                return self._say_unverified(f"a parity block could not be read here: {run.words}")
            failures = (self.tasks[i].failures for i in range(decoder.code.wanted, decoder.code.n))
            if any(failure.kind == "raised" for told in failures for failure in told):
                self.verifier.blame_f(f"f fails on parity blocks, here with {run.words}")
            return self._say_unverified(f"here it raised {run.words}")
        if not self.verifier.parity_fits(run.leaves):
            self.verifier.blame_f(f"f of a parity block is off by {self.verifier.residual:.2g} (relative)")
        self.verifier.note_passed()
        return True

    @property
    def _is_given_up(self) -> bool:
        """Whether f of a parity block has had its time: more of it where the caller insists."""
        if self.watch.remaining <= 0:
            return True
        return self._since_ready > (self.patience if self._options.verify is True else 2 * self.surplus_wait)

    def _say_not_protected(self, why: str) -> bool:
        """Say that a lost result could not be decoded; CodeError where the caller insists."""
        if self._options.verify is True:
            raise CodeError(why)
        warn(f"{AS_A_PLAIN_MAP}, but a lost one could not have been decoded: {why}")
        return True

    def _say_unverified(self, why: str) -> bool:
        """Say that nothing is known of f, to a caller who insists."""
        if self._options.verify is True:
            warn(f"f could not be verified: all data tasks reported, no result beyond theirs did, and {why}")
        return True

    def _verify(self, decoder: Decoder) -> str | None:
        """The same where results have to be decoded."""
        if self.wraps:
            raise CodeError(f"a result is missing and cannot be decoded: {self.why_not_protected()}")
        if self._options.verify is False:
            return "no"
        trusted = not self._is_first_use
        if decoder.surplus:
            if not self._surplus_holds():
                return None
            if trusted or (self.verifier.is_telling and not self.verifier.differing_here(self._decode())):
                return "parity"
        elif trusted:
            return "earlier"
        elif not self._surplus_wait_is_over():
            return None
        return self._check_locally(decoder)

    def _surplus_holds(self) -> bool:
        more = self.more_may_come and not self._surplus_wait_is_over()
        return self.verifier.surplus_holds(more)

    def _check_locally(self, decoder: Decoder) -> str | None:
        """Evaluate f on a block that has to be decoded, in a thread, while results may still come."""
        run = self.verifier.local_run()
        if run.index not in self.verifier.evaluated:
            if not self._is_hopeless(run, decoder):
                return None
            if decoder.surplus:
                return "parity"
            self._warn_unverified(run)
            return "no"
        differing = self.verifier.differing_here(self._decode())
        time_is_left = self.more_may_come and not self._surplus_wait_is_over()
        if time_is_left and (differing or not self.verifier.is_telling):
            return None
        if differing:
            self.verifier.blame_f(f"f of block {differing[0]} differs from its decoded result")
        return "parity" if decoder.surplus else "local"

    def _is_hopeless(self, run: LocalRun, decoder: Decoder) -> bool:
        """Whether neither f here nor another result is worth waiting for any longer."""
        if self._since_ready > self.patience:
            return True
        if run.error is None:
            return False
        return self._surplus_wait_is_over() if decoder.surplus else not self.more_may_come

    def is_accuracy_hopeless(self) -> bool:
        """Whether no result that would make decoding more accurate is worth waiting for any longer."""
        since = None if self.refusal is not None else self.determined_at
        return since is not None and self.watch.elapsed - since > self.patience

    @property
    def _waited(self) -> str:
        return f"{self._since_ready:.3g} s"

    def _warn_unverified(self, run: LocalRun) -> None:
        here = f"had not ended after {self._waited}"
        if run.error is not None:
            here = f"raised {run.words}"
        warn(
            f"f could not be verified: no result beyond the {self.needed} needed arrived, and on "
            f"the driver it {here}"
        )

    def _decode(self) -> list[list[Array]]:
        """The results of all data tasks; NotFiniteError if NaN or inf got in the way."""
        assert self.decoder is not None
        if not len(self.decoder.missing):
            self.decoded = self.of_data()
        elif self.decoder.recovery is not self._decoded_by:
            began = self.watch.elapsed
            self.decoded, self._decoded_by = self.decode(), self.decoder.recovery
            self.decode_seconds = self.watch.elapsed - began
        if not self.decoded:
            raise NotFiniteError
        return self.decoded

    @property
    def _since_ready(self) -> float:
        assert self.ready_at is not None
        return self.watch.elapsed - self.ready_at

    @property
    def surplus_wait(self) -> float:
        """One median task time, within SURPLUS_SECONDS."""
        return float(np.clip(np.median(self.tasks.seconds), *SURPLUS_SECONDS))

    def _surplus_wait_is_over(self) -> bool:
        """Whether no result to check against is coming, or not soon enough."""
        return not self.more_may_come or self._since_ready >= self.surplus_wait
