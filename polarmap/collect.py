"""Outcomes -> decoder -> results: the only loop."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap import verified
from polarmap.blocks import CodedBlocks
from polarmap.code import checks
from polarmap.code.decoder import Decoder
from polarmap.code.dtypes import DType, check_dtype, default_rtol, epsilon, is_exact
from polarmap.code.encode import ignoring_inf
from polarmap.errors import CodedTimeoutError, NotDecodableError, NotLinearError
from polarmap.executors.base import Executor, Failure, Outcome
from polarmap.tree import Structure, flatten, unflatten
from polarmap.worker import Fault

Array = npt.NDArray[Any]

TICK_SECONDS = 0.25  # the longest the loop looks away from its deadlines
SURPLUS_SECONDS = (0.2, 10.0)  # bounds of the wait for a result to check against
DECODING_NOISE = 16  # roundings of the largest number of a leaf, times the amplification of decoding
STALL_SECONDS = 1.0  # without news, before failed tasks are started again


@dataclass(frozen=True)
class Settings:
    """What the caller of coded_map chose."""

    verify: bool | str = "auto"
    rtol: float | None = None
    timeout: float | None = None
    retries: int = 1


@dataclass
class Task:
    """What is known of one task."""

    attempts: int = 1
    running: bool = True
    returned: float | None = None  # when it reported a result, in whatever shape
    arrived: float | None = None  # the same if the result is used
    seconds: float | None = None
    failures: list[Failure] = field(default_factory=list)


@dataclass
class Collected:
    """What the loop hands back: flat results of the k data tasks and how they came about."""

    results: list[list[Array]]
    structure: Structure
    tasks: list[Task]
    decoder: Decoder
    needed: int
    started: float
    decode_seconds: float
    surplus_seconds: float
    residual: float | None
    verified: str
    dtypes: list[DType]  # whose rounding limits the results


class Collector:
    """Runs f on coded blocks until the results of the data blocks are determined."""

    def __init__(
        self,
        executor: Executor,
        f: Callable[[Any], Any],
        coded: CodedBlocks,
        settings: Settings,
        show: Callable[[int, int], None],
    ) -> None:
        self._executor, self._f, self._coded, self._settings = executor, f, coded, settings
        self._show = show
        self._code = coded.code
        self._tasks = [Task() for _ in range(coded.n)]
        self._groups: dict[Any, dict[int, Outcome]] = {}
        self._received: dict[int, Outcome] = {}
        self._decoder: Decoder | None = None
        self._ready_at: float | None = None
        self._needed = 0
        self._decode_seconds = 0.0
        self._residual: float | None = None
        self._local: _LocalRun | None = None
        self._undecided = 0  # results among which there is garbage, or f is not linear: more may tell
        self._not_finite = False
        self._results: list[list[Array]] | None = None
        self._model: list[Array] | None = None  # f of a data block, evaluated here
        self._news_at = 0.0

    def run(self, faults: Mapping[int, Fault]) -> Collected:
        """Start, collect, decode, verify; always stop the executor."""
        self._began = self._news_at = self._executor.now()
        try:
            self._executor.start(self._f, self._coded, faults)
            while True:
                for outcome in self._executor.wait(self._patience()):
                    self._absorb(outcome)
                how = self._settle()
                if how is not None:
                    return self._collected(how)
                self._give_up_or_retry()
        finally:
            self._executor.stop()

    # -- arrivals ---------------------------------------------------------------------------

    def _absorb(self, outcome: Outcome) -> None:
        task = self._tasks[outcome.task]
        self._news_at = self._executor.now()
        task.running = False
        if task.arrived is not None:
            return
        if outcome.failure is not None:
            task.failures.append(outcome.failure)
            return
        task.returned, task.seconds = self._news_at - self._began, outcome.seconds
        for group in self._groups.values():  # an odd result, tried again
            group.pop(outcome.task, None)
        group = self._groups.setdefault(_signature(outcome), {})
        group[outcome.task] = outcome
        if group is self._received:
            self._accept(outcome.task)
            self._add(outcome.task)
        elif len(group) > len(self._received):
            self._follow(group)
        else:
            self._reject_odd(outcome.task, outcome)
        self._show(len(self._received), self._code.k)

    def _follow(self, group: dict[int, Outcome]) -> None:
        """More results look like these than like any others: the others are failures of their tasks."""
        odd, self._received = self._received, group
        for index in group:
            self._accept(index)
        for index, outcome in odd.items():
            self._reject_odd(index, outcome)
        self._restart_decoder()

    def _accept(self, index: int) -> None:
        task = self._tasks[index]
        task.arrived, task.running = task.returned, False
        task.failures = [failure for failure in task.failures if failure.kind != "shape"]

    def _reject_odd(self, index: int, outcome: Outcome) -> None:
        usual = _describe(next(iter(self._received.values())))
        message = f"returned {_describe(outcome)}, others {usual}"
        self._reject(index, Failure("shape", "WrongShape", message))

    def _restart_decoder(self) -> None:
        dtypes = [leaf.dtype for leaf in _leaves(next(iter(self._received.values())))]
        for dtype in dtypes:
            check_dtype(dtype, "the result of f")
        exact = self._code.kernel == "arikan" and any(is_exact(dtype) for dtype in dtypes)
        inexact = [self._precision(dtype) for dtype in dtypes if not (exact and is_exact(dtype))]
        limits = [self._rtol(dtype) / epsilon(dtype) for dtype in inexact]
        self._decoder = Decoder(self._code, exact=exact, max_amplification=min(limits, default=np.inf))
        self._ready_at = None
        for index in self._received:
            self._add(index)

    def _add(self, index: int) -> None:
        assert self._decoder is not None
        if self._decoder.add(index) and self._ready_at is None:
            self._ready_at = self._executor.now()
            self._needed = self._decoder.count

    def _reject(self, index: int, failure: Failure) -> None:
        task = self._tasks[index]
        task.arrived = None
        task.failures.append(failure)

    # -- the end ----------------------------------------------------------------------------

    def _settle(self) -> str | None:
        """How the results are verified, once they are determined and that is settled."""
        decoder = self._decoder
        if decoder is None or not decoder.ready:
            return None
        if not len(decoder.missing):
            if self._not_finite:
                self._needed = decoder.count
            self._decode()
            return "not needed"
        if self._not_finite:
            return None
        if self._settings.verify is False:
            return "no" if self._decode() else None
        if decoder.surplus:
            return self._check_surplus(decoder)
        if self._settings.verify == "auto" and self._has_passed:
            return "earlier" if self._decode() else None
        return self._check_locally() if self._surplus_wait_is_over() else None

    def _check_surplus(self, decoder: Decoder) -> str | None:
        """The left-over parity equations: hold, name a culprit, or convict f."""
        more = self._more_may_come() and not self._surplus_wait_is_over()
        if more and self._undecided == decoder.count:
            return None
        worst, broken, finite = 0.0, False, True
        suspects: set[int] | None = None
        for leaf, dtype in enumerate(self._dtypes()):
            rows = self._rows(leaf)
            found = checks.residual(decoder.plan, rows, dtype, self._settings.rtol, self._precision(dtype))
            worst, finite = max(worst, found.relative), finite and found.finite
            if len(found.broken):
                broken = True
                if decoder.surplus > 1:
                    named = set(
                        checks.culprits(decoder.plan, rows, found.broken, dtype, self._precision(dtype))
                    )
                    suspects = named if suspects is None else suspects & named
        self._residual = worst
        if not finite:
            self._not_finite = True
            return None
        if not broken:
            if not self._decode():
                return None
            verified.note_passed(self._f)
            return "parity"
        if suspects is not None and len(suspects) == 1:
            self._convict(suspects.pop())
            return None
        if more and (suspects is None or len(suspects) > 1):
            self._undecided = decoder.count
            return None
        raise NotLinearError(self._not_linear(f"the parity equations are off by {worst:.2g} (relative)"))

    def _convict(self, index: int) -> None:
        """One result contradicts the others: garbage, unless f gives it here too."""
        own = _run_here(self._f, self._block(index), self._remaining())
        if own is not None and self._agrees(own, _leaves(self._received[index])):
            raise NotLinearError(self._not_linear(f"f of block {index} does not fit the parity equations"))
        del self._received[index]
        message = f"the result of task {index} contradicts the parity equations"
        self._reject(index, Failure("garbage", "GarbageResult", message))
        self._restart_decoder()

    def _check_locally(self) -> str | None:
        """Evaluate f on a block that has to be decoded, in a thread, while results may still come."""
        assert self._decoder is not None
        if self._local is None or self._local.index not in self._decoder.missing:
            index = int(self._decoder.missing[0])
            self._local = _LocalRun(self._f, self._block(index), index)
        if self._local.is_running:
            return None
        if self._local.error is not None and self._more_may_come():
            return None
        if not self._decode():
            return None
        if self._local.error is not None:
            warnings.warn(
                f"f could not be verified: no result beyond the {self._code.k} needed arrived, and on "
                f"the driver it raised {type(self._local.error).__name__}: {self._local.error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return "no"
        assert self._results is not None and self._local.leaves is not None
        index = self._local.index
        if not self._agrees(self._local.leaves, self._results[index], decoded=True):
            raise NotLinearError(self._not_linear(f"f of block {index} differs from its decoded result"))
        verified.note_passed(self._f)
        return "local"

    def _decode(self) -> bool:
        """Fill in the results of all data tasks; False if NaN or inf got in the way."""
        assert self._decoder is not None
        began = self._executor.now()
        plan = self._decoder.plan
        recovered = []
        for leaf, dtype in enumerate(self._dtypes()):
            with ignoring_inf():
                blocks = plan.recover(self._rows(leaf), dtype)
            if dtype.kind in "fc" and not np.isfinite(blocks).all():
                self._not_finite = True
                return False
            recovered.append(blocks)
        shapes = [leaf.shape for leaf in _leaves(next(iter(self._received.values())))]
        missing = {int(index): row for row, index in enumerate(plan.missing)}
        self._results = [
            [
                recovered[leaf][missing[index]].reshape(shape)
                if index in missing
                else _leaves(self._received[index])[leaf]
                for leaf, shape in enumerate(shapes)
            ]
            for index in range(self._code.k)
        ]
        self._decode_seconds = self._executor.now() - began
        return True

    def _collected(self, how: str) -> Collected:
        assert self._decoder is not None and self._results is not None
        first = self._received[min(self._received)]
        ready = self._began if self._ready_at is None else self._ready_at
        surplus = 0.0 if how in ("not needed", "no") else self._executor.now() - ready - self._decode_seconds
        return Collected(
            results=self._results,
            structure=first.structure or ("array",),
            tasks=self._tasks,
            decoder=self._decoder,
            needed=self._needed,
            started=self._began,
            decode_seconds=self._decode_seconds,
            surplus_seconds=max(0.0, surplus),
            residual=self._residual,
            verified=how,
            dtypes=[dtype if is_exact(dtype) else self._precision(dtype) for dtype in self._dtypes()],
        )

    @cached_property
    def _has_passed(self) -> bool:
        """Whether f was found linear by an earlier map."""
        return verified.has_passed(self._f)

    # -- deadlines, failures ----------------------------------------------------------------

    def _patience(self) -> float:
        """How long to look away."""
        seconds = min(TICK_SECONDS, max(0.0, self._remaining()))
        if self._ready_at is not None:
            seconds = min(seconds, 0.02)
        return seconds

    def _remaining(self) -> float:
        if self._settings.timeout is None:
            return np.inf
        return self._began + self._settings.timeout - self._executor.now()

    def _surplus_wait_is_over(self) -> bool:
        """At most one median task time, and always within SURPLUS_SECONDS."""
        assert self._ready_at is not None
        low, high = SURPLUS_SECONDS
        usual = median(task.seconds for task in self._tasks if task.seconds is not None)
        over = self._executor.now() - self._ready_at >= min(max(low, usual), high)
        return over or not self._more_may_come()

    def _more_may_come(self) -> bool:
        return any(task.running for task in self._tasks)

    def _give_up_or_retry(self) -> None:
        if self._remaining() <= 0:
            raise CodedTimeoutError(self._late())
        failed = [i for i, task in enumerate(self._tasks) if task.arrived is None and not task.running]
        if not failed:
            return
        self._fail_if_hopeless(failed)
        if self._decoder is not None and self._decoder.ready and not self._not_finite:
            return
        idle = self._executor.now() - self._news_at > STALL_SECONDS
        stuck = not self._could_finish()
        again = [i for i in failed if self._tasks[i].attempts <= self._settings.retries]
        if again and (idle or stuck):
            for index in again:
                self._tasks[index].attempts += 1
                self._tasks[index].running = True
            self._news_at = self._executor.now()
            self._executor.retry(again)
        elif stuck:
            raise NotDecodableError(self._too_few()) from self._first_cause()

    def _could_finish(self) -> bool:
        """Whether what arrived and what still runs can determine the results.

        Results that look odd now may turn out to be the usual ones.
        """
        running = {index for index, task in enumerate(self._tasks) if task.running}
        return any(self._would_determine(running | group.keys()) for group in self._groups.values() or [{}])

    def _would_determine(self, indices: set[int]) -> bool:
        if self._not_finite:
            return indices.issuperset(range(self._code.k))
        if self._decoder is None or len(indices) < self._code.k:
            return len(indices) >= self._code.k
        trial = Decoder(
            self._code, exact=self._decoder.exact, max_amplification=self._decoder.max_amplification
        )
        for index in indices:
            trial.add(index)
        return trial.ready

    def _fail_if_hopeless(self, failed: list[int]) -> None:
        """More tasks than the code can lose failed in the same way and none succeeded."""
        if self._received or len(failed) <= self._code.n - self._code.k:
            return
        (kind, text), count = Counter(
            (self._tasks[i].failures[0].kind, str(self._tasks[i].failures[0])) for i in failed
        ).most_common(1)[0]
        if kind == "raised" and count == len(failed):
            raise NotDecodableError(
                f"f fails everywhere: the first {count} tasks to end all raised {text}"
            ) from self._first_cause()

    # -- words ------------------------------------------------------------------------------

    def _first_cause(self) -> BaseException | None:
        causes = (failure.cause for task in self._tasks for failure in task.failures)
        return next((cause for cause in causes if cause is not None), None)

    def _counted(self) -> str:
        have = sum(task.arrived is not None for task in self._tasks)
        return f"{have} of {self._code.k} needed results"

    def _failures(self) -> str:
        last = [str(task.failures[-1]) for task in self._tasks if task.arrived is None and task.failures]
        if not last:
            return ""
        parts = [f"{count} task{'s'[: count > 1]}: {text}" for text, count in Counter(last).most_common(3)]
        return "; failed " + "; ".join(parts)

    def _late(self) -> str:
        running = sum(task.running for task in self._tasks)
        head = f"{self._counted()} arrived within {self._settings.timeout:g} s, {running} tasks still run"
        if self._decoder is not None and self._decoder.ready:
            head += "; they determine the rest, but f could not be verified in time (verify=False skips that)"
        return head + self._failures()

    def _too_few(self) -> str:
        if self._not_finite:
            return (
                "results contain NaN or inf, which parity carries into every block that is decoded, and "
                f"not all data tasks reported: {self._counted()}{self._failures()}"
            )
        have = sum(task.arrived is not None for task in self._tasks)
        running = sum(task.running for task in self._tasks)
        still = f", {running} task{'s'[: running > 1]} still run{'s'[: running == 1]}" if running else ""
        if have + running >= self._code.k:
            return (
                f"{have} results arrived{still}, but decoding them would be too inaccurate for rtol or not "
                f"possible with this code, and no more can come{self._failures()}"
            )
        if running:
            return (
                f"only {have + running} of {self._code.k} needed results can arrive: {have} did{still}"
                f"{self._failures()}"
            )
        return f"{self._counted()} arrived and no more can{self._failures()}"

    def _not_linear(self, what: str) -> str:
        return (
            f"{what}: f is not linear or affine in its block (or not deterministic), so lost results cannot "
            "be decoded. Use a plain map for such an f; if it is linear but badly conditioned, raise "
            "rtol; verify=False trusts you and skips the check"
        )

    # -- arrays -----------------------------------------------------------------------------

    def _block(self, index: int) -> Any:
        return unflatten(self._coded.structure, [leaf.copy() for leaf in self._coded.leaves(index)])

    def _rows(self, leaf: int) -> dict[int, Array]:
        """Leaf number `leaf` of every received result, flat."""
        return {index: _leaves(one)[leaf].reshape(-1) for index, one in self._received.items()}

    def _dtypes(self) -> list[DType]:
        """Of the leaves of the results, as data tasks return them.

        Parity blocks of integers are wider, and so may be f of them: when nothing else arrived, f
        of a data block tells.
        """
        first = min(self._received)
        found = [leaf.dtype for leaf in _leaves(self._received[first])]
        if first < self._code.k or not any(map(is_exact, self._coded.blocks.dtypes)):
            return found
        if self._model is None:
            self._model = _run_here(self._f, self._block(0), self._remaining()) or []
        if [leaf.shape for leaf in self._model] != [leaf.shape for leaf in _leaves(self._received[first])]:
            return found
        return [leaf.dtype for leaf in self._model]

    def _precision(self, dtype: DType) -> DType:
        """The dtype whose rounding limits results of `dtype`: parity blocks are rounded to the data's."""
        if is_exact(dtype):
            return np.dtype(np.float64)
        coarse = [one for one in self._coded.blocks.dtypes if not is_exact(one)]
        return max([dtype, *coarse], key=epsilon)

    def _agrees(self, own: list[Array], other: list[Array], decoded: bool = False) -> bool:
        """Whether f as evaluated here equals a result up to rounding (integers: exactly)."""
        if len(own) != len(other):
            return False
        for leaf, (one, two) in enumerate(zip(own, other)):
            noise = self._decoding_noise(leaf) if decoded else (0.0, 0.0)
            if not _leaf_agrees(one, two, self._precision(two.dtype), self._settings.rtol, *noise):
                return False
        return True

    def _decoding_noise(self, leaf: int) -> tuple[float, float]:
        """What decoding amplifies, and the largest number it adds up."""
        assert self._decoder is not None
        largest = max(float(np.abs(row).max(initial=0)) for row in self._rows(leaf).values())
        return self._decoder.amplification, largest

    def _rtol(self, dtype: DType) -> float:
        return default_rtol(dtype) if self._settings.rtol is None else self._settings.rtol


class _LocalRun:
    """f on one block, on a daemon thread of the driver."""

    def __init__(self, f: Callable[[Any], Any], block: Any, index: int) -> None:
        self.index = index
        self.leaves: list[Array] | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(f, block), daemon=True)
        self._thread.start()

    def _run(self, f: Callable[[Any], Any], block: Any) -> None:
        try:
            self.leaves = flatten(f(block))[0]
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


def _run_here(f: Callable[[Any], Any], block: Any, seconds: float) -> list[Array] | None:
    run = _LocalRun(f, block, -1)
    run.join(min(seconds, 60.0))
    return run.leaves


def _leaves(outcome: Outcome) -> list[Array]:
    assert outcome.leaves is not None
    return outcome.leaves


def _signature(outcome: Outcome) -> Any:
    """What results of one f have in common; parity blocks of integers may be wider."""
    kinds = tuple((_kind(leaf.dtype), leaf.shape) for leaf in _leaves(outcome))
    return repr(outcome.structure), kinds


def _kind(dtype: DType) -> str:
    return "integer" if is_exact(dtype) else dtype.kind


def _describe(outcome: Outcome) -> str:
    return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in _leaves(outcome)) or "nothing"


def _leaf_agrees(
    one: Array, other: Array, precision: DType, rtol: float | None, amplification: float, largest: float
) -> bool:
    if one.shape != other.shape or _kind(one.dtype) != _kind(other.dtype):
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
