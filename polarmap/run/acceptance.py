"""Whether the results of a map may be handed out: looked at when they are determined, while more may come."""

from __future__ import annotations

from polarmap.errors import CodeError, warn
from polarmap.run.local_run import LocalRun
from polarmap.run.verify import Verifier
from polarmap.worker.segments import DamagedError

AT_ONE_LOOK = 100  # blocks on which a quick f is evaluated here before results are taken again
AS_A_PLAIN_MAP = "all data tasks reported, so the results are those of a plain map"


class Acceptance(Verifier):
    """The checks that results have to pass, and how long more is waited for that would tell."""

    def verified(self) -> str | None:
        """How results were verified of which some have to be decoded; None as long as that is not settled.

        Raises CodeError if parity cannot replace the missing results, so that their own tasks have to report.
        """
        word = self._word
        if word.why_not_protected:
            raise CodeError(f"a result is missing and cannot be decoded: {word.why_not_protected}")
        if word.options.verify is False:
            return "no"
        how = self._checked()
        if how in ("parity", "local") and word.trust.known is None and self.is_mixing:
            word.decode()
            self.note_passed()
        return how

    def _checked(self) -> str | None:
        word = self._word
        if word.decoder.n_redundant_checks:
            if not self._surplus_holds():
                return None
            if not word.is_first_use or (self.is_telling and not self.differing_here()):
                return "parity"
        elif not word.is_first_use:
            return "earlier"
        elif not self._surplus_wait_is_over():
            return None
        return self._checked_here()

    def _checked_here(self) -> str | None:
        """Evaluate f on a block that has to be decoded, in a thread, while results may still come."""
        word, run = self._word, self.local_run()
        for _ in range(AT_ONE_LOOK):
            if run.index not in self.evaluated or self.is_telling or self._are_evaluated.all():
                break
            run = self.local_run()
        how = "parity" if word.decoder.n_redundant_checks else "local"
        if run.index in self.evaluated:
            differing = self.differing_here()
            if not self._surplus_wait_is_over() and (differing or not self.is_telling):
                return None
            if differing:
                self.blame_f(f"f of block {differing[0]} differs from its decoded result")
            return how
        if not self._is_hopeless(run):
            return None
        if how == "parity":
            return how
        here = (
            f"raised {run.words}"
            if run.error is not None
            else f"had not ended after {word.since_ready:.3g} s"
        )
        warn(
            f"f could not be verified: no result beyond the {word.needed} needed arrived, and on the driver "
            f"it {here}"
        )
        return "no"

    def _is_hopeless(self, run: LocalRun) -> bool:
        """Whether neither f here nor another result is worth waiting for any longer."""
        word = self._word
        if word.since_ready > word.patience:
            return True
        if run.error is None:
            return False
        return self._surplus_wait_is_over() if word.decoder.n_redundant_checks else not word.tasks.coming

    # -- where nothing has to be decoded ----------------------------------------------------

    def is_protected(self) -> bool:
        """Whether it has turned out, as far as it will, that lost results could be decoded.

        NotLinearError if they could not.
        """
        word, code = self._word, self._coded.code
        if code.n == code.n_targets:
            return True
        if word.coded.location is None and word.why_not_protected:  # else all would be read to tell
            return self._say_not_protected(word.why_not_protected)
        if word.decoder.n_redundant_checks and not self._surplus_holds():
            return False
        if not word.is_first_use or self.most_mixed[1] == 1:  # copies of blocks tell nothing
            return True
        if self.is_mixing:
            self.note_passed()
            return True
        if not self._surplus_wait_is_over() and word.watch.remaining > 0:
            return False
        return self._parity_is_checked_here()

    def _parity_is_checked_here(self) -> bool:
        """The same by f of a parity block on the driver, where no parity result came."""
        word, code = self._word, self._coded.code
        if code.recovery_threshold > code.n_targets:  # a polynomial takes more than one
            return self._say_unverified("too few results beyond those of the data came")
        run = self.parity_run
        if run.is_running:  # more of it where the caller insists
            most = word.patience if word.options.verify is True else 2 * word.surplus_wait
            if word.since_ready <= most and word.watch.remaining > 0:
                return False
            return self._say_unverified(f"here it had not ended after {word.since_ready:.3g} s")
        if run.leaves is None:
            if isinstance(run.error, DamagedError):  # says nothing of f
                return self._say_unverified(f"a parity block could not be read here: {run.words}")
            failures = (word.tasks[i].failures for i in range(code.n_targets, code.n))
            if any(failure.kind == "raised" for told in failures for failure in told):
                self.blame_f(f"f fails on parity blocks, here with {run.words}")
            return self._say_unverified(f"here it raised {run.words}")
        if not self.parity_fits(run.leaves):
            self.blame_f(f"f of a parity block is off by {self.residual:.2g} (relative)")
        self.note_passed()
        return True

    def _say_not_protected(self, why: str) -> bool:
        """Say that a lost result could not be decoded; CodeError where the caller insists."""
        if self._word.options.verify is True:
            raise CodeError(why)
        warn(f"{AS_A_PLAIN_MAP}, but a lost one could not have been decoded: {why}")
        return True

    def _say_unverified(self, why: str) -> bool:
        """Say that nothing is known of f, to a caller who insists."""
        if self._word.options.verify is True:
            warn(f"f could not be verified: all data tasks reported, no result beyond theirs did, and {why}")
        return True

    # ---------------------------------------------------------------------------------------

    def _surplus_holds(self) -> bool:
        """Whether the left-over equations hold; if not, and one is found who did it, its result is dropped.

        Another result is waited for where these do not tell garbage from a non-linear f. NotLinearError when
        f is to blame, NotFiniteError for NaN and inf.
        """
        if not self.are_broken():
            return True
        if self.suspects is not None and len(self.suspects) == 1:
            self.convict(*self.suspects)
        elif self.suspects == set() or self._surplus_wait_is_over():
            self.blame_f(f"the parity equations are off by {self.residual:.2g} (relative)")
        return False

    def _surplus_wait_is_over(self) -> bool:
        """Whether no result to check against is coming, or not soon enough."""
        word = self._word
        return not word.tasks.coming or word.since_ready >= word.surplus_wait
