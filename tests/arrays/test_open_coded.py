"""Opening by name."""

from __future__ import annotations

import numpy as np
import pytest

import polarmap
from polarmap.errors import MissingObjectError

pytestmark = pytest.mark.every_store


def test_unknown_name_says_which_there_are(store):
    with pytest.raises(MissingObjectError, match=r"no coded array 'b' in .*; there are: none"):
        polarmap.open_coded("b", store)
    polarmap.encode(np.arange(8.0), name="a", storage=store)
    with pytest.raises(MissingObjectError, match="there are: 'a'"):
        polarmap.open_coded("b", store)
