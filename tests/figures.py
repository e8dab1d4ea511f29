"""What every figure must do."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure


def rendered(figure: Figure, folder: Path) -> None:
    """It can be drawn."""
    figure.savefig(folder / "figure.png", dpi=50)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
