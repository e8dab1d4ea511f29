"""Maps of coded blocks on a virtual clock, as the tests of a codeword need them."""

from __future__ import annotations

import math

from polarmap import ReplayExecutor


def losing(*lost: int) -> ReplayExecutor:
    """These tasks never report; the others do after a second."""
    return ReplayExecutor(dict.fromkeys(lost, math.inf))
