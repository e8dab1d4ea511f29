"""Before all is there: results of all data blocks, those that are not determined as estimates."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf, isinf
from typing import Any, NamedTuple

import numpy as np

from polarmap.codes import modular_decoders
from polarmap.codes.block_prediction import BlockPredictor, make_block_predictor
from polarmap.codes.error_detection import rounding_level
from polarmap.codes.polar import PolarCode
from polarmap.dtypes import Array, DType, is_integer_dtype, machine_epsilon
from polarmap.errors import CodedTimeoutError, CodeError, NotDecodableError, warn
from polarmap.executors.interface import read_only_view
from polarmap.report import Report
from polarmap.run.codeword import Codeword
from polarmap.run.loop import Need
from polarmap.run.padding import PaddingEffect
from polarmap.run.received import Received, kinds_of
from polarmap.run.reports import LazyReport
from polarmap.run.results import CodedResult
from polarmap.run.shortfall import not_finite
from polarmap.run.wrapping import unwrapped


class Estimate(NamedTuple):
    """Flat results of the k data tasks, and the relative error to expect of each.

    errors : 0.0 for exact ones, and inf where nothing tells how large it may be.
    error_p90 : what that of all results together stays below in nine of ten orders of arrival.
    """

    results: list[list[Array]]
    errors: tuple[float, ...]
    error_p90: float


def estimate(arrived: Received) -> Estimate:
    """Estimates from what arrived, which must be finite and not nothing.

    Errors are root mean squares over the entries of a block, in relation to that of the results that
    arrived; the largest of its leaves. What the equations determine is decoded: integers exactly.
    """
    code = arrived.coded.code
    assert isinstance(code, PolarCode)  # checked before the map began, or by the future that asks
    mask = np.isin(np.arange(code.n), list(arrived.results))
    dtypes, kinds = arrived.dtypes(), kinds_of(arrived.structure)
    precision = max(
        machine_epsilon(np.dtype(float) if is_integer_dtype(one) else arrived.precision(one))
        for one in dtypes
    )
    how = make_block_predictor(code, mask, precision)
    if len(how.missing_indices) and arrived.why_not_protected:
        raise CodeError(f"a result is missing and cannot be estimated: {arrived.why_not_protected}")
    errors, p90 = np.zeros(code.k), 0.0
    estimated: list[list[Array]] = []
    for leaf, (dtype, kind) in enumerate(zip(dtypes, kinds)):
        rows = arrived.rows(leaf)
        received = np.stack([rows[int(index)] for index in how.arrived_indices])
        values = how.weights @ received.astype(np.complex128 if dtype.kind == "c" else np.float64)
        expected = _expected(arrived, how, received, dtype)
        blocks = list(_whole(values, dtype) if is_integer_dtype(dtype) else values.astype(dtype))
        if is_integer_dtype(dtype) and code.supports_integers:
            known = _exact(code, how, rows, dtype)
            expected = [0.0 if row in known else error or np.inf for row, error in enumerate(expected)]
            for row, block in known.items():
                if kind == "python":
                    weights = how.weights[row : row + 1]
                    [block] = unwrapped(arrived.coded, rows, how.arrived_indices, weights, block[None])
                blocks[row] = block
        estimated.append(blocks)
        errors[how.missing_indices] = np.maximum(errors[how.missing_indices], expected)
        p90 = max(p90, _error_p90(how, received, expected, code.k))
    return Estimate(arrived.completed(how.missing_indices, estimated), tuple(errors.tolist()), p90)


def _error_p90(how: BlockPredictor, received: Array, expected: list[float], k: int) -> float:
    """The relative error of all k blocks together that nine in ten orders stay below."""
    together = float(np.linalg.norm(expected)) / float(np.sqrt(k))
    return together and together * how.compute_error_ratio_p90(_real(received))


def _expected(arrived: Received, how: BlockPredictor, received: Array, dtype: DType) -> list[float]:
    """The relative error to expect of each missing block; 0.0 for what is determined within rtol."""
    rounding = np.linalg.norm(how.weights, axis=1)
    if is_integer_dtype(dtype):  # made of floats: rounded to one
        rounding /= float(np.abs(received).max(initial=0)) or 1.0
    else:
        rounding *= machine_epsilon(arrived.precision(dtype))
        rounding[rounding <= arrived.rtol(dtype)] = 0.0
    share = _relative_scatter(how, received)
    if share <= rounding_level(arrived.precision(dtype)):
        share = np.inf  # rounding is not scatter: nothing tells
    expected: list[float] = np.multiply(
        how.error_stds, share, out=rounding, where=how.error_stds > 0
    ).tolist()
    return expected


def _relative_scatter(how: BlockPredictor, received: Array) -> float:
    """The scatter of blocks around their mean, as a share of their root mean square."""
    real = _real(received)
    size = float(np.sqrt(np.mean(real**2))) if real.size else 0.0
    return how.compute_block_std(real) / size if size > 0 else 0.0


def _real(received: Array) -> Array:
    """Blocks of numbers as blocks of real ones of at most 1, whose squares neither overflow nor vanish."""
    real = np.concatenate([received.real, received.imag], axis=1).astype(np.float64)
    return np.asarray(real / (np.abs(real).max(initial=0.0) or 1.0))


def _whole(values: Array, dtype: DType) -> Array:
    """Integers next to `values`, as far as `dtype` holds them."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    inside = np.clip(np.rint(values), np.nextafter(float(low), 0.0), np.nextafter(float(high), 0.0))
    found = inside.astype(dtype)
    found[values >= float(high)], found[values <= float(low)] = high, low
    return found


def _exact(code: PolarCode, how: BlockPredictor, rows: dict[int, Array], dtype: DType) -> dict[int, Array]:
    """The missing blocks, by their place among them, that are determined modulo 2^64."""
    parity = how.arrived_indices[how.arrived_indices >= code.k] - code.k
    known = how.arrived_indices[how.arrived_indices < code.k]
    system = code.encoding_matrix[np.ix_(parity, how.missing_indices)]
    if not system.size:
        return {}
    used, places, solver = modular_decoders.find_determined_unknowns(system)
    if not places:
        return {}
    parity = parity[used]
    words = np.stack([rows[int(index) + code.k].astype(np.int64) for index in parity]).view(np.uint64)
    if len(known):
        data = np.stack([rows[int(index)].astype(np.int64) for index in known])
        words = words - modular_decoders.matmul_mod64(code.encoding_matrix[np.ix_(parity, known)], data)
    return dict(zip(places, modular_decoders.matmul_mod64(solver, words).astype(dtype)))


# --- of a map that goes on, or is over ---------------------------------------------------------


class UntilDeadline(Codeword):
    """A codeword that is over at its deadline, too: what is not determined then is estimated."""

    _found: Estimate | None = None

    def step(self) -> bool:
        """Whether the map is over, after another look at the results."""
        if super().step():
            return True
        if self.watch.remaining > 0:
            return False
        self._settle()
        self.warn_if_inaccurate()
        return True

    def _settle(self) -> None:
        """Accept what there is: results that are exact or estimates."""
        if not self.results:
            limit = f"the timeout of {self.watch.limit:g} s"
            self.give_up(CodedTimeoutError(f"no result arrived within {limit}: nothing to estimate from"))
        if not self.is_finite:
            self.give_up(NotDecodableError(not_finite(self.tasks, self.threshold, self.data_count)))
        if self.verification is not None:  # but for the block that rows of zeros fill up
            found = Estimate(self.decoded, (0.0,) * self._code.n_targets, 0.0)
        else:
            found = estimate(self)
        if self.padding is not None and self.unpadded is None:
            self.padding.wait(self.time_here)
        found = _of_short_block(self, found)
        if self.padding is not None and isinf(found.errors[self.padding.task]):
            warn(
                f"{self.padding.described}; its task has not returned in time, and rows of zeros change the "
                f"result of f, so its estimate may be far off. {self.padding.advice}"
            )
        if self.refusal is not None or self.checks.contradicts():
            missing = set(self.decoder.missing_indices.tolist())
            errors = tuple(inf if index in missing else error for index, error in enumerate(found.errors))
            found = found._replace(errors=errors, error_p90=max(errors))
            broken = self.refusal or (
                f"the parity equations are off by {self.checks.residual:.2g} (relative): f is not linear, "
                "or a worker returned garbage"
            )
            warn(f"{broken}; what is decoded or estimated may be far off")
        self.decoded, self._found = found.results, found
        self.verification = self.verification or "no"
        self.needed = self.needed or len(self.tasks.arrived)

    def accuracy(self) -> dict[str, Any]:
        """Fields of the report: which results were decoded, and what error to expect of the others."""
        found = self._found
        if found is None:
            return super().accuracy()
        recovered = [index for index in self.recovered if found.errors[index] == 0]
        errors = found.errors if any(found.errors) else ()
        return {"recovered": tuple(recovered), "errors": errors, "error_p90": found.error_p90}

    def settle_for_less(self) -> None:
        """Take what arrived at any accuracy, or wait for the deadline where something may be estimated."""
        if not (self.takes_less() or self.results):
            super().settle_for_less()

    def time_is_over(self, n_receiving: int = 0) -> None:
        """The next look makes estimates."""


def estimate_so_far(word: Need, report: Report) -> CodedResult[Any] | None:
    """What a deadline would give now, while the map goes on, with the report so far; None if nothing.

    Nothing, too, when the results are determined: they come when they have been checked.
    """
    if not isinstance(word, Codeword) or not word.results or word.decoder.is_ready:
        return None
    if not word.is_finite or word.why_not_protected:
        return None
    padding = word.padding
    if padding is not None and word.unpadded is None and not padding.is_known:
        return None
    found = _of_short_block(word, estimate(word))
    errors = found.errors if any(found.errors) else ()
    with_errors = partial(replace, report, errors=errors, error_p90=found.error_p90)
    # What has arrived may be decoded from still: nobody is to write to it.
    return word.result_of(found.results, LazyReport(with_errors), read_only_view)


def _of_short_block(word: Codeword, found: Estimate) -> Estimate:
    """Return estimates with the error of the block that rows of zeros fill up.

    There is none once its task has returned. It is unknown if rows of zeros change the result of f.
    """
    if word.padding is None:
        return found
    errors, task = list(found.errors), word.padding.task
    if word.unpadded is not None:
        errors[task] = 0.0
    elif PaddingEffect.CHANGES in word.padding_effects:
        errors[task] = inf
        found = found._replace(error_p90=inf)
    return found._replace(errors=tuple(errors))


# --- for whoever waits for one -----------------------------------------------------------------


class NumberedEstimate(NamedTuple):
    """An estimate, and from how many results it was made."""

    arrived: int
    value: Any


class EstimateStream:
    """Hands estimates from the thread of a map to others, each of which gets the latest."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting = 0
        self._latest: NumberedEstimate | None = None
        self._is_over = False

    def offer(self, arrived: int, make: Callable[[], Any]) -> None:
        """Make an estimate from so many results if somebody waits for it."""
        with self._changed:
            is_new = self._latest is None or self._latest.arrived != arrived
            is_wanted = self._waiting > 0 and is_new
        if is_wanted and (value := make()) is not None:
            with self._changed:
                self._latest = NumberedEstimate(arrived, value)
                self._changed.notify_all()

    def end(self) -> None:
        """Tell those who wait that no more estimates will come."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def after(self, seen: int, ask: Callable[[], None]) -> NumberedEstimate | None:
        """Wait for an estimate from other than `seen` results; None when the map is over.

        ask : lets the map look up.
        """

        def is_there() -> bool:
            return self._is_over or (self._latest is not None and self._latest.arrived != seen)

        with self._changed:
            self._waiting += 1
        ask()
        with self._changed:
            try:
                self._changed.wait_for(is_there)
            finally:
                self._waiting -= 1
            return None if self._is_over else self._latest
