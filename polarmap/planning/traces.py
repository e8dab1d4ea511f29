"""Run times of the tasks of one large training job: real ones, with a bimodal distribution.

Of 45,056 forward and backward operations, each relative to the median of its operation and
pipeline stage: training_trace.txt has 1,000 means of equal shares, ascending, in units of 1e-4. Derived from
data/trace-AR.parquet of ByteDance-Seed/StragglerAnalysis, Copyright ByteDance, Apache License 2.0
(https://www.apache.org/licenses/LICENSE-2.0); changed: two operation types kept, durations made
relative, reduced to these numbers. Not serverless functions: no cold starts, no failures.
"""

from __future__ import annotations

from importlib import resources

import numpy as np

from polarmap.planning.empirical import Empirical


def training_trace() -> Empirical:
    """The distribution of the recorded run times, in multiples of the median.

    Examples
    --------
    >>> training_trace().quantile([0.5, 0.95, 0.99]).round(2).tolist()
    [1.0, 2.23, 2.49]
    """
    means = resources.files(__package__).joinpath("training_trace.txt").read_text(encoding="ascii")
    return Empirical(np.array(means.split(), float) / 1e4)
