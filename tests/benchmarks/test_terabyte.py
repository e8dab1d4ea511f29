"""Check that the page has the table of the terabyte estimate, and recompute its entries by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import terabyte
from benchmarks.terabyte import BANDWIDTH, DATA_BYTES, LATENCY, MatrixLayout

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coded-arrays.md"


def test_the_page_has_the_figures_of_the_script() -> None:
    text = PAGE.read_text()
    assert "\n".join(terabyte.format_table()) in text
    slow, fast = (
        [one.seconds for _, one in terabyte.estimate_operations(100, 75, speed)] for speed in (50e6, 100e6)
    )
    words = " ".join(text.split())
    assert f"takes {slow[0]:.0f} and {fast[0]:.0f} s to encode" in words
    assert f"{slow[1]:.0f} and {fast[1]:.0f} s for a product, {slow[3]:.0f} and {fast[3]:.0f} s for" in words


def test_a_coded_product_computed_by_hand() -> None:
    # (100, 75) with 10,000 workers and 100 parts of 2.1 MB each; the slow 5 % of the workers are not awaited.
    assert round(DATA_BYTES / 1e12, 2) == 1.58
    estimate, block = MatrixLayout(100, 75).product(operand_size=0), DATA_BYTES / 7500
    seconds = 100 * LATENCY + block / BANDWIDTH + block / 2e9
    assert estimate.seconds == pytest.approx(seconds + 1)
    assert estimate.n_requests == 1e6
    compute = 10_000 * (seconds + 1) * 1769 / 1024 * 1.66667e-5
    # The rest is calls, marker objects and polls.
    assert estimate.dollars == pytest.approx(compute + 1e6 * 0.4e-6, rel=0.15)


def test_a_plain_product_computed_by_hand() -> None:
    # All 10,000 workers hold data, and the slow ones take five times as long.
    estimate, block = MatrixLayout(100, 75).plain_product(with_backups=False), DATA_BYTES / 10_000
    seconds = LATENCY + (block + 4 * 196_608) / BANDWIDTH + block / 2e9
    assert estimate.seconds == pytest.approx(5 * seconds + 1)
    assert estimate.n_requests == 10_000
    assert (
        f"{block / 1e6:.0f} MB" in PAGE.read_text()
        and f"{DATA_BYTES / 7500 / 1e6:.0f} MB" in PAGE.read_text()
    )


def test_encoding_computed_by_hand() -> None:
    # (100, 75): every worker reads 75 parts and writes 25; slow workers get a backup copy.
    estimate = MatrixLayout(100, 75).encode()
    block = DATA_BYTES / 7500
    seconds = 100 * LATENCY + (block + 8 * 75 * 25) / BANDWIDTH + 0.75 * block / 600e6
    assert estimate.seconds == pytest.approx(2 * seconds + 1)
    assert estimate.n_requests == 1e6
    assert estimate.dollars > 750e3 * 0.4e-6 + 250e3 * 5e-6
