"""Whether the results of a map may be handed out: looked at when they are determined, while more may come."""

from __future__ import annotations

from polarmap.driver.local_evaluation import LocalEvaluation
from polarmap.driver.verification import Verifier
from polarmap.errors import CodeError, warn
from polarmap.worker.segments import DamagedError

MAX_EVALUATIONS_PER_POLL = 100  # blocks on which a quick f is evaluated here before results are taken again
ALL_DATA_ARRIVED = "all data tasks reported, so the results are those of a plain map"


class AcceptancePolicy(Verifier):
    """The checks that results have to pass, and how long more is waited for that would tell."""

    def try_verify_results(self) -> str | None:
        """How results were verified of which some have to be decoded; None as long as that is not settled.

        Raises CodeError if parity cannot replace the missing results, so that their own tasks have to report.
        """
        collector = self._collector
        if collector.undecodable_reason:
            raise CodeError(f"a result is missing and cannot be decoded: {collector.undecodable_reason}")
        if collector.options.verify is False:
            return "no"
        verification = self._verify_decoded_blocks()
        if (
            verification in ("parity", "local")
            and collector.function_property.value is None
            and self.has_check_of_block_sum
        ):
            collector.decode_results()
            self.record_f_is_linear()
        return verification

    def _verify_decoded_blocks(self) -> str | None:
        collector = self._collector
        if collector.tracker.n_redundant_checks:
            if not self._check_parity_consistency():
                return None
            if not collector.must_verify_results or (
                self.has_conclusive_checks and not self.find_differing_blocks()
            ):
                return "parity"
        elif not collector.must_verify_results:
            return "earlier"
        elif not self._is_redundancy_wait_over():
            return None
        return self._verify_by_local_evaluation()

    def _verify_by_local_evaluation(self) -> str | None:
        """Evaluate f on a block that has to be decoded, in a thread, while results may still come."""
        collector, evaluation = self._collector, self.poll_local_evaluation()
        for _ in range(MAX_EVALUATIONS_PER_POLL):
            if (
                evaluation.block_index not in self.local_results
                or self.has_conclusive_checks
                or self._locally_evaluated_mask.all()
            ):
                break
            evaluation = self.poll_local_evaluation()
        verification = "parity" if collector.tracker.n_redundant_checks else "local"
        if evaluation.block_index in self.local_results:
            differing_blocks = self.find_differing_blocks()
            if not self._is_redundancy_wait_over() and (differing_blocks or not self.has_conclusive_checks):
                return None
            if differing_blocks:
                self.raise_not_linear_error(
                    f"f of block {differing_blocks[0]} differs from its decoded result"
                )
            return verification
        if not self._should_stop_waiting_for(evaluation):
            return None
        if verification == "parity":
            return verification
        local_outcome = (
            f"raised {evaluation.error_text}"
            if evaluation.error is not None
            else f"had not ended after {collector.seconds_since_decodable:.3g} s"
        )
        warn(
            f"f could not be verified: no result beyond the {collector.n_needed} needed arrived, and on the "
            f"driver it {local_outcome}"
        )
        return "no"

    def _should_stop_waiting_for(self, evaluation: LocalEvaluation) -> bool:
        """Whether neither f here nor another result is worth waiting for any longer."""
        collector = self._collector
        if collector.seconds_since_decodable > collector.max_wait_seconds:
            return True
        if evaluation.error is None:
            return False
        return (
            self._is_redundancy_wait_over()
            if collector.tracker.n_redundant_checks
            else not collector.task_table.pending_tasks
        )

    # -- where nothing has to be decoded ----------------------------------------------------

    def confirm_decodability(self) -> bool:
        """Whether it has turned out, as far as it will, that lost results could be decoded.

        NotLinearError if they could not.
        """
        collector, code = self._collector, self._coded_data.code
        if code.n == code.n_targets:
            return True
        # else all would be read to tell
        if collector.coded_data.location is None and collector.undecodable_reason:
            return self._warn_results_undecodable(collector.undecodable_reason)
        if collector.tracker.n_redundant_checks and not self._check_parity_consistency():
            return False
        # copies of blocks tell nothing
        if not collector.must_verify_results or self.densest_parity_block[1] == 1:
            return True
        if self.has_check_of_block_sum:
            self.record_f_is_linear()
            return True
        if not self._is_redundancy_wait_over() and collector.timer.remaining_seconds > 0:
            return False
        return self._verify_parity_block_locally()

    def _verify_parity_block_locally(self) -> bool:
        """The same by f of a parity block on the driver, where no parity result came."""
        collector, code = self._collector, self._coded_data.code
        if code.recovery_threshold > code.n_targets:  # a polynomial takes more than one
            return self._warn_results_unverified("too few results beyond those of the data came")
        evaluation = self.parity_evaluation
        if evaluation.is_running:  # more of it where the caller insists
            max_seconds = (
                collector.max_wait_seconds
                if collector.options.verify is True
                else 2 * collector.redundancy_wait_seconds
            )
            if collector.seconds_since_decodable <= max_seconds and collector.timer.remaining_seconds > 0:
                return False
            return self._warn_results_unverified(
                f"here it had not ended after {collector.seconds_since_decodable:.3g} s"
            )
        if evaluation.leaves is None:
            if isinstance(evaluation.error, DamagedError):  # says nothing of f
                return self._warn_results_unverified(
                    f"a parity block could not be read here: {evaluation.error_text}"
                )
            parity_failures = (
                collector.task_table[task_index].failures for task_index in range(code.n_targets, code.n)
            )
            if any(
                failure.kind == "raised" for task_failures in parity_failures for failure in task_failures
            ):
                self.raise_not_linear_error(f"f fails on parity blocks, here with {evaluation.error_text}")
            return self._warn_results_unverified(f"here it raised {evaluation.error_text}")
        if not self.agrees_with_parity_block(evaluation.leaves):
            self.raise_not_linear_error(f"f of a parity block is off by {self.max_residual:.2g} (relative)")
        self.record_f_is_linear()
        return True

    def _warn_results_undecodable(self, reason: str) -> bool:
        """Say that a lost result could not be decoded; CodeError where the caller insists."""
        if self._collector.options.verify is True:
            raise CodeError(reason)
        warn(f"{ALL_DATA_ARRIVED}, but a lost one could not have been decoded: {reason}")
        return True

    def _warn_results_unverified(self, reason: str) -> bool:
        """Say that nothing is known of f, to a caller who insists."""
        if self._collector.options.verify is True:
            warn(
                f"f could not be verified: all data tasks reported, no result beyond theirs did, and {reason}"
            )
        return True

    # ---------------------------------------------------------------------------------------

    def _check_parity_consistency(self) -> bool:
        """Whether the left-over equations hold; if not, and one is found who did it, its result is dropped.

        Another result is waited for where these do not tell garbage from a non-linear f. NotLinearError when
        f is to blame, NonFiniteResultError for NaN and inf.
        """
        if not self.evaluate_parity_checks():
            return True
        if self.suspects is not None and len(self.suspects) == 1:
            self.reject_result_or_blame_f(*self.suspects)
        elif self.suspects == set() or self._is_redundancy_wait_over():
            self.raise_not_linear_error(f"the parity equations are off by {self.max_residual:.2g} (relative)")
        return False

    def _is_redundancy_wait_over(self) -> bool:
        """Whether no result to check against is coming, or not soon enough."""
        collector = self._collector
        return (
            not collector.task_table.pending_tasks
            or collector.seconds_since_decodable >= collector.redundancy_wait_seconds
        )
