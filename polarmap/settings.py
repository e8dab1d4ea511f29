"""What the caller of coded_map chose, beside the data and the code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The options of coded_map that the collector follows; see there."""

    verify: bool | str = "auto"
    rtol: float | None = None
    timeout: float | None = None
    retries: int = 1
