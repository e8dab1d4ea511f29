from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool
