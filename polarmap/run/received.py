"""The results of a map: those of one shape, and the decoder that they feed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property, partial
from operator import attrgetter
from typing import Any

import numpy as np

from polarmap.blocks.coded import CodedData
from polarmap.codes.arrival_tracker import ArrivalTracker
from polarmap.codes.base import ErasureDecoder
from polarmap.codes.tiling import ignore_nonfinite
from polarmap.dtypes import Array, DType, check_dtype, default_rtol, is_integer_dtype, machine_epsilon
from polarmap.errors import CodeError
from polarmap.executors.interface import Failure, Outcome, TaskResult
from polarmap.run.local_run import LocalRun, block_here
from polarmap.run.loop import Need, Stopwatch
from polarmap.run.options import MapOptions
from polarmap.run.tasks import TaskTable
from polarmap.run.trusted import Trust
from polarmap.run.wrapping import unwrapped, why_not_protected
from polarmap.worker.pytree import Structure

# The longest wait for a result that is not needed, or for f on the driver:
UNVERIFIED_SECONDS = 20.0
UNVERIFIED_TASKS = 4.0  # times the longest task, if that is more
SURPLUS_SECONDS = (0.2, 10.0)  # bounds of the wait for a result to check against: then f is evaluated here


_KIND, _SHAPE = attrgetter("dtype.kind"), attrgetter("shape")  # of an array


def kind_of(leaves: Sequence[Array]) -> Any:
    """What must agree between the arrays of results: any integer goes with any other."""
    return "".join(map(_KIND, leaves)).replace("u", "i"), tuple(map(_SHAPE, leaves))


def kinds_of(structure: Structure) -> list[str]:
    """What each leaf of a tree of this structure was: "array", "numpy" or "python"."""
    if len(structure) < 3 or structure[0] == "sample":
        return [structure[0]]
    return [kind for part in structure[2] for kind in kinds_of(part)]


def is_well_formed(result: Outcome | TaskResult) -> bool:
    """Whether numbers are single ones: what says otherwise has not come from f."""
    kinds = kinds_of(result.structure)
    return all(one.size == 1 for one, kind in zip(result.leaves, kinds) if kind in ("python", "numpy"))


class NotFiniteError(Exception):
    """NaN or inf among the results: parity carries it into every block that is decoded."""


class Received(Need):
    """The results of a map so far, and whether they determine those of the data blocks.

    Attributes
    ----------
    results : dict from task to Outcome
        Of the most common structure and shape; others are failures of their tasks.
    decoder : Decoder
        From the first result on, which tells the dtypes.
    determined_at, ready_at : float or None
        When the results first determined the rest, and as accurately as is asked for, in seconds after
        the start.
    needed : int
        How many they were.
    is_inaccurate : bool
        Whether they are taken although more would have to come for the accuracy asked for.
    verification : str or None
        How the results were verified, once they are accepted: they stay as they are then.
    unpadded : Result or None
        That of the block which rows of zeros fill up, evaluated without these, once its task returned it.
    decoded : list of lists of arrays
        The results of the k data tasks, flat; of the last time they were decoded, empty before.
    decode_seconds : float
    """

    def __init__(
        self,
        f: Callable[[Any], Any],
        coded: CodedData,
        options: MapOptions,
        tasks: TaskTable,
        watch: Stopwatch,
    ) -> None:
        super().__init__(tasks, watch)
        self.f, self.coded, self._code, self.options = f, coded, coded.code, options
        self.evaluated_here: list[int] = []  # coded blocks, once for each time that f ran on the driver
        is_ours = options.known.fits or options.verify is False  # nobody asks
        self.trust = Trust(f, coded.code.requirement, coded.data_blocks.dtypes, is_ours)
        self._model: list[Array] | None = None  # f of a data block, evaluated here
        self._groups: dict[Any, dict[int, Outcome]] = {}  # by kind
        self.results: dict[int, Outcome] = {}
        self.unpadded: TaskResult | None = None
        self.decoder: ArrivalTracker
        self.determined_at: float | None = None
        self.ready_at: float | None = None
        self.needed = 0
        self.is_inaccurate = False
        self.verification: str | None = None
        self.decoded: list[list[Array]] = []
        self.decode_seconds = 0.0
        self._decoded_by: ErasureDecoder | None = None

    def add(self, outcome: Outcome) -> None:
        """Take in a result, unless others are accepted; failures are in the table of tasks."""
        index = outcome.task
        if outcome.unpadded_result is not None and self.unpadded is None:
            if not is_well_formed(outcome.unpadded_result):  # it cannot have come from f
                self._reject_shape(index, "returned several numbers where one is due")
                return
            self.unpadded = outcome.unpadded_result
        if outcome.failure is not None or index in self.results or self.verification is not None:
            return
        if (
            outcome.unpadded_result is not None and not outcome.structure
        ):  # f raised an exception of rows of zeros
            self._note_all_data()
            return
        kind, shape = (repr(outcome.structure), kind_of(outcome.leaves)), self.options.known.shape
        if kind not in self._groups and not (
            is_well_formed(outcome) and shape in (None, *outcome.leaf_shapes)
        ):
            due = "a number" if shape is None else f"shape {shape}"
            self._reject_shape(index, f"returned {outcome.result_description} where {due} is due")
            return
        for group in self._groups.values():  # an odd result, tried again
            group.pop(index, None)
        group = self._groups.setdefault(kind, {})
        group[index] = outcome
        if group is self.results:
            self._feed(index)
        elif not self.results or self._overrules(group):
            self._follow(group)
        else:
            self._reject_odd(outcome)

    def _reject_shape(self, index: int, message: str) -> None:
        """Let a result be a failure of its task, because of its shape."""
        self._forget_unpadded(index)
        self.tasks.reject(index, Failure("shape", "WrongShape", message))

    def _forget_unpadded(self, index: int) -> None:
        """Forget the result without padding of a task, as what the task has returned is rejected."""
        if (
            self.coded.data_blocks.padded_block is not None
            and index == self.coded.data_blocks.padded_block[0]
        ):
            self.unpadded = None

    def _overrules(self, group: dict[int, Outcome]) -> bool:
        """Whether these results are followed rather than those so far: if they are more.

        Where they are as many, or only their dtypes differ, those of parity blocks alone overrule none of
        data blocks: f of wider integers may be of another kind.
        """
        one, other = next(iter(group.values())), self._any_received
        has_data, had_data = (
            min(some) < len(self._code.systematic_indices) for some in (group, self.results)
        )
        are_alike = one.structure == other.structure and one.leaf_shapes == other.leaf_shapes
        if has_data != had_data and (are_alike or len(group) == len(self.results)):
            return has_data
        return len(group) > len(self.results)

    def drop(self, index: int, failure: Failure) -> None:
        """Take a received result, which is garbage, back out of the decoder."""
        del self.results[index]
        self._forget_unpadded(index)
        self.tasks.reject(index, failure)
        self._restart_decoder()

    @property
    def patience(self) -> float:
        """The longest wait for a result, or for f on the driver, that is not needed."""
        return max(UNVERIFIED_SECONDS, UNVERIFIED_TASKS * max(self.tasks.seconds, default=0.0))

    @property
    def since_ready(self) -> float:
        """Seconds since the results were determined."""
        assert self.ready_at is not None
        return self.watch.elapsed - self.ready_at

    @property
    def surplus_wait(self) -> float:
        """The wait for a result to check against: one median task time, within SURPLUS_SECONDS."""
        seconds, (least, most) = sorted(self.tasks.seconds), SURPLUS_SECONDS
        middle = (
            seconds[(len(seconds) - 1) // 2] + seconds[len(seconds) // 2]
        ) / 2  # np.median imports numpy.ma
        return max(least, min(middle, most))

    @property
    def is_first_use(self) -> bool:
        """Whether it is to be found out what f is."""
        verify = self.options.verify
        return verify is True or (verify == "auto" and self.trust.known is None)

    @property
    def time_here(self) -> float:
        """Seconds for f on one block, where the driver has to wait for it; a moment when time is over."""
        return min(self.patience, max(SURPLUS_SECONDS[0], self.watch.remaining))

    @property
    def data_count(self) -> int:
        """Results of data blocks that count."""
        return sum(int(index) in self.results for index in self._code.systematic_indices)

    @property
    def odd(self) -> set[int]:
        """Data blocks of which a worker returned something of another structure or shape."""
        failed = [index for index in self._code.systematic_indices.tolist() if self.tasks[index].failures]
        return {index for index in failed if any(one.kind == "shape" for one in self.tasks[index].failures)}

    def rows(self, leaf: int) -> dict[int, Array]:
        """Leaf number `leaf` of every received result, flat."""
        return {index: one.leaves[leaf].reshape(-1) for index, one in self.results.items()}

    def dtypes(self) -> list[DType]:
        """Dtypes of the leaves of the results, as data tasks return them.

        Parity blocks of integers are wider, and so may be f of them: when nothing else arrived, f
        of a data block tells.
        """
        first = min(self.results)
        received = self.results[first]
        if first < len(self._code.systematic_indices) or not any(
            map(is_integer_dtype, self.coded.data_blocks.dtypes)
        ):
            return received.leaf_dtypes
        if self._model is None:
            run = self.run_here(partial(block_here, self.coded, 0, of_data=True), 0)
            self._model = run.leaves_within(self.time_here) or []
        if [leaf.shape for leaf in self._model] != received.leaf_shapes:
            return received.leaf_dtypes
        return [leaf.dtype for leaf in self._model]

    def run_here(self, block: Callable[[], Any], index: int) -> LocalRun:
        """Start to evaluate f on coded block `index` on the driver; `block` makes it."""
        self.evaluated_here.append(index)
        return LocalRun(self.f, block, index)

    @property
    def structure(self) -> Structure:
        """How leaves make up a result."""
        return self.results[min(self.results)].structure

    def precision(self, dtype: DType) -> DType:
        """The dtype whose rounding limits results of `dtype`: parity blocks are rounded to the data's."""
        if is_integer_dtype(dtype):
            return np.dtype(np.float64)
        coarse = [one for one in self.coded.data_blocks.dtypes if not is_integer_dtype(one)]
        return max([dtype, *coarse], key=machine_epsilon)

    def decode(self) -> list[list[Array]]:
        """The results of all data tasks; NotFiniteError if NaN or inf got in the way.

        CodeError for Python integers that parity does not determine.
        """
        if not len(self.decoder.missing_indices):
            self.decoded = [self.results[index].leaves for index in range(self._code.n_targets)]
        elif (recovery := self.decoder.decoder) is not self._decoded_by:
            began = self.watch.elapsed
            self.decoded, self._decoded_by = self._decode(recovery), recovery
            self.decode_seconds = self.watch.elapsed - began
        if not self.decoded:
            raise NotFiniteError
        return self.decoded

    def _decode(self, recovery: ErasureDecoder) -> list[list[Array]]:
        """The same, of which some are missing; empty if NaN or inf got in the way."""
        recovered: list[list[Array]] = []
        kinds = kinds_of(self.structure)
        for leaf, dtype in enumerate(self.dtypes()):
            rows = self.rows(leaf)
            with ignore_nonfinite():
                blocks = recovery.decode(rows, dtype)
            if dtype.kind in "fc" and not np.isfinite(blocks).all():
                return []
            if kinds[leaf] == "python" and is_integer_dtype(dtype) and recovery.modular:
                recovered.append(
                    unwrapped(self.coded, rows, recovery.arrived_indices, recovery.weights, blocks)
                )
            else:
                recovered.append(list(blocks))
        return self.completed(recovery.missing_indices, recovered)

    def completed(self, missing: Array, recovered: list[list[Array]]) -> list[list[Array]]:
        """The leaves of the k results: those that arrived, and of each leaf the flat ones that did not."""
        shapes = self._any_received.leaf_shapes
        leaves = {index: one.leaves for index, one in self.results.items()}
        for row, index in enumerate(missing.tolist()):
            leaves[index] = [blocks[row].reshape(shape) for blocks, shape in zip(recovered, shapes)]
        return [leaves[index] for index in range(self._code.n_targets)]

    @cached_property
    def why_not_protected(self) -> str:
        """Why parity is of no use, as f turned integers that may wrap into floats; "" where it is."""
        return "" if self.options.known.fits else why_not_protected(self.coded, self.dtypes())

    def _follow(self, group: dict[int, Outcome]) -> None:
        """More results look like these than like any others: the others are failures of their tasks."""
        odd, self.results = self.results, group
        for index in group:
            self.tasks.accept(index)
        for result in odd.values():
            self._reject_odd(result)
        self._restart_decoder()

    def _reject_odd(self, result: Outcome) -> None:
        index, usual = result.task, self._any_received
        if (
            result.unpadded_result is not None and self.unpadded is not None
        ):  # rows of zeros may explain its shape
            self._note_all_data()
            return
        message = f"returned {result.result_description}, others {usual.result_description}"
        if index >= len(self._code.systematic_indices) and result.leaf_shapes == usual.leaf_shapes:
            data, parity = (self.coded.block_layout(place)[0][0] for place in (0, self._code.n - 1))
            message += (
                f": f of {np.dtype(parity)} blocks, which parity of {np.dtype(data)} is, has another kind of "
                "result; convert the data, or what f combines it with, so that both have one"
            )
        self._reject_shape(index, message)

    @property
    def _any_received(self) -> Outcome:
        return next(iter(self.results.values()))

    def _restart_decoder(self) -> None:
        self.ready_at = self.determined_at = None
        self.is_inaccurate = False
        self.__dict__.pop("why_not_protected", None)
        dtypes = self._any_received.leaf_dtypes
        for dtype in dtypes:
            _check_result(dtype)
        whole = any(
            is_integer_dtype(dtype) for dtype in self.coded.data_blocks.dtypes or dtypes
        )  # else f rounds
        exact = self._code.supports_integers and whole and any(is_integer_dtype(dtype) for dtype in dtypes)
        inexact = [self.precision(dtype) for dtype in dtypes if not (exact and is_integer_dtype(dtype))]
        limits = [self.rtol(dtype) / machine_epsilon(dtype) for dtype in inexact]
        self.decoder = ArrivalTracker(
            self._code, modular=exact, max_amplification=min(limits, default=np.inf)
        )
        for index in self.results:
            self._feed(index)

    def _feed(self, index: int) -> None:
        if self.decoder.add(index) and self.ready_at is None:
            self.ready_at, self.needed = self.watch.elapsed, self.decoder.n_arrived
        if self.determined_at is None and self.decoder.is_decodable:
            self.determined_at = self.watch.elapsed
        if self.unpadded is not None:
            self._note_all_data()

    def _note_all_data(self) -> None:
        """Note that nothing has to be decoded: also where f raised an exception of the rows of zeros only."""
        if self.ready_at is None and self.has_all_data(self.results):
            self.ready_at, self.needed = self.watch.elapsed, len(self.tasks.arrived)

    @property
    def counted(self) -> Collection[int]:
        """The tasks whose results can be decoded from.

        Not among them is a task of the short block that has returned the result of its own rows, but none of
        the usual shape with the rows of zeros.
        """
        return self.results.keys()

    def has_all_data(self, tasks: Collection[int]) -> bool:
        """Return whether results of these tasks, and that without padding, are those of all data tasks."""
        systematic = self._code.systematic_indices
        known = set(tasks) if self.unpadded is None else {*tasks, len(systematic) - 1}
        return len(systematic) > 0 and known.issuperset(systematic)

    def accept(self) -> bool:
        """Take the results at any accuracy, as no more can come; whether they determine the rest."""
        if not (self.results and self.decoder.is_ill_conditioned and self.decoder.accept_ill_conditioned()):
            return False
        self.ready_at, self.needed, self.is_inaccurate = self.watch.elapsed, self.decoder.n_arrived, True
        return True

    def rtol(self, dtype: DType) -> float:
        """The relative error accepted from decoding results of `dtype`."""
        return default_rtol(dtype) if self.options.rtol is None else self.options.rtol


def _check_result(dtype: DType) -> None:
    """CodeError for a result that could not be decoded if it were lost, whether or not it is."""
    try:
        check_dtype(dtype, "the result of f")
    except CodeError as error:
        raise CodeError(f"{error}, or use hedged_map, which takes any f at all") from None
