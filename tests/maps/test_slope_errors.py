from __future__ import annotations

import numpy as np
import pytest

from polarmap.maps.slope_errors import SLACK, SlopeErrors
from polarmap.worker.finite_differences import Sizes

H = 1e-3


def received(*sizes: dict[str, float]) -> list[list[np.ndarray]]:
    usual = {"lowest": 1.0, "highest": 2.0, "longest": 1.0, "eps": 1e-16, "curvature": 0.5}
    return [[np.zeros(2), np.array([(usual | one)[name] for name in Sizes._fields])] for one in sizes]


def test_truncation_is_judged_by_how_much_f_changes_or_bends() -> None:
    slopes, sizes = SlopeErrors(H, "central")(received({}, {}, {}))
    assert slopes == pytest.approx(SLACK * (1e-16 * 2 + H * 1.0) / H)
    assert sizes == np.inf  # not meant to be decoded
    slopes, _ = SlopeErrors(H, "forward")(received({}, {}, {}))
    assert slopes == pytest.approx(SLACK * (1e-16 * 2 + 0.5) / H)


@pytest.mark.parametrize("wrong", [{"highest": 1e9}, {"longest": 1e9}, {"eps": 1.0}, {"highest": np.nan}])
def test_one_worker_alone_cannot_make_the_errors_larger(wrong: dict[str, float]) -> None:
    honest, _ = SlopeErrors(H, "central")(received({}, {}, {}))
    with_a_liar, _ = SlopeErrors(H, "central")(received({}, {}, {}, wrong))
    assert with_a_liar == pytest.approx(honest)
