from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain import assert_same, plain_map

import polarmap
from polarmap import coded_map
from polarmap.testing import ReplayExecutor
from polarmap.types import CodedResult

DATA = np.random.default_rng(0).standard_normal((60, 4))


def double(block: Any) -> Any:
    return 2 * block


def doubled(**options: Any) -> CodedResult:
    return coded_map(double, DATA, **{"executor": ReplayExecutor()} | options)


def test_the_result_is_a_sequence() -> None:
    result = doubled(blocks=6)
    expected = plain_map(double, DATA, 6)
    assert isinstance(result, Sequence)
    assert len(result) == 6
    assert_same(result, expected)
    assert_same([result[i] for i in range(-6, 6)], 2 * expected)
    assert_same(result[1:-1:2], expected[1:-1:2])
    assert_same(reversed(result), expected[::-1])
    with pytest.raises(IndexError):
        result[6]


def test_the_result_says_what_it_is() -> None:
    late = ReplayExecutor({1: math.inf, 4: math.inf})
    assert (
        repr(doubled(blocks=6, tasks=9, executor=late, timeout=100)) == "<CodedResult of 6 blocks, 2 decoded>"
    )


def test_results_are_writable_and_do_not_share_memory() -> None:
    result = coded_map(
        lambda block: (block, block.sum(axis=0)), DATA, blocks=6, executor=ReplayExecutor({2: 9.0})
    )
    for rows, sums in result:
        rows[...] = 0
        assert sums.any()


def test_type_checkers_know_what_f_returns_and_find_misspelt_options(
    tmp_path: Path,
) -> None:
    pytest.importorskip("mypy")
    source = tmp_path / "typed.py"
    source.write_text(
        "import polarmap\n"
        "from polarmap import *\n"
        "def f(block: object) -> float: return 1.0\n"
        "reveal_type(coded_map(f, [1])[0])\n"
        "reveal_type(coded_map(f, [1], out=polarmap.arrays.Stored('a')))\n"
        "coded_map(f, [1], schedule='on demand')\n"
        "coded_map(f, [1], deadline=3)\n"
        "polarmap.coded_mop\n"
    )
    config = tmp_path / "mypy.ini"  # what polarmap stands on is of no interest, and takes the most time
    config.write_text("[mypy]\nfollow_imports = skip\n[mypy-polarmap.*]\nfollow_imports = silent\n")
    # Seen from there polarmap is installed: its functions are not checked. In a process of its own, as
    # the objects of mypy would stay in this one, and take as long to be freed as to be made.
    command = [sys.executable, "-m", "mypy", str(source), "--config-file", str(config)]
    path = {"PYTHONPATH": str(Path(polarmap.__file__).parents[1])}
    told = subprocess.run(
        [*command, "--cache-dir", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | path,
        capture_output=True,
        text=True,
    ).stdout
    lines = [line.partition(": ")[2] for line in told.splitlines() if "overload variants" not in line]
    assert 'note: Revealed type is "float"' in lines
    assert 'note: Revealed type is "polarmap.arrays.stored_result.StoredResult[float]"' in lines
    assert any("Unexpected keyword argument" in line for line in lines)
    assert any('Module has no attribute "coded_mop"' in line for line in lines)
    assert {line.split(":")[1] for line in told.splitlines() if ": error:" in line} == {"6", "7", "8"}
