"""Data that changes after `submit` has returned, or between maps."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import numpy as np

import polarmap
from polarmap.errors import PolarmapError
from soak import oracle
from soak.draws import Draw
from soak.faults import Pools
from soak.unruly import ROUNDING, TIMEOUT


def tripled(block: Any) -> Any:
    return 3 * block


@dataclass
class DataCase:
    """Maps of one array that is modified after each map has begun, or freed and created again.

    Attributes
    ----------
    moment : str
        "after submit", "between maps", or "freed", where another array may get the address and id of the old
        one.
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
        options: dict[str, Any] = {"tasks": 6} if self.verb == "coded_map" else {}
        if not self.is_list:
            options["blocks"] = 4
        data: Any = np.split(A, 4) if self.is_list else A
        verb = getattr(polarmap, self.verb)
        return polarmap.submit(verb, tripled, data, executor=pool, timeout=TIMEOUT, progress=False, **options)

    def _is_refused(self, future: Any, wanted: list[np.ndarray]) -> bool:
        """Return whether the map reports changed data. Raise Finding if it used the new data."""
        try:
            results = list(future.result(TIMEOUT))
        except PolarmapError as error:
            if self.moment == "after submit" and "chang" in str(error):
                return True
            raise
        # A lost block is decoded from blocks of this size.
        allowed = [ROUNDING * max(map(oracle.largest, wanted))]
        for one, expected in zip(results, wanted, strict=True):
            oracle.check_close(one, expected, allowed, f"a map {self.moment}")
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
