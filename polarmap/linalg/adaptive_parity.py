"""Choose when the parity tasks of repeated products start: together with the data tasks, or on demand.

If all tasks share the cores of one machine, unnecessary parity tasks slow down the data tasks: with 2 parity
tasks for 6 data tasks, they take a quarter of the time. It is then better to start parity tasks only when a
data task is late. Repeated products of one matrix take about the same time, so a task counts as late if it
takes much longer than the whole previous product.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polarmap.driver.lateness import Floats
from polarmap.driver.options import MapOptions

# A task counts as late after this many times the duration of the previous product.
LATE_FACTOR = 1.5
# After a product that needed parity, this many following products start parity tasks together with the data
# tasks. The number doubles from the minimum to the maximum (exponential backoff).
MIN_BACKOFF, MAX_BACKOFF = 8, 128


class AdaptiveParitySchedule:
    """Learns from previous products when the parity tasks of the next product should start.

    Parity tasks are redundant tasks, whose results replace late ones. The object also serves as the argument
    `run_times=` of `MapOptions`, where it defines the time after which a task counts as late.

    Parameters
    ----------
    options : MapOptions
        Options shared by all products, with parity tasks that start together with the data tasks.

    Examples
    --------
    >>> AdaptiveParitySchedule(MapOptions()).map_options.schedule  # No product has been observed yet.
    'upfront'
    """

    def __init__(self, options: MapOptions) -> None:
        self._upfront_options = options
        self._on_demand_options = replace(options, schedule="on_demand", run_times=self)
        self._last_seconds = 0.0
        self._n_upfront_left = 0  # The number of following products that start parity tasks at once.
        self._backoff = MIN_BACKOFF

    @property
    def map_options(self) -> MapOptions:
        """The options of the next product.

        Parity tasks start on demand, with two exceptions: in the first product, and in some products after
        one that needed parity, they start together with the data tasks.
        """
        if self._n_upfront_left or not self._last_seconds:
            return self._upfront_options
        return self._on_demand_options

    def quantile_given_completion(self, p: Floats) -> Floats:
        """Return the time in seconds after which a task of the next product counts as late.

        This method takes the place of a quantile function of run times, but the time is the same for every
        probability in `p`.
        """
        return np.full(p.shape, LATE_FACTOR * self._last_seconds)

    def record_product(self, product_seconds: float, needed_parity: bool) -> None:
        """Record the outcome of a product and choose the schedule of the next products.

        If parity tasks start only on demand, a product that needs parity has to wait for them. After this has
        happened, the next few products start parity tasks together with the data tasks (exponential backoff).
        Their number doubles each time, until a product with parity on demand needs no parity.

        Parameters
        ----------
        product_seconds : float
            Seconds from the start of the product to the arrival of the last result that it used.
        needed_parity : bool
            Whether some result had to be decoded from results of parity tasks.
        """
        if self._n_upfront_left:
            self._n_upfront_left -= 1
        elif self._last_seconds:
            self._n_upfront_left = self._backoff if needed_parity else 0
            self._backoff = min(MAX_BACKOFF, 2 * self._backoff) if needed_parity else MIN_BACKOFF
        self._last_seconds = product_seconds
