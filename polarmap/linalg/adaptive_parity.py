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

# A task is considered late if it has run LATE_FACTOR times as long as the whole previous product.
LATE_FACTOR = 1.5
# If a product had to wait for parity tasks, this is the number of next products that start parity tasks
# together with the data tasks. Each time this happens again, the number doubles, up to the maximum.
MIN_BACKOFF, MAX_BACKOFF = 8, 128


class AdaptiveParitySchedule:
    """Decides when the parity tasks of the next product start, based on the previous products.

    Parity tasks are redundant: their results replace those of late data tasks. They start either together
    with the data tasks or on demand, i.e. when a data task is late. For parity on demand, this object is also
    the argument `run_times=` of `MapOptions`, which defines when a task is late.

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
        # The number of next products that start parity tasks together with the data tasks.
        self._n_upfront_left = 0
        self._backoff = MIN_BACKOFF

    @property
    def map_options(self) -> MapOptions:
        """The options for the map that computes the next product.

        Usually, parity tasks start only when a data task is late. In the first product, and for some time
        after a product that needed parity, they start together with the data tasks.
        """
        if self._n_upfront_left or not self._last_seconds:
            return self._upfront_options
        return self._on_demand_options

    def quantile_given_completion(self, p: Floats) -> Floats:
        """Return the time in seconds after which a task of the next product counts as late.

        `MapOptions` expects a distribution of run times, whose method with this name returns one quantile for
        each probability in `p`. Here, all these quantiles are the same time.
        """
        return np.full(p.shape, LATE_FACTOR * self._last_seconds)

    def record_product(self, product_seconds: float, needed_parity: bool) -> None:
        """Record the outcome of a product, and choose the schedule of the next products.

        If parity tasks start on demand, a product that needs their results has to wait for them. The next
        MIN_BACKOFF products then start parity tasks together with the data tasks. Each time this happens
        again, their number doubles, up to MAX_BACKOFF (exponential backoff). A product with parity on demand
        that needs no parity resets the number.

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
