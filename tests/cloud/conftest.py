"""Mark all tests below this folder, which need their own servers or packages: `make cloud-test` runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Warnings of the clouds' client libraries about open sockets and deprecated calls.
OF_OTHERS = (
    "ResourceWarning",
    "DeprecationWarning",
    "FutureWarning",
    "pytest.PytestUnraisableExceptionWarning",
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Ignore this folder unless its tests are selected, so that missing packages cause no skips."""
    return (config.option.markexpr == "not cloud" and collection_path.name.startswith("test_")) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cloud)
            item.add_marker(pytest.mark.timeout(600))
            for warning in OF_OTHERS:
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{warning}"))
