"""Data that changes after `submit` returned or between maps, and attributes that f reads and that change."""

from __future__ import annotations

import gc
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import polarmap
from polarmap.errors import NotLinearError, PolarmapError
from polarmap.run.trusted import TRUSTED
from soak import oracle
from soak.draws import Draw
from soak.faults import Pools
from soak.oracle import Finding
from soak.unruly import ROUNDING, TIMEOUT, check_coded

# --- data ---------------------------------------------------------------------------------------


def tripled(block: Any) -> Any:
    return 3 * block


@dataclass
class DataCase:
    """Maps of one array, which is written into after each began, or freed and made again.

    moment : "after submit", "between maps" or "freed": another array may get its address and its id.
    """

    moment: str
    verb: str
    shape: tuple[int, int]
    rounds: int
    is_list: bool

    def __str__(self) -> str:
        kind = "a list of blocks" if self.is_list else "an array"
        return f"{self.verb} of {kind}, {list(self.shape)}, changed {self.moment}, {self.rounds} times"

    def run(self, pools: Pools) -> str:
        pool, refused = pools.executor("pool", None, 0), 0
        A = self._data(0)
        for number in range(self.rounds):
            wanted = [tripled(block) for block in np.split(np.array(A), 4)]
            future = self._submit(A, pool)
            if self.moment != "after submit":
                future.exception(TIMEOUT)
            if self.moment == "freed":
                del A
                gc.collect()
                A = self._data(number + 1)
            else:
                A[...] = self._data(number + 1)
            refused += self._is_refused(future, wanted)
        return f"right, {refused} refused" if refused else f"right (changed {self.moment})"

    def _data(self, number: int) -> np.ndarray:
        return np.arange(float(np.prod(self.shape))).reshape(self.shape) * 7.0 + 1000.0 * number

    def _submit(self, A: np.ndarray, pool: Any) -> Any:
        data: Any = np.split(A, 4) if self.is_list else A
        options: dict[str, Any] = {"executor": pool, "timeout": TIMEOUT, "progress": False}
        if self.verb == "coded_map":
            options["workers"] = 6
        if not self.is_list:
            options["blocks"] = 4
        return polarmap.submit(tripled, data, verb=getattr(polarmap, self.verb), **options)

    def _is_refused(self, future: Any, wanted: list[np.ndarray]) -> bool:
        """Whether the map says that its data was changed; a Finding if its results are not the old data's."""
        try:
            found = list(future.result(TIMEOUT))
        except PolarmapError as error:
            if self.moment == "after submit" and "chang" in str(error):
                return True
            raise
        allowed = [ROUNDING * max(map(oracle.largest, wanted))]  # of what a lost block is decoded from
        for one, other in zip(found, wanted, strict=True):
            oracle.check_close(one, other, allowed, f"a map {self.moment}")
        return False


def draw_data(seed: int, executor: str, draw: Draw) -> DataCase:
    rows = 4 * draw.pick([1, 5, 400, 4_000])
    return DataCase(
        draw.pick(["after submit", "between maps", "freed"]),
        draw.pick(["coded_map", "hedged_map"]),
        (rows, draw.number(1, 40)),
        draw.number(2, 6),
        draw.chance(0.3),
    )


# --- attributes ---------------------------------------------------------------------------------


class Settings:
    """What a function may read."""

    power = 1.0
    factor = 2.0


MODULE = types.ModuleType("soak_settings")


class Nested:
    inner = Settings


def by_class(block: Any) -> Any:
    return Settings.factor * block**Settings.power


def by_nested(block: Any) -> Any:
    return Nested.inner.factor * block**Nested.inner.power


def by_module(block: Any) -> Any:
    return MODULE.factor * block**MODULE.power


TABLE = {"power": 1.0, "factor": 2.0}


def by_table(block: Any) -> Any:
    return TABLE["factor"] * block ** TABLE["power"]


class Model:
    """An object that is called, or whose method is f."""

    def __init__(self) -> None:
        self.power, self.factor = 1.0, 2.0

    def __call__(self, block: Any) -> Any:
        return self.factor * block**self.power

    def method(self, block: Any) -> Any:
        return self(block)


def set_table(power: float, factor: float) -> None:
    TABLE.update(power=power, factor=factor)


def set_on(target: Any) -> Callable[[float, float], None]:
    def change(power: float, factor: float) -> None:
        target.power, target.factor = power, factor

    return change


def reader(way: str) -> tuple[Callable[[Any], Any], Callable[[float, float], None]]:
    """A function and how what it reads is changed."""
    model = Model()
    closure = {"power": 1.0, "factor": 2.0}

    def by_closure(block: Any) -> Any:
        return closure["factor"] * block ** closure["power"]

    return {
        "a class": (by_class, set_on(Settings)),
        "a class of a class": (by_nested, set_on(Settings)),
        "a module": (by_module, set_on(MODULE)),
        "a global dict": (by_table, set_table),
        "a closure": (by_closure, lambda power, factor: closure.update(power=power, factor=factor)),
        "an object": (model, set_on(model)),
        "a method": (model.method, set_on(model)),
    }[way]


@dataclass
class AttributeCase:
    """Maps of one f, between which what it reads changes: what was found of it may not hold any more."""

    way: str
    values: list[tuple[float, float]]  # power and factor
    lost: int

    def __str__(self) -> str:
        return f"f reads {self.way}: power and factor {self.values}; worker {self.lost} lost"

    def run(self, pools: Pools) -> str:
        TRUSTED.clear()
        f, change = reader(self.way)
        A = np.random.default_rng(0).uniform(1.0, 2.0, (12, 3))
        told = 0
        for power, factor in self.values:
            change(power, factor)
            told += self._map(f, A, lambda block: factor * block**power, power == 1.0)  # noqa: B023
        return f"right, {told} refused" if told else "right"

    def _map(
        self, f: Callable[[Any], Any], A: np.ndarray, wanted: Callable[[Any], Any], is_linear: bool
    ) -> bool:
        """Whether it was refused, which a map that is not linear has to be."""
        executor = polarmap.ReplayExecutor({self.lost: float("inf")})
        try:
            check_coded(f, A, wanted, executor=executor, timeout=1000.0)
        except NotLinearError:
            if is_linear:
                raise
            return True
        if not is_linear:
            raise Finding("no error", f"f is no longer linear, and block {self.lost} was decoded")
        return False


def draw_attributes(seed: int, executor: str, draw: Draw) -> AttributeCase:
    ways = [
        "a class",
        "a class of a class",
        "a module",
        "a global dict",
        "a closure",
        "an object",
        "a method",
    ]
    later = [(draw.pick([1.0, 1.0, 2.0, 3.0]), float(draw.number(1, 9))) for _ in range(draw.number(1, 4))]
    return AttributeCase(draw.pick(ways), [(1.0, 2.0), *later], draw.number(0, 3))
