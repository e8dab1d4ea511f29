"""Is f linear, and did every worker tell the truth? The left-over equations, or f on the driver."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property, partial
from typing import Any, NoReturn

import numpy as np

from polarmap.codes import equations
from polarmap.codes.algebra import Recovery
from polarmap.codes.dtypes import Array, DType, Mask, default_rtol, epsilon, is_exact
from polarmap.codes.masked import MaskedCode
from polarmap.codes.polar import PolarCode
from polarmap.errors import NotLinearError
from polarmap.executors.base import Failure
from polarmap.run.local_run import LocalRun, block_here
from polarmap.run.received import NotFiniteError, Received, kind_of
from polarmap.run.trusted import LINEAR
from polarmap.worker.pytree import flatten, unflatten

DECODING_NOISE = 16  # roundings of the largest number of a leaf, times the amplification of decoding
NOT_LINEAR = (
    "f is not {assumption} (or not deterministic), so lost results cannot be decoded. For a polynomial "
    "say degree=; for any f at all use coded_sum if a sum of its results is wanted, hedged_map if each is; "
    "if it is {kind} but badly conditioned, raise rtol; verify=False trusts you and skips the check"
)


class Verifier:
    """Checks the results of a map.

    Attributes
    ----------
    evaluated : dict from data block to flat result
        What f gave here.
    residual : float or None
        Largest relative residual of the left-over equations when last evaluated; None if never.
    broken : bool
        Whether one of them was broken then, and nobody has been found who did it.
    suspects : set of int or None
        Any one of whom would explain it; None if nothing tells.
    """

    def __init__(self, word: Received) -> None:
        self._word, self._coded = word, word.coded
        self._local: LocalRun | None = None
        self._reflected: tuple[int, LocalRun] | None = None  # a task, and f of its block's mirror image
        self._measured: Recovery | None = None  # of the results whose equations were evaluated last
        self.suspects: set[int] | None = None
        self._residuals: list[float | None] = []  # of each leaf, as last measured
        # Of each leaf: of what rounding is a share, too, where equations do not hold else.
        self._terms: list[float] = []
        self.evaluated: dict[int, list[Array]] = {}
        self.residual: float | None = None
        self.broken = False

    def contradicts(self) -> bool:
        """Whether left-over equations, if there are any, do not hold, whoever is to blame."""
        decoder = self._word.decoder
        return decoder.ready and decoder.surplus > 0 and self.are_broken()

    def unchecked(self) -> tuple[int, ...]:
        """The results that are handed out, or that decoded blocks are made of, and that no check involves.

        Checks are the left-over equations and the decoded blocks of which f was evaluated here.
        Garbage from one of these workers would pass; from any other it would not.
        """
        recovery = self._recovery
        handed_out = recovery.arrived < len(self._coded.code.systematic)
        return tuple(recovery.arrived[self._unseen(handed_out)].tolist())

    def _unseen(self, also: Mask | bool = False) -> Mask:
        """Which of the arrived results that decoded blocks are made of, or `also`, no check involves."""
        recovery = self._recovery
        unseen = np.zeros(len(recovery.arrived), bool)
        evaluated = self._are_evaluated
        for dtype in set(self._word.dtypes()):
            used, _, shown = recovery.composition(dtype)
            seen = shown[evaluated].any(axis=0)
            if self._residuals:
                seen |= equations.covered(recovery, dtype)
            unseen |= (used | also) & ~seen
        return unseen

    @property
    def is_telling(self) -> bool:
        """Whether the checks involve every result that decoded blocks are made of, and f of a data block.

        Equations hold of any f whose results are equal so far: then only those blocks are checked that were
        evaluated here. Where no worker gets a data block they hold of any that is linear far away from the
        data; those of copies of a block hold of any f. What is odd about the result of a data block may be
        f's own doing.
        """
        if self._word.odd - self.evaluated.keys() or (not self.is_mixing and self._mixed.any()):
            return False
        if not self._are_evaluated.all() and not self._differ():
            return False
        if not self.evaluated and not len(self._coded.code.systematic):
            return False
        return not self._unseen().any()

    @property
    def is_mixing(self) -> bool:
        """Whether one of the checks involves f of a sum of blocks: a copy of a block tells nothing of f."""
        if self._mixed[self._are_evaluated].any():
            return True
        dtypes = set(self._word.dtypes()) if self._residuals else ()
        return any(equations.most_terms(self._recovery, dtype) > 2 for dtype in dtypes)

    @property
    def _are_evaluated(self) -> Mask:
        """Which of the blocks to decode f was evaluated on here."""
        return self._are_in(self.evaluated)

    def _are_in(self, blocks: Collection[int]) -> Mask:
        """Which of the blocks to decode are among these."""
        return np.array([index in blocks for index in self._recovery.missing.tolist()], bool)

    @property
    def _mixed(self) -> Mask:
        """Which of the blocks to decode are made of more than a copy."""
        mixed = np.zeros(len(self._recovery.missing), bool)
        for dtype in set(self._word.dtypes()):
            mixed |= self._recovery.composition(dtype).mixed
        return mixed

    @cached_property
    def most_mixed(self) -> tuple[int, int]:
        """The parity block that is made of most data blocks, and of how many."""
        k, code = len(self._coded.code.systematic), self._coded.code
        if not (isinstance(code, PolarCode) and code.carries_integers):
            return k, code.k
        counts = np.count_nonzero(code.coefficients, axis=1)
        return k + int(np.argmax(counts)), int(counts.max())

    def error_bound(self) -> float:
        """The error that may have been made unseen, as a share of the largest number of a leaf.

        By rounding, which decoding multiplies, or by one worker whose deviation the checks could not
        tell from rounding.
        """
        recovery, bound = self._recovery, 0.0
        here = [] if self.differing_here() else recovery.missing[self._are_evaluated].tolist()
        checked = {block: self._distances(block) for block in here}
        for leaf, dtype in enumerate(self._word.dtypes()):
            is_whole = is_exact(dtype)
            if is_whole and not recovery.rounds:
                continue
            hidden = epsilon(self._word.precision(dtype))  # rounding may hide as much
            left_over = self._residuals[leaf] if self._residuals else None
            left_over = None if left_over is None else left_over + hidden
            rounding = 0.0 if is_whole else self.amplification * hidden  # of decoded blocks
            missed = {block: distances[leaf] + hidden + rounding for block, distances in checked.items()}
            unseen = equations.undetected(recovery, left_over, missed, len(self._coded.code.systematic))
            largest = self._scale(leaf, [leaves[leaf] for leaves in self._word.decoded])
            if largest:  # parity results may be larger than those that are wanted
                # Integers that f made of floats, and so rounded, may be off by a half through every weight.
                halves = 0.5 * float(np.abs(recovery.weights).sum(axis=1).max()) + 0.5 if is_whole else 0.0
                bound = max(bound, unseen * self._largest(leaf) / largest + rounding + halves / largest)
        return bound

    @property
    def amplification(self) -> float:
        """The largest of a block that is decoded of floats, which may stand beside exact integers."""
        recovery = self._recovery
        if not recovery.exact:
            return recovery.amplification
        return float(np.linalg.norm(recovery.weights, axis=1).max())

    def _largest(self, leaf: int) -> float:
        """The number of which rounding of a leaf is a share in the results."""
        return self._scale(leaf, [one.leaves[leaf] for one in self._word.results.values()])

    def _scale(self, leaf: int, arrays: list[Array]) -> float:
        """The largest number in these arrays of a leaf, or where its terms do not cancel if that is known."""
        return max([equations.largest_magnitude(arrays), *self._terms[leaf : leaf + 1]])

    def _terms_here(self) -> list[float]:
        """How large a product is, which is an f of ours, where the terms do not cancel whose sums it is.

        It is evaluated here, on the block that is made of most data blocks, with other signs. Of what
        others' functions do it is not known whether they round as much as that by themselves.
        """
        if not self._word.options.known.row_by_row:
            return []
        index, _ = self.most_mixed
        run = self._word.run_here(partial(self._of_other_signs, index), index)
        return [equations.largest_magnitude([leaf]) for leaf in run.leaves_within(self._word.time_here) or []]

    def _of_other_signs(self, index: int) -> Any:
        """A coded block whose numbers have signs at random; those that are exact, as indices, stay."""
        leaves, structure = flatten(block_here(self._coded, index))
        stream = np.random.default_rng(0)
        for leaf in leaves:
            if not is_exact(leaf.dtype):
                leaf *= stream.choice(np.array([-1, 1], leaf.dtype), leaf.shape)
        return unflatten(structure, leaves)

    def local_run(self) -> LocalRun:
        """f on a block that has to be decoded, on a thread: under way, or ended just now.

        The next one begins where the last has ended and results are left unchecked; it takes the
        block that is made of most of these.
        """
        run = self._local
        is_over = run is not None and run.index in self.evaluated and not self.is_telling
        if run is None or run.index not in self._recovery.missing or is_over:
            index = self._most_telling()
            block = partial(block_here, self._coded, index, of_data=True)
            run = self._local = self._word.run_here(block, index)
            self._reflected = self._reflect(index)
        is_over = not run.is_running and not (self._reflected and self._reflected[1].is_running)
        if is_over and run.leaves is not None:
            usual = self._word.structure
            is_alike = usual[0] == "sample" or repr(run.structure) == repr(usual)  # of what is stored
            self.evaluated[run.index] = run.leaves if is_alike else []  # agrees with nothing
        return run

    def _reflect(self, index: int) -> tuple[int, LocalRun] | None:
        """Start f on the mirror image of a coded block behind a data block, if all coded blocks have noise.

        With much noise all coded blocks may lie on the same side of a kink, as of |x|, on which f is linear.
        The image of one of them lies on the other side. An affine f of it is twice f of the data block less
        f of the coded block.
        """
        if not (isinstance(self._coded.code, MaskedCode) and self._word.structure[0] != "sample"):
            return None
        task = min(self._word.results)

        def image() -> Any:
            mirror, structure = flatten(block_here(self._coded, index, of_data=True))
            noisy, _ = flatten(block_here(self._coded, task))
            with np.errstate(invalid="ignore", over="ignore"):
                return unflatten(structure, [2 * one - other for one, other in zip(mirror, noisy)])

        return task, self._word.run_here(image, task)

    def differing_here(self) -> list[int]:
        """The decoded blocks that are not what f gave of them here."""
        results, missing = self._word.decode(), self._recovery.missing
        here = [(index, own) for index, own in self.evaluated.items() if index in missing]
        differing = [index for index, own in here if not self._agrees(own, results[index], decoded=True)]
        return differing or self._differing_image(results)

    def _differing_image(self, results: list[list[Array]]) -> list[int]:
        """Return the block evaluated last if f of the image behind it is not what its result implies."""
        if self._local is None or self._reflected is None:
            return []
        (task, run), index = self._reflected, self._local.index
        if run.leaves is None or index not in self.evaluated or task not in self._word.results:
            return []
        pairs = zip(results[index], self._word.results[task].leaves)
        with np.errstate(invalid="ignore", over="ignore"):
            implied = [2 * own - other for own, other in pairs]
        return [] if self._agrees(run.leaves, implied, decoded=True) else [index]

    def _distances(self, index: int) -> list[float]:
        """How far a decoded block is from what f gave here, by leaf, as a share of the largest number."""
        pairs = zip(self.evaluated[index], self._word.decoded[index])
        with np.errstate(invalid="ignore"):
            apart = [float(np.abs(one.astype(two.dtype) - two).max(initial=0)) for one, two in pairs]
        return [gap / (self._largest(leaf) or 1.0) for leaf, gap in enumerate(apart)]

    @cached_property
    def parity_run(self) -> LocalRun:
        """f of the parity block that is made of most data blocks, on a thread: under way, or ended."""
        index, _ = self.most_mixed
        return self._word.run_here(partial(block_here, self._coded, index), index)

    def parity_fits(self, leaves: list[Array]) -> bool:
        """Whether f of that parity block, evaluated here, is what the results of all data tell."""
        received = self._word
        first = received.results[min(received.results)]
        if kind_of(leaves) != kind_of(first.leaves):
            self.residual = np.inf
            return False
        k, code, (index, _) = len(self._coded.code.systematic), self._coded.code, self.most_mixed
        places = np.arange(code.n)
        recovery = code.recovery((places < k) | (places == index), received.decoder.exact)
        flat = [np.ascontiguousarray(one).reshape(-1) for one in leaves]
        self._measure(recovery, [received.rows(leaf) | {index: one} for leaf, one in enumerate(flat)])
        return not self.broken

    def note_passed(self) -> None:
        """Remember f for later maps of such data in this process, unless equal results are all it gave."""
        if self._word.trust.known is None and self._differ():
            self._word.trust.note()

    def _differ(self) -> bool:
        """Whether results differ by more than rounding: f of equal blocks satisfies any equation."""
        for leaf, dtype in enumerate(self._word.dtypes()):
            first, *others = self._word.rows(leaf).values()
            apart = 0.0 if is_exact(dtype) else equations.tolerance(self._word.precision(dtype))
            with np.errstate(invalid="ignore", over="ignore"):
                if any((np.abs(one - first) > apart * np.abs(first).max(initial=0)).any() for one in others):
                    return True
        return False

    @property
    def _recovery(self) -> Recovery:
        return self._word.decoder.recovery

    def _most_telling(self) -> int:
        """The block to decode that shows most results unchecked so far, whatever they deviate by."""
        recovery, columns = self._recovery, self._unseen()
        told = sum(recovery.composition(dtype).shown[:, columns].sum(axis=1) for dtype in self._word.dtypes())
        told = told + self._mixed / 2 + self._coded.n * self._are_in(self._word.odd)
        told[self._are_evaluated] = -1.0
        return int(recovery.missing[np.argmax(told)])

    def are_broken(self) -> bool:
        """Whether a left-over equation is, of the results that arrived."""
        recovery = self._recovery
        if self._measured is not recovery:
            leaves = range(len(self._word.dtypes()))
            self._measure(recovery, [self._word.rows(leaf) for leaf in leaves])
        return self.broken

    def _measure(self, recovery: Recovery, leaves: list[dict[int, Array]]) -> None:
        """Evaluate the left-over equations of a recovery on the flat results, by leaf, that satisfy them."""
        broken = False
        suspects: set[int] | None = None
        self._residuals = []
        for leaf, (arrived, dtype, error) in enumerate(zip(leaves, self._word.dtypes(), self._errors())):
            if error == np.inf:
                self._residuals.append(None)
                continue
            rows = recovery.checkable(arrived)
            precision = self._word.precision(dtype)
            measure = partial(equations.residual, recovery, rows, dtype, self._word.options.rtol, precision)
            found = measure(error)
            if len(found.broken) and not is_exact(dtype):
                self._terms = self._terms or self._terms_here()
                found = measure(error, self._terms[leaf]) if self._terms else found
            if not found.finite:
                raise NotFiniteError
            self._residuals.append(found.relative)
            if len(found.broken):
                broken = True
                if recovery.surplus > 1:
                    named = set(equations.culprits(recovery, rows, found.broken, dtype, precision))
                    suspects = named if suspects is None else suspects & named
        measured = [one for one in self._residuals if one is not None]
        self.residual, self.broken = max(measured, default=0.0), broken
        self._measured, self.suspects = recovery, suspects

    def convict(self, index: int) -> None:
        """One result contradicts the others: garbage, unless f gives it here too."""
        run = self._word.run_here(partial(block_here, self._coded, index), index)
        own = run.leaves_within(self._word.time_here)
        if own is not None and self._agrees(own, self._word.results[index].leaves):
            self.blame_f(f"f of block {index} does not fit the parity equations")
        message = f"the result of task {index} contradicts the parity equations"
        self.residual, self.broken = None, False
        self._word.drop(index, Failure("garbage", "GarbageResult", message))

    def _agrees(self, own: list[Array], other: list[Array], decoded: bool = False) -> bool:
        """Whether f as evaluated here equals a result up to rounding (integers: exactly)."""
        if len(own) != len(other):
            return False
        for leaf, (one, two, error) in enumerate(zip(own, other, self._errors())):
            noise = (self._word.decoder.amplification, self._largest(leaf)) if decoded else (0.0, 0.0)
            precision = self._word.precision(two.dtype)
            if not leaf_agrees(
                one, two, precision, self._word.options.rtol, *noise, error * max(1.0, noise[0])
            ):
                return False
        return True

    def _errors(self) -> list[float]:
        """What entries of each leaf may be off by anyway."""
        received = [one.leaves for one in self._word.results.values()]
        errors_of = self._word.options.known.errors
        return [0.0] * len(received[0]) if errors_of is None else errors_of(received)

    def blame_f(self, what: str) -> NoReturn:
        """Give up: nothing can be decoded."""
        assumption = self._coded.code.assumption
        kind = "linear" if assumption == LINEAR else "one"
        raise NotLinearError(f"{what}: {NOT_LINEAR.format(assumption=assumption, kind=kind)}")


def leaf_agrees(
    one: Array,
    other: Array,
    precision: DType,
    rtol: float | None,
    amplification: float,
    largest: float,
    error: float,
) -> bool:
    """Whether f as evaluated here equals a result that decoding multiplied the errors of.

    `largest`: number of the leaf that rounding is a share of.
    """
    if kind_of([one]) != kind_of([other]):
        return False
    if is_exact(other.dtype):
        return bool((one.astype(other.dtype) == other).all())
    limit = max(equations.tolerance(precision), rtol or 0.0)
    allowed = max(rtol or default_rtol(precision), amplification * epsilon(precision))
    decoding = min(DECODING_NOISE * amplification * epsilon(precision), allowed)
    scale = np.maximum(np.abs(one), np.abs(other))
    with np.errstate(invalid="ignore"):
        floor = max(equations.noise(precision), decoding) * max(largest, float(scale.max(initial=0)))
        close = np.abs(one - other) <= limit * scale + max(floor, error)
    same = (one == other) | (np.isnan(one) & np.isnan(other))  # infinities differ by NaN
    return bool((close | same).all())
