"""coded_map of one function over one piece of data, with faults: drawn, run and judged."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from plain import leaves

import polarmap
from polarmap import CodedResult, LagrangeCode, Masked, MaskedCode, MaskedIntegerCode, PolarCode
from polarmap.code.masked_integers import workers_for
from polarmap.errors import PolarmapError
from polarmap.run.trusted import TRUSTED
from soak import oracle
from soak.draws import Draw
from soak.faults import DECEIVING, Faults, Pools, draw_faults, judged
from soak.functions import NESTED, Function, draw_function, draw_linear, draw_quadratic
from soak.oracle import Finding

MISLEADING = DECEIVING | {"shape"}  # where nothing is checked
PATIENCE = {"replay": 1000.0, "threads": 60.0, "pool": 100.0, "processes": 60.0, "localhost": 100.0}


@dataclass
class MapCase:
    """One map.

    data : an array or a sequence of nested blocks; blocks: what f is applied to, in native byte order.
    rows : real rows of the last block, where the data is an array.
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
        what = f"map of {self.f.name} ({self.f.kind}) over {self.about}"
        return f"{what}\n  {self.code!r}; {options}\n  {self.faults}{warm}"

    @property
    def retries(self) -> int:
        return int(self.options.get("retries", 1))

    @property
    def is_estimated(self) -> bool:
        return self.options.get("on_timeout") == "estimate"

    @property
    def lost(self) -> set[int]:
        return self.faults.lost(self.retries)

    @property
    def dtypes(self) -> list[np.dtype[Any]]:
        return [np.asarray(leaf).dtype for leaf in leaves(self.blocks[0])]

    def run(self, pools: Pools) -> str:
        """The verdict in a word; a Finding for what must not be."""
        TRUSTED.clear()
        expected, raised = self._expected()
        executor = pools.executor(self.executor, self.faults, self.seed)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                if self.is_warm:
                    self._warm_up()
                result = polarmap.coded_map(self.f.call, self.data, executor=executor, **self.options)
            except Exception as error:
                return self._judge_error(judged(error), expected, raised)
        check_warnings(told)
        if raised is not None:
            raise Finding("no error", f"f raises {raised!r} of a block, and the map returned")
        return Judge(self, expected, result, [str(one.message) for one in told]).verdict()

    def _expected(self) -> tuple[list[Any], Exception | None]:
        """What a plain map gives."""
        try:
            with np.errstate(all="ignore"):
                return [self.f.call(block) for block in self.blocks], None
        except Exception as error:
            return [], error

    def _small(self) -> Any:
        if not isinstance(self.data, np.ndarray):
            return self.data
        return (np.arange(self.data.size).reshape(self.data.shape) % 7).astype(self.data.dtype)

    def _warm_up(self) -> None:
        """A map that decodes, if it can: what f is found to be is remembered."""
        with contextlib.suppress(Exception):
            polarmap.coded_map(self.f.call, self._small(), **self._quiet())

    def _quiet(self) -> dict[str, Any]:
        """The options of a map without faults that has to decode."""
        kept = {name: self.options[name] for name in ("blocks", "workers", "code") if name in self.options}
        return {**kept, "executor": polarmap.ReplayExecutor({0: float("inf")}), "timeout": 100.0}

    # -- errors -----------------------------------------------------------------------------

    def _judge_error(self, error: PolarmapError, expected: list[Any], raised: Exception | None) -> str:
        name = type(error).__name__
        if raised is not None:
            return "f raises"
        reasons = self._reasons(expected)
        allowed = {name: reason for reason, names in reasons.items() for name in names}
        if name in allowed:
            return f"{name}: {allowed[name]}"
        text = f"{name}: {error}"
        raise Finding("innocent failure", f"{text} [reasons seen: {sorted(reasons)}]") from error

    def _reasons(self, expected: list[Any]) -> dict[str, tuple[str, ...]]:
        """Why which errors may come."""
        short = ("NotDecodableError", "CodedTimeoutError")
        reasons: dict[str, tuple[str, ...]] = {}
        if self._refusal():
            reasons[self._refusal()] = ("CodeError",)
        bad = [one for one in expected for leaf in leaves(one) if not is_finite(leaf)]
        if bad or not all(is_finite(leaf) for block in self.blocks for leaf in leaves(block)):
            reasons["NaN"] = (*short, "NotLinearError", "CodeError")
        if self.faults.deceiving or self.faults.outvotes(self.code.recovery_threshold):
            reasons["garbage"] = (*short, "NotLinearError")
        if self._wraps_into_floats(expected):
            reasons["64-bit integers whose parity wraps into floats"] = ("CodeError", "NotLinearError")
        if self.f.kind == "rounded":
            reasons["f rounds"] = ("NotLinearError", "CodeError", *short)
        elif not self.f_fits:
            reasons["f is not linear"] = ("NotLinearError", *short)
        if not self.is_decodable:
            reasons["too many lost"] = short
        if self.faults.raises_everywhere(self.code.n, self.code.n - self.code.recovery_threshold):
            reasons["raised everywhere"] = ("NotDecodableError",)
        silent = {task for task, kind in self.faults.struck.items() if kind == "never"}
        if self.options.get("schedule") == "on_demand" and silent >= set(range(self.code.recovery_threshold)):
            reasons["on demand, and nothing is heard"] = short  # parity starts after 60 s, 120 s, 240 s ...
        if self.executor == "replay" and self._may_be_inaccurate:
            reasons["too inaccurate"] = short
        if self.is_estimated and not self.came_by(self.options["timeout"]):
            reasons["deadline"] = ("CodedTimeoutError", "NotDecodableError")
        return reasons

    def _wraps_into_floats(self, expected: list[Any]) -> bool:
        wide = [one for one in self.dtypes if one.kind in "iu" and one.itemsize == 8]
        into = any(np.asarray(leaf).dtype.kind not in "iu" for one in expected[:1] for leaf in leaves(one))
        largest = max(oracle.largest(leaf) for block in self.blocks for leaf in leaves(block))
        if into and any(one.kind == "u" for one in wide):
            return True
        return bool(wide) and into and largest * float(self.code.norm_inf) >= 2.0**62

    @property
    def f_fits(self) -> bool:
        """Whether f is what the code needs."""
        degree = getattr(self.code, "degree", 1)
        return self.f.kind == "linear" or (self.f.kind == "quadratic" and degree == 2)

    @property
    def is_decodable(self) -> bool:
        """Whether what is not lost determines the results, over the integers if there are any."""
        arrived = np.setdiff1d(np.arange(self.code.n), sorted(self.lost))
        if not isinstance(self.code, PolarCode):
            return len(arrived) >= self.code.recovery_threshold
        if self.code.decoder == "sequential":
            return not any(task < self.code.k for task in self.lost)
        if self.code.kernel == "rotation":
            return len(arrived) >= self.code.k
        missing = [task for task in self.lost if task < self.code.k]
        rows = [task - self.code.k for task in arrived if task >= self.code.k]
        return rank_mod_2(self.code.coefficients[np.ix_(rows, missing)]) == len(missing)

    @property
    def _may_be_inaccurate(self) -> bool:
        """Half the spare results of these codes are what their users are told to count on."""
        if isinstance(self.code, PolarCode):
            return False
        return len(self.lost) > (self.code.n - self.code.recovery_threshold + 1) // 2

    def came_by(self, deadline: float) -> bool:
        """Whether a result comes before the deadline."""
        return any(
            self.faults.seconds.get(task, 1.0) <= deadline
            for task in range(self.code.n)
            if task not in self.faults.struck
        )

    def _refusal(self) -> str:
        """Why such data or options may be refused; empty if they must not be."""
        exact = any(one.kind in "iu" for one in self.dtypes)
        if exact and (self.options.get("code") == "rotation" or not isinstance(self.code, PolarCode)):
            return "integers on a code for floats"
        if not isinstance(self.code, PolarCode):
            return "a code that may be too inaccurate"
        if any(one.dtype.kind in "bO" for one in map(np.asarray, self._leaves_of_results())):
            return "results of a dtype that no code carries"
        return ""

    def _leaves_of_results(self) -> list[Any]:
        return [leaf for one in self._expected()[0][:1] for leaf in leaves(one)]


class Judge:
    """Compares what a map returned with what a plain map returns."""

    def __init__(self, case: MapCase, expected: list[Any], result: CodedResult, told: list[str]) -> None:
        self.case, self.result, self.report, self.told = case, result, result.report, told
        self.untrimmed, self.expected = expected, [*expected]
        if case.rows is not None and result.report.padding:
            self.expected[-1] = self._trimmed(expected[-1], case.rows)
        self._allowed = self._bounds()

    def _trimmed(self, last: Any, rows: int) -> Any:
        """The last result without rows that stand for padding; of containers either will do.

        Rows that have seen others stay, with a warning, where that shows.
        """
        if self.case.f.rows == "as many" and self.told and _same_shapes(list(self.result)[-1], last):
            return last
        if self.case.f.rows == "some" and not _same_shapes(list(self.result)[-1], last):
            return cut_first(last, rows)
        return cut_all(last, rows) if self.case.f.rows in ("each", "as many") else last

    def verdict(self) -> str:
        found = list(self.result)
        if len(found) != len(self.expected):
            raise Finding("wrong structure", f"{len(found)} results of {len(self.expected)} blocks")
        if _same_shapes(found[-1], self.untrimmed[-1]) and not _same_shapes(found[-1], self.expected[-1]):
            raise Finding("padding rows", f"{self.report.padding} in the last result of {self.case.f.name}")
        try:
            for index, one in enumerate(found):
                self._check(index, one)
        except Finding:
            if self._is_trusted:
                return "wrong, and trusted to be right"
            raise
        self._check_concatenated()
        if self.report.estimated:
            return "estimates, flagged"
        return "right, with a warning" if self.told else f"right ({self.report.verified})"

    def _check(self, index: int, found: Any) -> None:
        what, report = f"result {index}", self.report
        if index in report.estimated:
            oracle.check_structure(found, self.expected[index], what)
        elif index in self.case.faults.deceiving and self._is_as_reported(index):
            return  # a plain map would return it, too
        elif index in self.report.recovered or index in self.case.faults.deceiving:
            oracle.check_close(found, self.expected[index], self._allowed, what)
        else:
            self._check_arrived(found, self.expected[index], what)

    def _is_as_reported(self, index: int) -> bool:
        """Whether no equation that was looked at need have this result in it."""
        if self.report.verified in ("not needed", "no", "earlier"):
            return True
        return index not in self.report.recovered and self.case.code.option != "rotation"

    def _check_arrived(self, found: Any, wanted: Any, what: str) -> None:
        """BLAS adds up in an order that depends on where a block lies."""
        if "@" in self.case.f.name or "gram" in self.case.f.name or self.case.f.name == "x' x":
            oracle.check_close(found, wanted, [one / 100 for one in self._allowed], what)
        else:
            oracle.check_equal(found, wanted, what)

    @property
    def _is_trusted(self) -> bool:
        """Whether the report says that these workers, or any, were not checked."""
        case, unverified = self.case, self.report.verified in ("no", "earlier")
        if not case.f_fits and (unverified or case.is_warm or self.report.verified == "local"):
            return True  # also one that has passed before, by chance: a lost block alone is in no check
        if case.f.name in ("abs", "clipped"):
            return True  # linear, but for numbers that may all lie in a block that is lost
        if unverified and set(case.faults.struck.values()) & MISLEADING:
            return True
        if case.faults.outvotes(case.code.recovery_threshold) or (
            case.code.k == 1 and len(case.faults.deceiving) > 1
        ):
            return True  # as many say the same as it takes
        if not case.faults.deceiving:
            return False
        if np.dtype(np.float16) in case.dtypes or self.report.estimated:
            return True  # a tenth is not found out
        return bool(case.faults.deceiving & set(self.report.unchecked))

    def _bounds(self) -> list[float]:
        """How far each leaf may be off: the bound that is reported, and the rounding of large numbers."""
        bounds = []
        coarse = max(map(oracle.epsilon, self.case.dtypes))
        data = max((oracle.largest(leaf) for block in self.case.blocks for leaf in leaves(block)), default=0)
        noise = getattr(self.case.code, "noise", 1.0)
        for place in zip(*map(leaves, self.untrimmed)):
            results = max(map(oracle.largest, place))
            epsilon = max(coarse, oracle.epsilon(np.asarray(place[0]).dtype))
            scale = max(results, (data or float(noise > 1)) * self.case.f.gain) * noise
            amplification = max(1.0, self.report.amplification)
            if self.case.is_estimated:
                amplification = 1e4
            bounds.append(
                oracle.SLACK * (self.report.error_bound * results + epsilon * amplification * scale)
            )
        return bounds

    def _check_concatenated(self) -> None:
        if any(isinstance(one, (dict, list, tuple)) for one in self.expected):
            return
        joined = self.result.concatenate()
        arrays = [np.asarray(one) for one in self.result]
        wanted = np.stack(arrays) if arrays[0].ndim == 0 else np.concatenate(arrays)
        if joined.shape[0] != sum(len(np.atleast_1d(one)) for one in self.expected):
            raise Finding("wrong concatenation", f"{joined.shape} from results of {self.expected[0].shape}")
        oracle.check_equal(joined, wanted[: len(joined)], "concatenate()")


def cut_all(result: Any, rows: int) -> Any:
    return result[:rows]


def cut_first(result: Any, rows: int) -> Any:
    """The part of a container that has a row for each."""
    if isinstance(result, dict):
        return result | {"rows": result["rows"][:rows]}
    return result._replace(first=result.first[:rows])


def _same_shapes(one: Any, other: Any) -> bool:
    return [np.shape(leaf) for leaf in leaves(one)] == [np.shape(leaf) for leaf in leaves(other)]


def is_finite(leaf: Any) -> bool:
    array = np.asarray(leaf)
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())


def rank_mod_2(matrix: np.ndarray) -> int:
    """Which is full exactly if integers modulo a power of two can be solved for."""
    rows, rank = (np.abs(matrix) % 2).astype(bool), 0
    for column in range(rows.shape[1]):
        pivots = np.flatnonzero(rows[rank:, column]) + rank
        if len(pivots):
            rows[[rank, pivots[0]]] = rows[[pivots[0], rank]]
            others = np.flatnonzero(rows[:, column])
            rows[others[others != rank]] ^= rows[rank]
            rank += 1
    return rank


def check_warnings(told: list[warnings.WarningMessage]) -> None:
    """Words of numpy or Python that were meant for us."""
    for one in told:
        if "polarmap/" in str(one.filename) and not issubclass(one.category, RuntimeWarning):
            raise Finding("foreign warning", f"{one.category.__name__}: {one.message}")
        text = str(one.message)
        of_f = "linalg/gram" in str(one.filename) or "linalg/products" in str(one.filename)
        if (
            "polarmap/" in str(one.filename)
            and "encountered in" in text
            and "in scalar" not in text
            and not of_f
        ):
            raise Finding("foreign warning", f"{one.message} ({one.filename}:{one.lineno})")


# --- drawing -----------------------------------------------------------------------------------


def draw_map(seed: int, executor: str, draw: Draw) -> MapCase:
    if draw.chance(0.12):
        return _over_sequence(seed, executor, draw)
    return _over_array(seed, executor, draw)


def _over_array(seed: int, executor: str, draw: Draw) -> MapCase:
    kind = draw.pick({"polar": 80, "evaluation": 8, "private": 8, "sequential": 4})
    dtype = draw.dtype(0.4 if kind == "polar" else 1.0 if kind == "sequential" else 0.0)
    k, spare = _sizes(draw, executor)
    k = max(k, 2) if kind == "private" else k
    block_rows = draw.number(1, 4)
    total = k * block_rows - (draw.number(0, min(block_rows - 1, k)) if draw.chance(0.4) else 0)
    k, block_rows, total = _settled(k, total)
    inner = tuple(draw.number(1, 4) for _ in range(draw.pick({0: 1, 1: 6, 2: 2})))
    data, layout = draw.laid_out(draw.values((total, *inner), dtype))
    is_nan = dtype.kind in "fc" and draw.chance(0.03)
    if is_nan and layout != "read-only":
        data[(draw.number(0, total - 1), *(0 for _ in inner))] = draw.pick([np.nan, np.inf])
    code, options = _code(draw, kind, k, spare, dtype)
    draw_f = (lambda draw, *_: draw_quadratic(draw)) if kind == "evaluation" and draw.chance(0.6) else None
    chosen: Callable[..., Function] = draw_f or (draw_linear if kind == "evaluation" else draw_function)
    f = chosen(draw, (block_rows, *inner), dtype)
    blocks, rows = _cut(data, k, block_rows)
    options |= _options(draw, executor, kind)
    if dtype in (np.dtype("f8"), np.dtype("c16")) and draw.chance(0.1):
        options["rtol"] = draw.pick([1e-6, 1e-8])
    about = f"{dtype.str} {list(data.shape)}, {layout}{', NaN or inf in it' if is_nan else ''}"
    faults = draw_faults(draw, executor, code.n, code.n - code.recovery_threshold)
    warm = kind == "polar" and executor == "replay" and draw.chance(0.1)
    return MapCase(seed, executor, f, data, blocks, rows, code, options, faults, warm, about)


def _settled(k: int, total: int) -> tuple[int, int, int]:
    """Blocks that all hold a row at least."""
    rows = -(-total // k)
    while rows * (k - 1) >= total:
        total += 1
    return k, rows, total


def _over_sequence(seed: int, executor: str, draw: Draw) -> MapCase:
    k, spare = _sizes(draw, executor)
    first, second = draw.dtype(0.3), draw.dtype(0.3)
    shape = (draw.number(1, 3), draw.number(1, 3))
    blocks = [
        {"x": draw.values(shape, first), "pair": (draw.values((2,), second), float(draw.stream.normal()))}
        for _ in range(k)
    ]
    kinds = {first.kind, second.kind}
    code = PolarCode(k + spare, k, kernel="arikan" if kinds & {"i", "u"} else "rotation")
    options: dict[str, Any] = {"workers": k + spare, **_options(draw, executor, "polar")}
    faults = draw_faults(draw, executor, code.n, spare)
    about = f"{k} blocks of {first.str} {list(shape)}, {second.str} and a number"
    return MapCase(
        seed, executor, draw.pick(NESTED), blocks, blocks, None, code, options, faults, False, about
    )


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
    """The code, and the options that ask for it."""
    exact = dtype.kind in "iu"
    if kind == "evaluation":
        needed = LagrangeCode(4 * k + 64, k, 2, "circle").recovery_threshold
        n = needed + spare + 1
        return LagrangeCode(n, k, 2), {"blocks": k, "workers": n, "degree": 2}
    if kind == "private":
        t = draw.number(1, 2)
        if exact:
            n = workers_for(k, t) + spare
            return MaskedIntegerCode(n, k, t), {"blocks": k, "workers": n, "code": Masked(t)}
        n = k + t + spare + 1
        return MaskedCode(n, k, t, 100.0), {"blocks": k, "workers": n, "code": Masked(t)}
    if kind == "sequential":
        code = PolarCode(k + spare, k, kernel="arikan", decoder="sequential")
        return code, {"blocks": k, "code": code}
    kernel = "auto" if draw.chance(0.7) else "arikan" if exact or draw.chance(0.5) else "rotation"
    used = kernel if kernel != "auto" else "arikan" if exact else "rotation"
    options: dict[str, Any] = {"blocks": k, "workers": k + spare}
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


def _cut(data: np.ndarray, k: int, rows: int) -> tuple[list[np.ndarray], int]:
    """Blocks in native byte order, the last filled up with zeros, and its real rows."""
    native = np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("="))
    padding = np.zeros((k * rows - len(data), *data.shape[1:]), native.dtype)
    blocks = np.concatenate([native, padding]).reshape(k, rows, *data.shape[1:])
    return list(blocks), rows - len(padding)
