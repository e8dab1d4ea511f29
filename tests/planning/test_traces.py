"""The recorded run times of a training job."""

from __future__ import annotations

import numpy as np

from polarmap.planning import (
    training_trace,
)


def test_the_recorded_trace_is_what_its_source_says() -> None:
    distribution = training_trace()  # median 1, 95 % 2.2, 99 % 2.5
    np.testing.assert_allclose(distribution.quantile([0.5, 0.95, 0.99]), [1.0, 2.2, 2.5], atol=0.05)
