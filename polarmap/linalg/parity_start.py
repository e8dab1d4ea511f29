"""When parity tasks of the next of many products start: with the data, or when that is late.

On cores that all tasks share, parity that nobody needs takes its share of the time: of 8 tasks for 6 results
a quarter. Products of one matrix take about as long each time: a task that takes longer than all of the one
before is late.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polarmap.run.lateness import Floats
from polarmap.run.options import MapOptions

LEEWAY = 1.5  # times as long as the data of the product before took
FEWEST, MOST = 8, 128  # products whose parity starts with the data, after one that needed it


class ParityStart:
    """Learns from one product after the other what a task of the next may take, as `RunTimes` tell it.

    options : of all products, whose parity starts with the data.

    Examples
    --------
    >>> ParityStart(MapOptions()).options.schedule  # nothing is known: with the data
    'upfront'
    """

    def __init__(self, options: MapOptions) -> None:
        self._with_it, self._later = options, replace(options, schedule="on_demand", runtimes=self)
        self._took = 0.0
        self._with_data = 0  # so many more products
        self._pause = FEWEST

    @property
    def options(self) -> MapOptions:
        """Those of the next product: where parity need not start with the data, it does on demand."""
        return self._with_it if self._with_data or not self._took else self._later

    def conditional_quantile(self, cdf: Floats, survival: Floats) -> Floats:
        """The seconds that no task should take, of any share."""
        return np.full(cdf.shape, LEEWAY * self._took)

    def learn(self, took: float, needed_parity: bool) -> None:
        """Take in after how many seconds the last result of the latest product came that it used.

        One that needed parity which had been held back has waited for it: so many products do not, and
        twice as many the next time, until one in between needs none.
        """
        if self._with_data:
            self._with_data -= 1
        elif self._took:
            self._with_data = self._pause if needed_parity else 0
            self._pause = min(MOST, 2 * self._pause) if needed_parity else FEWEST
        self._took = took
