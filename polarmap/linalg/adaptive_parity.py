"""When parity tasks of the next of many products start: with the data, or when that is late.

On cores that all tasks share, parity that nobody needs takes its share of the time: of 8 tasks for 6 results
a quarter. Products of one matrix take about as long each time: a task that takes longer than all of the one
before is late.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polarmap.driver.lateness import Floats
from polarmap.driver.options import MapOptions

LATE_FACTOR = 1.5  # times as long as the data of the product before took
MIN_BACKOFF, MAX_BACKOFF = 8, 128  # products whose parity starts with the data, after one that needed it


class AdaptiveParitySchedule:
    """Learns from one product after the other what a task of the next may take, as `RunTimeQuantiles` tell
    it.

    map_options : of all products, whose parity starts with the data.

    Examples
    --------
    >>> AdaptiveParitySchedule(MapOptions()).map_options.schedule  # nothing is known: with the data
    'upfront'
    """

    def __init__(self, options: MapOptions) -> None:
        self._upfront_options = options
        self._on_demand_options = replace(options, schedule="on_demand", run_times=self)
        self._last_seconds = 0.0
        self._n_upfront_left = 0  # so many more products
        self._backoff = MIN_BACKOFF

    @property
    def map_options(self) -> MapOptions:
        """Those of the next product: where parity need not start with the data, it does on demand."""
        if self._n_upfront_left or not self._last_seconds:
            return self._upfront_options
        return self._on_demand_options

    def quantile_given_completion(self, p: Floats) -> Floats:
        """Return the seconds after which a task of the next product is late, for any fraction `p`."""
        return np.full(p.shape, LATE_FACTOR * self._last_seconds)

    def observe_product(self, product_seconds: float, needed_parity: bool) -> None:
        """Take in after how many seconds the last result of the latest product came that it used.

        One that needed parity which had been held back has waited for it: so many products do not, and
        twice as many the next time, until one in between needs none.
        """
        if self._n_upfront_left:
            self._n_upfront_left -= 1
        elif self._last_seconds:
            self._n_upfront_left = self._backoff if needed_parity else 0
            self._backoff = min(MAX_BACKOFF, 2 * self._backoff) if needed_parity else MIN_BACKOFF
        self._last_seconds = product_seconds
