"""Choose adaptively when parity tasks of repeated products start: with the data, or once it is late.

If all tasks share the cores of this machine, parity tasks whose results are not needed slow down the data
tasks. With 8 tasks for 6 results they take a quarter of the time. Repeated products of one matrix take about
the same time, so a task is late if it takes longer than every task of the previous product.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polarmap.driver.lateness import Floats
from polarmap.driver.options import MapOptions

LATE_FACTOR = 1.5  # a task is late after this factor times the duration of the previous product
# After a product that needed parity, this number of products start parity tasks with the data.
MIN_BACKOFF, MAX_BACKOFF = 8, 128


class AdaptiveParitySchedule:
    """Learns from each product when a task of the next one is late, and when its parity should start.

    It has the interface of `RunTimeQuantiles`, with one quantile for every probability.

    Parameters
    ----------
    options : MapOptions
        The options of all products, whose parity starts with the data.

    Examples
    --------
    >>> AdaptiveParitySchedule(MapOptions()).map_options.schedule  # nothing is known yet
    'upfront'
    """

    def __init__(self, options: MapOptions) -> None:
        self._upfront_options = options
        self._on_demand_options = replace(options, schedule="on_demand", run_times=self)
        self._last_seconds = 0.0
        self._n_upfront_left = 0  # products for which parity still starts with the data
        self._backoff = MIN_BACKOFF

    @property
    def map_options(self) -> MapOptions:
        """The options of the next product, with parity on demand unless it should start with the data."""
        if self._n_upfront_left or not self._last_seconds:
            return self._upfront_options
        return self._on_demand_options

    def quantile_given_completion(self, p: Floats) -> Floats:
        """Return the seconds after which a task of the next product is late, for any fraction `p`."""
        return np.full(p.shape, LATE_FACTOR * self._last_seconds)

    def observe_product(self, product_seconds: float, needed_parity: bool) -> None:
        """Record a product, and choose the schedule of the next ones.

        A product that needs parity tasks which were held back has to wait for them. The next products
        therefore start parity with the data. Their number doubles each time, until a product on demand
        needs no parity.

        Parameters
        ----------
        product_seconds : float
            Seconds until the last result that the product used arrived.
        needed_parity : bool
            Whether results of parity tasks were used.
        """
        if self._n_upfront_left:
            self._n_upfront_left -= 1
        elif self._last_seconds:
            self._n_upfront_left = self._backoff if needed_parity else 0
            self._backoff = min(MAX_BACKOFF, 2 * self._backoff) if needed_parity else MIN_BACKOFF
        self._last_seconds = product_seconds
