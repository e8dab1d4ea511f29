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

    def run(self, pools: Pools) -> str:
        pool, refused = pools.pool("pool"), 0
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
        options: dict[str, Any] = {"workers": 6} if self.verb == "coded_map" else {}
        if not self.is_list:
            options["blocks"] = 4
        data: Any = np.split(A, 4) if self.is_list else A
        verb = getattr(polarmap, self.verb)
        return polarmap.submit(
            tripled, data, verb=verb, executor=pool, timeout=TIMEOUT, progress=False, **options
        )

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


def draw_data(draw: Draw, executor: str) -> DataCase:
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

    power, factor = 1.0, 2.0


class Nested:
    inner = Settings


MODULE = types.ModuleType("soak_settings")
TABLE = {"power": 1.0, "factor": 2.0}


class Model:
    """An object that is called, or whose method is f."""

    def __init__(self) -> None:
        self.power, self.factor = 1.0, 2.0

    def __call__(self, block: Any) -> Any:
        return self.factor * block**self.power

    def method(self, block: Any) -> Any:
        return self(block)


def by_class(block: Any) -> Any:
    return Settings.factor * block**Settings.power


def by_nested(block: Any) -> Any:
    return Nested.inner.factor * block**Nested.inner.power


def by_module(block: Any) -> Any:
    return MODULE.factor * block**MODULE.power


def by_table(block: Any) -> Any:
    return TABLE["factor"] * block ** TABLE["power"]


def readers() -> dict[str, tuple[Callable[[Any], Any], Any]]:
    """Functions and what they read: a dictionary, or something with attributes."""
    model, closure = Model(), {"power": 1.0, "factor": 2.0}

    def by_closure(block: Any) -> Any:
        return closure["factor"] * block ** closure["power"]

    return {
        "a class": (by_class, Settings),
        "a class of a class": (by_nested, Settings),
        "a module": (by_module, MODULE),
        "a global dict": (by_table, TABLE),
        "a closure": (by_closure, closure),
        "an object": (model, model),
        "a method": (model.method, model),
    }


def change(read: Any, **values: float) -> None:
    """Set what a function reads."""
    if isinstance(read, dict):
        read.update(values)
    else:
        for name, value in values.items():
            setattr(read, name, value)


@dataclass
class AttributeCase:
    """Maps of one f, between which what it reads changes: what was found of it may not hold any more."""

    way: str
    values: list[tuple[float, float]]  # power and factor
    lost: int

    def run(self, pools: Pools) -> str:
        f, read = readers()[self.way]
        A = np.random.default_rng(0).uniform(1.0, 2.0, (12, 3))
        told = 0
        for power, factor in self.values:
            change(read, power=power, factor=factor)
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


def draw_attributes(draw: Draw, executor: str) -> AttributeCase:
    later = [(draw.pick([1.0, 1.0, 2.0, 3.0]), float(draw.number(1, 9))) for _ in range(draw.number(1, 4))]
    return AttributeCase(draw.pick(list(readers())), [(1.0, 2.0), *later], draw.number(0, 3))
