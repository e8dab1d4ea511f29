"""Maps of functions that are defined in a main program instead of an importable module.

In some programs f itself calls polarmap, and in others child processes of the program start the maps.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PATIENCE = 100.0

NESTED = f"""
import numpy as np
import polarmap

def mapped(row):
    return float(np.sum(polarmap.coded_map(np.negative, row, blocks=2, tasks=3, timeout={PATIENCE})))

def hedged(row):
    return float(sum(polarmap.hedged_map(np.negative, list(row), timeout={PATIENCE})))

def submitted(row):
    return float(np.sum(polarmap.submit(polarmap.coded_map, np.negative, row, blocks=2).result({PATIENCE})))

def summed(row):
    return -float(polarmap.coded_sum(np.sum, row, tasks=4, timeout={PATIENCE}).value)

def sloped(row):
    result = polarmap.coded_gradient(lambda x: -x @ row, np.ones(4), timeout={PATIENCE})
    return float(result.gradient.round(6).sum())

def called(row):
    with polarmap.Executor(workers=1) as executor:
        return float(sum(executor.map(np.negative, row)))

def every(row):  # runs on a single worker, which starts its own workers only once
    return [f(row) for f in (mapped, hedged, submitted, summed, sloped, called)]

if __name__ == "__main__":
    rows = list(np.arange(8.0).reshape(2, 4))
    assert list(polarmap.hedged_map(every, rows[1:], timeout={PATIENCE})) == [6 * [-22.0]]
    with polarmap.Executor() as executor:
        assert executor.submit(mapped, rows[1]).result({PATIENCE}) == -22.0
    total = polarmap.coded_map(mapped, rows, tasks=3, timeout={PATIENCE})
    assert np.allclose(list(total), [-6.0, -22.0])
"""

CHILDREN = f"""
import multiprocessing
import sys

import numpy as np
import polarmap

class Pair:
    def __init__(self, one):
        self.both = one, one

def double(block):
    return 2 * block

def child(answers):
    rows = np.arange(8.0).reshape(4, 2)
    mapped = polarmap.coded_map(double, rows, blocks=2, tasks=3, timeout={PATIENCE}).concatenate()
    pairs = [pair.both for pair in polarmap.hedged_map(Pair, [1, 2], timeout={PATIENCE})]
    with polarmap.Executor(workers=1) as executor:
        doubled = executor.submit(double, 3).result({PATIENCE})
    answers.put((np.allclose(mapped, 2 * rows), pairs, doubled))

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    answers = context.Queue()
    process = context.Process(target=child, args=(answers,))
    process.start()
    process.join({PATIENCE})
    assert answers.get(timeout=1) == (True, [(1, 1), (2, 2)], 6)
"""


def check(program: str, folder: Path, *arguments: str) -> None:
    script = folder / "script.py"
    script.write_text(program)
    run = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_f_of_a_program_calls_every_verb_of_polarmap(tmp_path: Path) -> None:
    # A worker once resolved `coded_map` to a module instead of the function, because both had the same name.
    check(NESTED, tmp_path)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_children_of_a_program_map_its_functions(method: str, tmp_path: Path) -> None:
    # The children know these functions as members of __mp_main__, which workers cannot import.
    check(CHILDREN, tmp_path, method)
