"""Draw, run and judge coded_map of one function over one piece of data, with faults."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from code_oracles import gf2_decodable
from plain import cut_rows, leaves

import polarmap
from polarmap.codes import IntegerSecretSharingCode, LagrangeCode, PolarCode, SecretSharing, SecretSharingCode
from polarmap.codes.integer_secret_sharing import compute_min_tasks
from polarmap.report import Report
from polarmap.types import CodedResult
from soak import oracle
from soak.draws import Draw
from soak.faults import PATIENCE, Faults, Pools, draw_faults
from soak.functions import NESTED, QUADRATIC, Function, draw_function, draw_linear
from soak.oracle import SHORT, Finding


@dataclass
class MapCase:
    """A map with its data, code, options and faults.

    Attributes
    ----------
    data
        An array, or a sequence of nested blocks.
    blocks : list[Any]
        The arguments of f, in native byte order.
    rows : int | None
        Rows of each block of an array; the last block may have fewer.
    """

    seed: int
    executor: str
    f: Function
    data: Any
    blocks: list[Any]
    rows: int | None
    code: Any
    options: dict[str, Any]
    faults: Faults
    is_warm: bool
    about: str

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        warm = "; after a map of the same f on small numbers" if self.is_warm else ""
        subject = f"map of {self.f.name} ({self.f.kind}) over {self.about}"
        return f"{subject}\n  {self.code!r}; {options}\n  {self.faults}{warm}"

    @property
    def is_estimated(self) -> bool:
        return self.options.get("on_timeout") == "estimate"

    @property
    def lost(self) -> set[int]:
        return self.faults.lost(self.options)

    @property
    def dtypes(self) -> list[np.dtype[Any]]:
        return [np.asarray(leaf).dtype for leaf in leaves(self.blocks[0])]

    @property
    def largest(self) -> float:
        """The largest number of all blocks."""
        return max(oracle.largest(leaf) for block in self.blocks for leaf in leaves(block))

    @property
    def f_fits(self) -> bool:
        """Whether f has the form that the code needs: uniform noise modulo 2^64 allows no constant."""
        kinds = {"linear"} if isinstance(self.code, IntegerSecretSharingCode) else {"linear", "affine"}
        return self.f.kind in kinds or (self.f.kind == "quadratic" and getattr(self.code, "degree", 1) == 2)

    def run(self, pools: Pools) -> str:
        """Run the map and return the verdict. Raise Finding if it violates an expectation."""
        expected, raised = self._expected()
        executor = pools.executor(self.executor, self.faults, self.seed)

        def the_map() -> CodedResult:
            if self.is_warm:
                self._warm_up()
            return polarmap.coded_map(self.f.call, self.data, executor=executor, **self.options)

        result, error, messages = oracle.called(the_map)
        if error is not None:
            return "f raises" if raised is not None else oracle.excused(error, self._reasons(expected))
        if raised is not None:
            raise Finding("no error", f"f raises {raised!r} of a block, and the map returned")
        return Judge(self, expected, result, messages).verdict()

    def passes_all_checks(self, report: Report) -> bool:
        """Return whether f satisfies every equation between the arrived results of a polar code."""
        if not isinstance(self.code, PolarCode) or self.rows is None:
            return False
        arrived = sorted(report.tasks_in_state("arrived") + report.tasks_in_state("surplus"))
        generator = np.vstack([np.eye(self.code.k), np.asarray(self.code.encoding_matrix, float)])[arrived]
        data = np.zeros((self.code.k, self.rows, *np.shape(self.data)[1:]), np.result_type(*self.dtypes))
        for place, block in zip(data, self.blocks):
            place[: len(block)] = block
        with np.errstate(all="ignore"):
            coded = [np.tensordot(row, data, 1).astype(data.dtype) for row in generator]
            results = np.array(
                [np.concatenate([np.ravel(leaf) for leaf in leaves(self.f.call(one))]) for one in coded]
            )
        basis, sizes, _ = np.linalg.svd(generator)
        checks = basis[:, int((sizes > 1e-9).sum()) :].T
        return bool(np.abs(checks @ results).max(initial=0) <= 1e-4 * np.abs(results).max(initial=0))

    @property
    def is_short(self) -> bool:
        """Whether the last block is shorter than all other blocks and is padded with zeros."""
        return self.rows is not None and len(self.blocks[-1]) < self.rows

    def _zeros_matter(self, expected: list[Any]) -> bool:
        """Return whether rows of zeros change the last block's result beyond rows that can be cut off.

        The library tries f on one or two rows with two rows of zeros, so a difference there counts as well.
        """
        if not (self.is_short and self.rows and expected):
            return False
        # Data that is zero itself would hide the effect: the library tries f on other rows.
        last_block, full_block = (
            np.where(block == 0, np.ones_like(block), block) for block in (self.blocks[-1], self.blocks[0])
        )
        n_tried_rows = min(2, len(last_block))
        return any(
            self._do_zeros_change_result(last_block[:n_rows], full_block[:padded_length])
            for n_rows, padded_length in (
                (len(last_block), self.rows),
                (n_tried_rows, min(n_tried_rows + 2, self.rows)),
            )
        )

    def _do_zeros_change_result(self, block: Any, full_block: Any) -> bool:
        """Return whether rows of zeros up to the length of `full_block` change the result for `block`.

        Rows of the result can be cut off if f of `full_block` begins with f of its first rows.
        """
        n_rows, padded_length = len(block), len(full_block)
        padded_block = np.concatenate([block, np.zeros_like(full_block[n_rows:])])
        try:
            with np.errstate(all="ignore"):
                padded, unpadded, full, first_rows = (
                    [np.asarray(leaf) for leaf in leaves(self.f.call(rows))]
                    for rows in (padded_block, block, full_block, full_block[:n_rows])
                )
        except Exception:
            return True
        for padded_leaf, unpadded_leaf, full_leaf, first_leaf in zip(padded, unpadded, full, first_rows):
            can_cut = (full_leaf.shape[:1], first_leaf.shape[:1]) == ((padded_length,), (n_rows,))
            if can_cut and _are_close(full_leaf[:n_rows], first_leaf):
                padded_leaf = padded_leaf[:n_rows]
            if not _are_close(padded_leaf, unpadded_leaf):
                return True
        return False

    def _expected(self) -> tuple[list[Any], Exception | None]:
        """Return the results of a plain map, or the error it raises."""
        try:
            with np.errstate(all="ignore"):
                return [self.f.call(block) for block in self.blocks], None
        except Exception as error:
            return [], error

    def _warm_up(self) -> None:
        """Run a map of small numbers that decodes if possible, so that the properties of f are remembered."""
        small = (np.arange(self.data.size).reshape(self.data.shape) % 7).astype(self.data.dtype)
        kept = {name: self.options[name] for name in ("blocks", "tasks", "code") if name in self.options}
        executor = polarmap.testing.ReplayExecutor({0: float("inf")})
        with contextlib.suppress(Exception):
            polarmap.coded_map(self.f.call, small, executor=executor, timeout=100.0, **kept)

    # -- errors -----------------------------------------------------------------------------

    def _reasons(self, expected: list[Any]) -> list[tuple[bool, str, Sequence[str]]]:
        """Return which errors are excused, and why."""
        faults, needed = self.faults, self.code.recovery_threshold
        numbers = [leaf for one in [*expected, *self.blocks] for leaf in leaves(one)]
        silent = faults.of("never") >= set(range(needed))
        return [
            (
                isinstance(self.code, LagrangeCode | SecretSharingCode),
                "a code that may be too inaccurate",
                ["CodeError"],
            ),
            (
                isinstance(self.code, IntegerSecretSharingCode) and self._makes_floats(expected),
                "floats of masked integers",
                ["CodeError"],
            ),
            (not all(map(oracle.is_finite, numbers)), "NaN", [*SHORT, "NotLinearError", "CodeError"]),
            (bool(faults.deceiving) or faults.outvotes(needed), "garbage", [*SHORT, "NotLinearError"]),
            (
                self._makes_floats(expected) and self._wraps(),
                "64-bit integers whose parity wraps into floats",
                ["CodeError", "NotLinearError"],
            ),
            (self.f.kind == "rounded", "f rounds", ["CodeError"]),
            (
                self._zeros_matter(expected) and not len(self.code.systematic_indices),
                "rows of zeros change what only masked blocks tell",
                ["CodeError"],
            ),
            (
                self._zeros_matter(expected) and len(self.blocks) - 1 in self.faults.struck,
                "the last block has to be evaluated",
                SHORT,
            ),
            (not self.f_fits, "f is not linear", [*SHORT, "NotLinearError"]),
            (not self._is_decodable, "too many lost", SHORT),
            (faults.raises_everywhere(self.code.n, self.code.n - needed), "raised everywhere", SHORT[:1]),
            # Parity tasks start after 60 s, 120 s, 240 s and so on.
            (silent and "schedule" in self.options, "on demand, and nothing is heard", SHORT),
            (self.executor == "replay" and self._may_be_inaccurate, "too inaccurate", SHORT),
            (self.is_estimated and not self._come_by(self.options["timeout"]), "deadline", SHORT),
        ]

    def _makes_floats(self, expected: list[Any]) -> bool:
        return any(np.asarray(leaf).dtype.kind not in "iu" for one in expected[:1] for leaf in leaves(one))

    def _wraps(self) -> bool:
        """Return whether parity of these 64-bit integers, or a sum over a parity block, may wrap around."""
        wide = [one for one in self.dtypes if one.kind in "iu" and one.itemsize == 8]
        n_entries = max(np.size(leaf) for leaf in leaves(self.blocks[0]))
        is_large = self.largest * float(self.code.norm_inf) * n_entries >= 2.0**62
        return bool(wide) and (is_large or any(one.kind == "u" for one in wide))

    @property
    def _is_decodable(self) -> bool:
        """Whether the tasks that are not lost determine the results, over the integers if there are any."""
        if isinstance(self.code, IntegerSecretSharingCode):
            arrived = [task for task in range(self.code.n) if task not in self.lost]
            none_known = np.zeros(self.code.recovery_threshold, bool)
            return gf2_decodable(self.code.generator_matrix[arrived], none_known)
        if not isinstance(self.code, PolarCode):
            return self.code.n - len(self.lost) >= self.code.recovery_threshold
        if self.code.decoder == "sequential":
            return not any(task < self.code.k for task in self.lost)
        return oracle.is_determined(self.code, self.lost)

    @property
    def _may_be_inaccurate(self) -> bool:
        """Whether more than half the spare results are lost, so that accuracy is not promised.

        Codes without this limit are excluded.
        """
        if isinstance(self.code, PolarCode | IntegerSecretSharingCode):
            return False
        return len(self.lost) > (self.code.n - self.code.recovery_threshold + 1) // 2

    def _come_by(self, deadline: float) -> bool:
        """Return whether a result arrives before the deadline."""
        healthy = set(range(self.code.n)) - set(self.faults.struck)
        return any(self.faults.seconds.get(task, 1.0) <= deadline for task in healthy)


def _are_close(leaf: Any, other_leaf: Any) -> bool:
    return leaf.shape == other_leaf.shape and bool(np.allclose(leaf, other_leaf, equal_nan=True))


class Judge:
    """Compares the results of a map with the results of a plain map."""

    def __init__(self, case: MapCase, expected: list[Any], result: CodedResult, messages: list[str]) -> None:
        self.case, self.result, self.report, self.messages = case, result, result.report, messages
        self.found = list(result)
        if len(self.found) != len(expected):
            raise Finding("wrong structure", f"{len(self.found)} results of {len(expected)} blocks")
        self.expected = expected
        if bool(self.report.padding) != case.is_short:
            raise Finding("wrong report", f"padding {self.report.padding} of {case.about}")
        self._allowed = self._bounds()

    def verdict(self) -> str:
        try:
            for index, one in enumerate(self.found):
                self._check(index, one)
        except Finding:
            if self._is_trusted:
                return oracle.TRUSTED_WRONG
            raise
        self._check_concatenated()
        if self.report.estimated_blocks:
            return "estimates, flagged"
        return "right, with a warning" if self.messages else f"right ({self.report.verified})"

    def _check(self, index: int, actual: Any) -> None:
        subject, plain_result, deceives = (
            f"result {index}",
            self.expected[index],
            index in self.case.faults.deceiving,
        )
        if index in self.report.estimated_blocks:
            if self.case.is_short and index == len(self.found) - 1 and np.isinf(self.report.errors[index]):
                return  # The estimate is for the block with its padding.
            oracle.check_structure(actual, plain_result, subject)
        elif deceives and self._is_as_reported(index):
            return  # A plain map would return the wrong result, too.
        elif index in self.report.recovered or deceives:
            oracle.check_close(actual, plain_result, self._allowed, subject)
        elif self.case.f.adds_by_blas:
            oracle.check_close(actual, plain_result, [one / 100 for one in self._allowed], subject)
        else:
            oracle.check_equal(actual, plain_result, subject)

    def _is_as_reported(self, index: int) -> bool:
        """Return whether no equation that was checked need contain this result."""
        if self.report.verified in ("not needed", "no", "earlier"):
            return True
        return index not in self.report.recovered and self.case.code.option_name != "rotation"

    @property
    def _is_trusted(self) -> bool:
        """Whether the report says that results of these workers were not checked."""
        case, faults, unverified = self.case, self.case.faults, self.report.verified in ("no", "earlier")
        if not case.f_fits and (unverified or case.is_warm or self.report.verified == "local"):
            # Includes an f that has passed earlier by chance: no check contains a single lost block.
            return True
        if case.f.name in ("abs", "clipped"):
            return True  # f is linear except for numbers that may all be in a lost block.
        if not case.f_fits and self.report.verified == "parity" and case.passes_all_checks(self.report):
            return True  # f is linear on all coded blocks that arrived and deviates only on lost blocks.
        if case.f.name == "sorted" and isinstance(case.code, IntegerSecretSharingCode):
            return True  # Two rows of noise may have the order of the data rows by chance.
        if unverified and faults.misleading:
            return True
        if faults.outvotes(case.code.recovery_threshold) or (case.code.k == 1 and len(faults.deceiving) > 1):
            return True  # Enough workers agree on a wrong result.
        if not faults.deceiving:
            return False
        if np.dtype(np.float16) in case.dtypes or self.report.estimated_blocks:
            return True  # An error of a tenth is below the tolerance.
        return bool(faults.deceiving & set(self.report.unchecked))

    def _bounds(self) -> list[float]:
        """Return the tolerance of each leaf: the reported bound plus the rounding of large numbers."""
        bounds, case, report = [], self.case, self.report
        coarse, noise = max(map(oracle.epsilon, case.dtypes)), getattr(case.code, "noise", 1.0)
        amplification = 1e4 if case.is_estimated else max(1.0, report.amplification)
        for place in zip(*map(leaves, self.expected)):
            results = max(map(oracle.largest, place))
            epsilon = max(coarse, oracle.epsilon(np.asarray(place[0]).dtype))
            scale = max(results, (case.largest or float(noise > 1)) * case.f.gain) * noise
            bounds.append(oracle.SLACK * (report.error_bound * results + epsilon * amplification * scale))
        return bounds

    def _check_concatenated(self) -> None:
        if any(isinstance(one, (dict, list, tuple)) for one in self.expected):
            return
        arrays = [np.asarray(one) for one in self.found]
        # numpy does not join the result of a short block either.
        if len({one.shape[1:] for one in arrays}) > 1:
            return
        if self.case.is_short and self.report.errors and np.isinf(self.report.errors[-1]):
            return
        joined = self.result.concatenate()
        wanted = np.stack(arrays) if arrays[0].ndim == 0 else np.concatenate(arrays)
        if joined.shape[0] != sum(len(np.atleast_1d(one)) for one in self.expected):
            raise Finding("wrong concatenation", f"{joined.shape} from results of {self.expected[0].shape}")
        oracle.check_equal(joined, wanted[: len(joined)], "concatenate()")


# --- drawing -----------------------------------------------------------------------------------


def draw_map(draw: Draw, executor: str) -> MapCase:
    return _over_sequence(draw, executor) if draw.chance(0.12) else _over_array(draw, executor)


def _over_array(draw: Draw, executor: str) -> MapCase:
    kind = draw.pick({"polar": 80, "evaluation": 8, "private": 8, "sequential": 4})
    dtype = draw.dtype({"polar": 0.4, "evaluation": 0.0, "private": 0.4, "sequential": 1.0}[kind])
    k, spare = _sizes(draw, executor)
    k = max(k, 2) if kind == "private" else k
    block_rows = draw.number(1, 4)
    total = k * block_rows - (draw.number(0, min(block_rows - 1, k)) if draw.chance(0.4) else 0)
    block_rows, total = _settled(k, total)
    inner = tuple(draw.number(1, 4) for _ in range(draw.pick({0: 1, 1: 6, 2: 2})))
    data, layout = draw.laid_out(draw.values((total, *inner), dtype))
    is_nan = dtype.kind in "fc" and draw.chance(0.03)
    if is_nan and layout != "read-only":
        data[(draw.number(0, total - 1), *(0 for _ in inner))] = draw.pick([np.nan, np.inf])
    code, options = _code(draw, kind, k, spare, dtype)
    if kind == "evaluation" and draw.chance(0.6):
        f = draw.pick(QUADRATIC)
    else:
        f = (draw_linear if kind == "evaluation" else draw_function)(draw, (block_rows, *inner), dtype)
    blocks = cut_rows(np.ascontiguousarray(data, dtype=dtype.newbyteorder("=")), k)
    options |= _options(draw, executor, kind)
    if dtype in (np.dtype("f8"), np.dtype("c16")) and draw.chance(0.1):
        options["rtol"] = draw.pick([1e-6, 1e-8])
    about = f"{dtype.str} {list(data.shape)}, {layout}{', NaN or inf in it' if is_nan else ''}"
    faults = draw_faults(draw, executor, code.n, code.n - code.recovery_threshold)
    warm = kind == "polar" and executor == "replay" and draw.chance(0.1)
    return MapCase(draw.seed, executor, f, data, blocks, block_rows, code, options, faults, warm, about)


def _settled(k: int, total: int) -> tuple[int, int]:
    """Return the rows per block and in total, so that each of the k blocks has at least one row."""
    rows = -(-total // k)
    return rows, max(total, rows * (k - 1) + 1)


def _over_sequence(draw: Draw, executor: str) -> MapCase:
    k, spare = _sizes(draw, executor)
    first, second = draw.dtype(0.3), draw.dtype(0.3)
    shape = (draw.number(1, 3), draw.number(1, 3))
    blocks = [
        {"x": draw.values(shape, first), "pair": (draw.values((2,), second), float(draw.stream.normal()))}
        for _ in range(k)
    ]
    kinds = {first.kind, second.kind}
    code = PolarCode(k + spare, k, kernel="arikan" if kinds & {"i", "u"} else "rotation")
    options: dict[str, Any] = {"tasks": k + spare, **_options(draw, executor, "polar")}
    faults = draw_faults(draw, executor, code.n, spare)
    about = f"{k} blocks of {first.str} {list(shape)}, {second.str} and a number"
    f = draw.pick(NESTED)
    return MapCase(draw.seed, executor, f, blocks, blocks, None, code, options, faults, False, about)


def _sizes(draw: Draw, executor: str) -> tuple[int, int]:
    if executor != "replay":
        return draw.number(2, 6), draw.number(1, 4)
    k = draw.pick({"few": 6, "more": 3, "usual": 1})
    return {
        "few": (draw.number(1, 8), draw.number(1, 6)),
        "more": (draw.number(6, 16), draw.number(1, 8)),
        "usual": (24, 8),
    }[k]


def _code(draw: Draw, kind: str, k: int, spare: int, dtype: np.dtype[Any]) -> tuple[Any, dict[str, Any]]:
    """Return a code and the options that select it."""
    exact = dtype.kind in "iu"
    if kind == "evaluation":
        needed = LagrangeCode(4 * k + 64, k, 2, "circle").recovery_threshold
        n = needed + spare + 1
        return LagrangeCode(n, k, 2), {"blocks": k, "tasks": n, "degree": 2}
    if kind == "private":
        t = draw.number(1, 2)
        if exact:
            n = compute_min_tasks(k, t) + spare
            return IntegerSecretSharingCode(n, k, t), {"blocks": k, "tasks": n, "code": SecretSharing(t)}
        n = k + t + spare + 1
        return SecretSharingCode(n, k, t, 100.0), {"blocks": k, "tasks": n, "code": SecretSharing(t)}
    if kind == "sequential":
        code = PolarCode(k + spare, k, kernel="arikan", decoder="sequential")
        return code, {"blocks": k, "code": code}
    kernel = "auto" if draw.chance(0.7) else "arikan" if exact or draw.chance(0.5) else "rotation"
    used = kernel if kernel != "auto" else "arikan" if exact else "rotation"
    options: dict[str, Any] = {"blocks": k, "tasks": k + spare}
    return PolarCode(k + spare, k, kernel=used), options | ({} if kernel == "auto" else {"code": kernel})


def _options(draw: Draw, executor: str, kind: str) -> dict[str, Any]:
    options: dict[str, Any] = {"progress": False}
    if executor != "replay" or draw.chance(0.7):
        options["timeout"] = PATIENCE[executor]
    if draw.chance(0.4):
        options["verify"] = draw.pick([True, False, "auto"])
    if draw.chance(0.3):
        options["retries"] = draw.number(0, 2)
    choice = draw.pick({"none": 14, "on_demand": 3, "deadline": 2})
    if choice == "on_demand":
        options["schedule"] = "on_demand"
    elif choice == "deadline" and executor == "replay" and kind == "polar":
        options |= {"timeout": float(draw.pick([1.2, 1.5, 3.0, 50.0])), "on_timeout": "estimate"}
    return options
