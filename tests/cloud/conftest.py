"""Everything below this folder needs servers or packages of its own: `make cloud-test` runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
# What the clouds' client libraries do: sockets left open, calls that will go away.
OF_OTHERS = (
    "ResourceWarning",
    "DeprecationWarning",
    "FutureWarning",
    "pytest.PytestUnraisableExceptionWarning",
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not skip tests for missing packages when no test of this folder is selected."""
    return (config.option.markexpr == "not cloud" and collection_path.name.startswith("test_")) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cloud)
            item.add_marker(pytest.mark.timeout(600))
            for warning in OF_OTHERS:
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{warning}"))
