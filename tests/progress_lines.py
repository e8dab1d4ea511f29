"""Parse lines of progress into numbers."""

from __future__ import annotations

import re


def parsed_lines(text: str) -> list[dict[str, float]]:
    """Return "iteration", "objective", "gradient" and "seconds" of each line; the name before is dropped."""
    lines = []
    for line in text.splitlines():
        words = dict(re.findall(r"(iteration|objective|gradient) ([\d.e+-]+)", line))
        seconds_match = re.search(r", ([\d.]+) s(,|$)", line)
        assert seconds_match, line
        lines.append(
            {name: float(number) for name, number in words.items()} | {"seconds": float(seconds_match[1])}
        )
    return lines
