"""Map a seed to a case: its kind, its executor, and everything it consists of."""

from __future__ import annotations

from typing import Any

from polarmap.driver.function_properties import VERIFIED_PROPERTIES
from soak.arrays import draw_array
from soak.changes import draw_data
from soak.deaths import draw_deaths
from soak.draws import Draw
from soak.faults import SHARES, Pools
from soak.maps import draw_map
from soak.oracle import Finding
from soak.products import draw_product
from soak.rows import draw_rows
from soak.states import draw_state
from soak.sums import draw_hedged, draw_sum
from soak.unruly import draw_forks, draw_many, draw_nested

KINDS = {"map": 70, "array": 8, "product": 10, "sum": 6, "hedged": 6}
KINDS_OF_REPLAY = KINDS | {"rows": 2}  # On a virtual clock only, since one case is several hundred maps.
# Kinds of cases on persistent workers on this machine.
KINDS_OF_POOL = {
    "map": 30,
    "fork": 20,
    "change of data": 30,
    "nested map": 10,
    "large map": 10,
    "deaths in batches": 10,
    "state of modules": 20,
}
DRAW = {
    "map": draw_map,
    "array": draw_array,
    "product": draw_product,
    "sum": draw_sum,
    "hedged": draw_hedged,
    "rows": draw_rows,
    "change of data": draw_data,
    "fork": draw_forks,
    "nested map": draw_nested,
    "large map": draw_many,
    "deaths in batches": draw_deaths,
    "state of modules": draw_state,
}


class Named:
    """A case that has a kind and an executor, for a table."""

    def __init__(self, seed: int) -> None:
        self._draw = Draw(seed)
        self.executor: str = self._draw.pick(SHARES)
        kinds = {"pool": KINDS_OF_POOL, "replay": KINDS_OF_REPLAY}.get(self.executor, KINDS)
        self.kind: str = self._draw.pick(kinds)

    def drawn(self) -> Any:
        """Draw the case itself, which can be printed and run."""
        return DRAW[self.kind](self._draw, self.executor)


def run(named: Named, pools: Pools) -> str:
    """Return the verdict on a case. Raise Finding if it violates an expectation."""
    VERIFIED_PROPERTIES.clear()  # Other cases may have verified the same function.
    case = named.drawn()
    try:
        verdict: str = case.run(pools)
    except Finding as finding:
        faults = getattr(case, "faults", None)
        if faults is None or len(faults.misleading) < 2 or not finding.kind.startswith("wrong"):
            raise
        return "wrong, where several workers mislead"  # No result is promised if several workers mislead.
    return verdict
