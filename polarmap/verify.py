"""Is f linear, and did every worker tell the truth? The left-over equations, or f on the driver."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from polarmap import verified
from polarmap.arrivals import Arrivals, kind_of, leaves_of
from polarmap.code import checks
from polarmap.code.dtypes import DType, default_rtol, epsilon, is_exact
from polarmap.encoded import Encoded
from polarmap.errors import NotLinearError
from polarmap.executors.base import Failure
from polarmap.tree import flatten, unflatten

Array = npt.NDArray[Any]

DECODING_NOISE = 16  # roundings of the largest number of a leaf, times the amplification of decoding
LOCAL_SECONDS = 60.0  # for f on one block, where the driver has to wait for it
NOT_LINEAR = (
    "f is not {assumption} (or not deterministic), so lost results cannot be decoded. For a polynomial "
    "say degree=; for any f at all use coded_sum if a sum of its results is wanted, hedged_map if each is; "
    "if it is {kind} but badly conditioned, raise rtol; verify=False trusts you and skips the check"
)


class NotFiniteError(Exception):
    """NaN or inf among the results: parity carries it into every block that is decoded."""


class Verifier:
    """Checks the results of one map.

    `residual` is the largest relative misfit of a left-over equation so far, None if none was
    evaluated.
    """

    def __init__(
        self, f: Callable[[Any], Any], coded: Encoded, arrivals: Arrivals, rtol: float | None
    ) -> None:
        self._f, self._coded, self._arrivals, self._rtol = f, coded, arrivals, rtol
        self._local: LocalRun | None = None
        self._undecided = 0  # results among which there is garbage, or f is not linear: more may tell
        self.residual: float | None = None

    @cached_property
    def has_passed_before(self) -> bool:
        """Whether f was found linear by an earlier map."""
        return verified.has_passed(self._f, self._coded.code.assumption)

    def evaluate(self, index: int, seconds: float) -> list[Array] | None:
        """f of coded block `index` on the driver; None if it raises or takes too long."""
        run = LocalRun(self._f, partial(self._block, index), index)
        run.join(min(seconds, LOCAL_SECONDS))
        return run.leaves

    def surplus_holds(self, more: bool, seconds: float) -> tuple[bool, Failure | None, int]:
        """Whether the left-over equations hold; if not, a culprit and its failure if one is found.

        `more`: whether to wait for another result where these do not tell garbage from a
        non-linear f. Raises NotLinearError when f is to blame, NotFiniteError for NaN and inf.
        """
        decoder = self._arrivals.decoder
        assert decoder is not None
        if more and self._undecided == decoder.count:
            return False, None, -1
        broken, suspects = self._misfits()
        if not broken:
            return True, None, -1
        if suspects is not None and len(suspects) == 1:
            return False, *self._convict(suspects.pop(), seconds)
        if more and (suspects is None or len(suspects) > 1):
            self._undecided = decoder.count
            return False, None, -1
        self._blame_f(f"the parity equations are off by {self.residual:.2g} (relative)")

    def local_run_agrees(self, results: list[list[Array]]) -> bool:
        """Whether f of a decoded block on the driver, once it has ended, is what was decoded.

        False if f could not be evaluated here; then a warning says so.
        """
        assert self._local is not None
        if self._local.error is not None:
            warnings.warn(
                f"f could not be verified: no result beyond the {self._coded.code.needed} needed arrived, "
                f"and on the driver it raised {type(self._local.error).__name__}: {self._local.error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        assert self._local.leaves is not None
        index = self._local.index
        if not self._agrees(self._local.leaves, results[index], decoded=True):
            self._blame_f(f"f of block {index} differs from its decoded result")
        return True

    def local_run_is_over(self, index: int, missing: list[int], more: bool) -> bool:
        """Start f of block `index` on a thread, unless one of the `missing` is under way; look at it.

        One that raised is no help while `more` results may come.
        """
        if self._local is None or self._local.index not in missing:
            self._local = LocalRun(self._f, partial(self._block, index), index)
        return not self._local.is_running and not (more and self._local.error is not None)

    def note_passed(self) -> None:
        """Remember f for later maps of this process."""
        verified.note_passed(self._f, self._coded.code.assumption)

    def _misfits(self) -> tuple[bool, set[int] | None]:
        """Whether an equation is broken, and the tasks any one of which would explain it."""
        decoder = self._arrivals.decoder
        assert decoder is not None
        worst, broken = 0.0, False
        suspects: set[int] | None = None
        for leaf, dtype in enumerate(self._arrivals.dtypes()):
            rows, precision = self._arrivals.rows(leaf), self._arrivals.precision(dtype)
            found = checks.residual(decoder.plan, rows, dtype, self._rtol, precision)
            if not found.finite:
                raise NotFiniteError
            worst = max(worst, found.relative)
            if len(found.broken):
                broken = True
                if decoder.surplus > 1:
                    named = set(checks.culprits(decoder.plan, rows, found.broken, dtype, precision))
                    suspects = named if suspects is None else suspects & named
        self.residual = worst
        return broken, suspects

    def _convict(self, index: int, seconds: float) -> tuple[Failure, int]:
        """One result contradicts the others: garbage, unless f gives it here too."""
        own = self.evaluate(index, seconds)
        if own is not None and self._agrees(own, leaves_of(self._arrivals.received[index])):
            self._blame_f(f"f of block {index} does not fit the parity equations")
        message = f"the result of task {index} contradicts the parity equations"
        return Failure("garbage", "GarbageResult", message), index

    def _agrees(self, own: list[Array], other: list[Array], decoded: bool = False) -> bool:
        """Whether f as evaluated here equals a result up to rounding (integers: exactly)."""
        if len(own) != len(other):
            return False
        for leaf, (one, two) in enumerate(zip(own, other)):
            noise = self._decoding_noise(leaf) if decoded else (0.0, 0.0)
            if not _leaf_agrees(one, two, self._arrivals.precision(two.dtype), self._rtol, *noise):
                return False
        return True

    def _decoding_noise(self, leaf: int) -> tuple[float, float]:
        """What decoding amplifies, and the largest number it adds up."""
        assert self._arrivals.decoder is not None
        rows = self._arrivals.rows(leaf).values()
        largest = max(float(np.abs(row).max(initial=0)) for row in rows)
        return self._arrivals.decoder.amplification, largest

    def _block(self, index: int) -> Any:
        leaves = [leaf.copy() for leaf in self._coded.leaves(index)]
        return unflatten(self._coded.structure, leaves)

    def _blame_f(self, what: str) -> NoReturn:
        assumption = self._coded.code.assumption
        kind = "linear" if assumption == verified.LINEAR else "one"
        raise NotLinearError(f"{what}: {NOT_LINEAR.format(assumption=assumption, kind=kind)}")


class LocalRun:
    """f on one block, on a daemon thread of the driver."""

    def __init__(self, f: Callable[[Any], Any], block: Callable[[], Any], index: int) -> None:
        self.index = index
        self.leaves: list[Array] | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(f, block), daemon=True)
        self._thread.start()

    def _run(self, f: Callable[[Any], Any], block: Callable[[], Any]) -> None:
        try:
            self.leaves = flatten(f(block()))[0]
        except BaseException as error:
            self.error = error

    def join(self, timeout: float | None) -> None:
        """Wait for it, at most `timeout` seconds."""
        self._thread.join(timeout)

    @property
    def is_running(self) -> bool:
        """Looks for a moment, so that a loop over it does not spin."""
        self._thread.join(0.005)
        return self._thread.is_alive()


def _leaf_agrees(
    one: Array, other: Array, precision: DType, rtol: float | None, amplification: float, largest: float
) -> bool:
    if one.shape != other.shape or kind_of(one.dtype) != kind_of(other.dtype):
        return False
    if is_exact(other.dtype):
        return bool((one.astype(other.dtype) == other).all())
    limit = max(checks.tolerance(precision), rtol or 0.0)
    decoding = min(DECODING_NOISE * amplification * epsilon(precision), rtol or default_rtol(precision))
    scale = np.maximum(np.abs(one), np.abs(other))
    with np.errstate(invalid="ignore"):
        floor = max(checks.noise(precision), decoding) * max(largest, float(scale.max(initial=0)))
        close = np.abs(one - other) <= limit * scale + floor
    return bool((close | (np.isnan(one) & np.isnan(other))).all())
