"""Decide whether the results of a coded map have been checked well enough to be returned to the caller.

A coded map decodes missing results, which is right only if the mapped function f is linear (or a polynomial
of low degree, for some codes). So decoded results are checked first, and this module decides how long to wait
for the checks.
"""

from __future__ import annotations

from polarmap.blocks.coded import CodedData
from polarmap.driver.collector import WaitLimits
from polarmap.driver.local_evaluation import LocalEvaluation
from polarmap.driver.options import MapOptions
from polarmap.driver.result_decoder import NonFiniteResultError, ResultDecoder
from polarmap.driver.task_table import TaskTable
from polarmap.driver.verification import Accepted, Pending, Refused, Verdict, Verifier
from polarmap.errors import CodeError
from polarmap.executors.interface import FailureKind
from polarmap.report import Verification
from polarmap.worker.segments import DamagedError

# The maximum number of local calls of the mapped function in a row. Results of workers are not received
# during these calls.
MAX_EVALUATIONS_PER_POLL = 100
ALL_DATA_ARRIVED = "all data tasks reported, so the results are those of a plain map"


class AcceptancePolicy:
    """Decides whether the results of a coded map can be accepted, must be refused, or need further checks.

    The map asks for a verdict once enough results have arrived to decode the missing ones.

    Parameters
    ----------
    coded_data : CodedData
        The coded blocks, one per task.
    options : MapOptions
        The options of the map, such as `verify`.
    decoder : ResultDecoder
        Decodes the missing results.
    verifier : Verifier
        Checks whether the mapped function f is linear, and whether workers returned wrong results.
    limits : WaitLimits
        Limits how long the map waits for checks.
    task_table : TaskTable
        Shows which results may still arrive, and why tasks failed.
    is_f_known : bool
        Whether f is already known to be what the code assumes, for example linear. An earlier map may have
        verified it, or f may have the property by construction.
    """

    def __init__(
        self,
        coded_data: CodedData,
        options: MapOptions,
        decoder: ResultDecoder,
        verifier: Verifier,
        limits: WaitLimits,
        task_table: TaskTable,
        is_f_known: bool,
    ) -> None:
        self._coded_data, self._code, self._options = coded_data, coded_data.code, options
        self._decoder, self._verifier, self._limits, self._task_table = decoder, verifier, limits, task_table
        self._is_f_known = is_f_known
        self._must_verify = options.verify is True or (options.verify == "auto" and not is_f_known)

    def judge(self) -> Verdict:
        """Decide whether the results that have arrived can be accepted, and return the verdict.

        If the verdict is `Accepted`, the missing results are decoded.
        """
        try:
            if len(self._decoder.tracker.missing_indices):
                verdict = self._judge_decoded_results()
            else:
                verdict = self._judge_complete_results()
                if isinstance(verdict, Refused) and self._options.verify is not True:
                    warning = f"{ALL_DATA_ARRIVED}, but {verdict.error}"
                    verdict = Accepted(Verification.NOT_NEEDED, warning)
            if isinstance(verdict, Accepted):
                self._decoder.decode()
            return verdict
        except (NonFiniteResultError, CodeError) as error:
            return Refused(error)

    # -- where results are missing ----------------------------------------------------------

    def _judge_decoded_results(self) -> Verdict:
        """Return the verdict on the results of a map in which some are missing and must be decoded."""
        if self._decoder.undecodable_reason:
            raise CodeError(f"a result is missing and cannot be decoded: {self._decoder.undecodable_reason}")
        if self._options.verify is False:
            return Accepted(Verification.NO)
        verdict = self._judge_by_checks()
        if (
            isinstance(verdict, Accepted)
            and verdict.verification in (Verification.PARITY, Verification.LOCAL)
            and not self._is_f_known
            and self._verifier.has_check_of_block_sum
        ):
            self._decoder.decode()
            return verdict._replace(proves_f=self._verifier.has_differing_results())
        return verdict

    def _judge_by_checks(self) -> Verdict:
        if self._decoder.tracker.n_redundant_checks:
            contradiction = self._judge_contradiction()
            if contradiction is not None:
                return contradiction
            if not self._must_verify or (
                self._verifier.has_conclusive_checks
                and not self._verifier.local_checks.find_differing_blocks()
            ):
                return Accepted(Verification.PARITY)
        elif not self._must_verify:
            return Accepted(Verification.EARLIER)
        elif not self._is_redundancy_wait_over:
            return Pending()
        return self._judge_by_local_evaluation()

    def _judge_by_local_evaluation(self) -> Verdict:
        """Return the verdict on decoded results after comparing some of them with local calls of f.

        Here, f is the mapped function, and a local call runs on the driver. The verdict is `Pending` while f
        is running, or while another result may still arrive that shows whether the decoded results are right.
        """
        verifier, local_checks = self._verifier, self._verifier.local_checks
        evaluation = verifier.poll_local_evaluation()
        for _ in range(MAX_EVALUATIONS_PER_POLL):
            if (
                not local_checks.has_latest_result
                or verifier.has_conclusive_checks
                or local_checks.checked_mask.all()
            ):
                break
            evaluation = verifier.poll_local_evaluation()
        has_parity_checks = bool(self._decoder.tracker.n_redundant_checks)
        verification = Verification.PARITY if has_parity_checks else Verification.LOCAL
        if local_checks.has_latest_result:
            differing_blocks = local_checks.find_differing_blocks()
            if not self._is_redundancy_wait_over and (differing_blocks or not verifier.has_conclusive_checks):
                return Pending()
            if differing_blocks:
                return verifier.make_refused_verdict(
                    f"f of block {differing_blocks[0]} differs from its decoded result"
                )
            return Accepted(verification)
        if not self._is_evaluation_hopeless(evaluation):
            return Pending()
        if has_parity_checks:
            return Accepted(verification)
        local_outcome = (
            f"raised {evaluation.error_text}"
            if evaluation.error is not None
            else f"had not ended after {self._decoder.seconds_since_ready:.3g} s"
        )
        return Accepted(
            Verification.NO,
            f"f could not be verified: no result beyond the {self._decoder.n_needed} needed arrived, and on "
            f"the driver it {local_outcome}",
        )

    def _is_evaluation_hopeless(self, evaluation: LocalEvaluation) -> bool:
        """Return whether to stop waiting for the local check, a call of the mapped function on the driver.

        Waiting stops if the call takes too long, or if it failed and no other result can serve as a check.
        """
        if self._decoder.seconds_since_ready > self._limits.max_wait_seconds:
            return True
        if evaluation.error is None:
            return False
        return (
            self._is_redundancy_wait_over
            if self._decoder.tracker.n_redundant_checks
            else not self._task_table.pending_tasks
        )

    # -- where no result is missing ---------------------------------------------------------

    def _judge_complete_results(self) -> Verdict:
        """Return the verdict on the results of a map in which no result has to be decoded.

        These results can be returned whether or not the mapped function f is linear. If f has not been
        verified yet, it is checked anyway: a warning now is better than a failure in a later map, which may
        lose a worker and then has to decode its result.
        """
        decoder, code = self._decoder, self._code
        residuals = self._verifier.parity_checks.residuals
        if not self._must_verify and (residuals is None or not residuals.is_violated):
            return Accepted(Verification.NOT_NEEDED)
        if code.n == code.n_targets:
            return Accepted(Verification.NOT_NEEDED)
        # Computing `undecodable_reason` reads all blocks, which takes too long if they are in storage.
        if self._coded_data.location is None and decoder.undecodable_reason:
            return self._accept_undecodable(decoder.undecodable_reason)
        if decoder.tracker.n_redundant_checks:
            contradiction = self._judge_contradiction()
            if contradiction is not None:
                return contradiction
        # A parity block that merely copies a data block cannot show whether the mapped function is linear.
        if not self._must_verify or self._verifier.parity_checks.densest_parity_block[1] == 1:
            return Accepted(Verification.NOT_NEEDED)
        if self._verifier.has_check_of_block_sum:
            return self._accept_proof_of_f()
        if not self._is_redundancy_wait_over and self._limits.remaining_seconds > 0:
            return Pending()
        return self._judge_by_parity_evaluation()

    def _judge_by_parity_evaluation(self) -> Verdict:
        """Check whether the mapped function f is linear by calling it on a parity block in this process.

        Used if the results of all data blocks but no parity result have arrived.
        """
        decoder, code, limits = self._decoder, self._code, self._limits
        if code.recovery_threshold > code.n_targets:
            # A code for polynomials needs more results than there are data blocks. The result of a single
            # parity block is then not enough for a check.
            return self._accept_unverified("too few results beyond those of the data came")
        evaluation = self._verifier.parity_checks.parity_evaluation
        if not evaluation.poll():
            max_seconds = (
                limits.max_wait_seconds
                if self._options.verify is True  # The caller requires a check: wait longer.
                else 2 * limits.redundancy_wait_seconds
            )
            if decoder.seconds_since_ready <= max_seconds and limits.remaining_seconds > 0:
                return Pending()
            return self._accept_unverified(f"here it had not ended after {decoder.seconds_since_ready:.3g} s")
        if evaluation.leaves is None:
            if isinstance(evaluation.error, DamagedError):  # Damaged data says nothing about f.
                return self._accept_unverified(
                    f"a parity block could not be read here: {evaluation.error_text}"
                )
            parity_failures = (
                self._task_table[task_index].failures for task_index in range(code.n_targets, code.n)
            )
            if any(
                failure.kind == FailureKind.RAISED
                for task_failures in parity_failures
                for failure in task_failures
            ):
                return self._verifier.make_refused_verdict(
                    f"f fails on parity blocks, here with {evaluation.error_text}"
                )
            return self._accept_unverified(f"here it raised {evaluation.error_text}")
        residuals = self._verifier.parity_checks.evaluate_with_parity_block(evaluation.leaves)
        if residuals.is_violated:
            return self._verifier.make_refused_verdict(
                f"f of a parity block is off by {residuals.max_residual:.2g} (relative)"
            )
        return self._accept_proof_of_f()

    def _accept_proof_of_f(self) -> Accepted:
        proves_f = not self._is_f_known and self._verifier.has_differing_results()
        return Accepted(Verification.NOT_NEEDED, proves_f=proves_f)

    def _accept_undecodable(self, reason: str) -> Accepted:
        """Accept the results, which have all arrived, with a warning that a lost one could not be decoded.

        Raises CodeError instead if the caller asked for verification (`verify=True`).
        """
        if self._options.verify is True:
            raise CodeError(reason)
        return Accepted(
            Verification.NOT_NEEDED,
            f"{ALL_DATA_ARRIVED}, but a lost one could not have been decoded: {reason}",
        )

    def _accept_unverified(self, reason: str) -> Accepted:
        """Accept the complete results although the mapped function f could not be checked.

        The verdict includes a warning if the caller asked for verification (`verify=True`).
        """
        warning = (
            f"f could not be verified: all data tasks reported, no result beyond theirs did, and {reason}"
            if self._options.verify is True
            else ""
        )
        return Accepted(Verification.NOT_NEEDED, warning)

    # ---------------------------------------------------------------------------------------

    def _judge_contradiction(self) -> Verdict | None:
        """Evaluate the parity checks, and return a verdict if any of them fails, else None.

        If a check fails, the received results contradict each other: a worker returned a wrong result, or f
        is not linear. While it is unclear which, the verdict is `Pending`: another result may show it.
        """
        residuals = self._verifier.parity_checks.evaluate()
        if not residuals.is_violated:
            return None
        suspects = residuals.suspects
        if suspects is not None and len(suspects) == 1:
            return self._verifier.reject_result_or_blame_f(*suspects)
        if suspects == set() or self._is_redundancy_wait_over:
            return self._verifier.make_refused_verdict(
                f"the parity equations are off by {residuals.max_residual:.2g} (relative)"
            )
        return Pending()

    @property
    def _is_redundancy_wait_over(self) -> bool:
        """Whether to stop waiting for results that are not needed for decoding, but could serve as checks."""
        return (
            not self._task_table.pending_tasks
            or self._decoder.seconds_since_ready >= self._limits.redundancy_wait_seconds
        )
