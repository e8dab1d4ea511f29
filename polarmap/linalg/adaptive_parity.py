"""Choose when the parity tasks of repeated products start: together with the data tasks, or on demand.

If all tasks share the cores of one machine, parity tasks that turn out to be unnecessary slow down the data
tasks. With 8 tasks for 6 results they take a quarter of the time. It is then better to start parity tasks
only when a data task is late. Repeated products of one matrix take about the same time, so a task counts as
late if it takes much longer than the whole previous product.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polarmap.driver.lateness import Floats
from polarmap.driver.options import MapOptions

# A task is late after this many times the duration of the previous product.
LATE_FACTOR = 1.5
# After a product that needed parity, this many products start parity tasks together with the data tasks.
MIN_BACKOFF, MAX_BACKOFF = 8, 128


class AdaptiveParitySchedule:
    """A schedule that learns from each product when the parity tasks of the next product should start.

    It can be passed as `run_times=` of `MapOptions` in place of `RunTimeQuantiles`. All quantiles are the
    same number then.

    Parameters
    ----------
    options : MapOptions
        Options of all products, with parity tasks that start together with the data tasks.

    Examples
    --------
    >>> AdaptiveParitySchedule(MapOptions()).map_options.schedule  # No product has been observed yet.
    'upfront'
    """

    def __init__(self, options: MapOptions) -> None:
        self._upfront_options = options
        self._on_demand_options = replace(options, schedule="on_demand", run_times=self)
        self._last_seconds = 0.0
        self._n_upfront_left = 0  # The number of products that still start parity with the data.
        self._backoff = MIN_BACKOFF

    @property
    def map_options(self) -> MapOptions:
        """The options of the next product.

        Parity tasks start on demand, except for the first product and for some products after one that needed
        parity.
        """
        if self._n_upfront_left or not self._last_seconds:
            return self._upfront_options
        return self._on_demand_options

    def quantile_given_completion(self, p: Floats) -> Floats:
        """Return the number of seconds after which a task of the next product counts as late.

        It is the same number for every probability in `p`.
        """
        return np.full(p.shape, LATE_FACTOR * self._last_seconds)

    def observe_product(self, product_seconds: float, needed_parity: bool) -> None:
        """Record how a product went, and choose the schedule of the next products.

        A product whose parity tasks start only when they are needed has to wait for them. If this happens, a
        number of following products start parity tasks together with the data tasks. The number doubles each
        time, until a product with parity on demand needs no parity.

        Parameters
        ----------
        product_seconds : float
            Seconds from the start of the product to the arrival of the last result that it used.
        needed_parity : bool
            Whether results of parity tasks were needed to decode.
        """
        if self._n_upfront_left:
            self._n_upfront_left -= 1
        elif self._last_seconds:
            self._n_upfront_left = self._backoff if needed_parity else 0
            self._backoff = min(MAX_BACKOFF, 2 * self._backoff) if needed_parity else MIN_BACKOFF
        self._last_seconds = product_seconds
