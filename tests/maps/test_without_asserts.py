"""Maps with every code in an interpreter without assertions (`python -O`); the oracle is numpy."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PROGRAM = textwrap.dedent("""
    import math
    import sys

    import numpy as np

    import polarmap
    from polarmap.codes import LagrangeCode, SecretSharing, PolarCode
    from polarmap.testing import Fault, FaultyExecutor, ReplayExecutor

    if not sys.flags.optimize:
        raise SystemExit("asserts are not left out")

    stream = np.random.default_rng(0)
    REAL, WHOLE = stream.standard_normal((96, 5)), stream.integers(-99, 99, (96, 5))


    def losing(*tasks):
        return ReplayExecutor(dict.fromkeys(tasks, math.inf))


    def compare(f, data, blocks, lost, **options):
        result = polarmap.coded_map(f, data, blocks=blocks, executor=losing(*lost), **options)
        if result.report.recovered != tuple(lost):
            raise SystemExit(f"recovered {result.report.recovered}, not {lost}")
        expected = [f(block) for block in np.split(data, blocks)]
        room = 0 if data.dtype.kind == "i" else 1e-7
        np.testing.assert_allclose(list(result), expected, rtol=room, atol=room)


    def linear(block):
        return 3 * block[:, ::-1]


    code = PolarCode(40, 30)
    code.precompute_encoding()
    if "seed" not in vars(code):
        raise SystemExit("get_ready has chosen no angles")

    compare(linear, REAL, 24, [0, 5])
    compare(linear, REAL, 24, [0, 5], code=code.with_sizes(32, 24))
    compare(linear, WHOLE, 24, [0, 5])
    compare(linear, WHOLE, 24, [0], code=PolarCode(32, 24, "arikan", "sequential"))
    compare(linear, REAL, 24, [0], code=PolarCode(40, 24, "arikan", levels=4))
    for blocks in (3, 4):
        compare(np.square, REAL, blocks, [0, 1], degree=2)
        compare(np.square, REAL, blocks, [0, 1], code=LagrangeCode(12, blocks, 2, "chebyshev"))
    sharing = SecretSharing(n_colluders=1)
    secret = polarmap.coded_map(linear, REAL, blocks=4, code=sharing, executor=losing(0))
    np.testing.assert_allclose(list(secret), np.split(linear(REAL), 4), rtol=1e-6, atol=1e-6)
    secret = polarmap.coded_map(linear, WHOLE, blocks=4, code=sharing, executor=losing(0))
    np.testing.assert_array_equal(list(secret), np.split(linear(WHOLE), 4))

    for data in (REAL, WHOLE):
        grid = {"method": "grid", "blocks": (2, 2), "tasks": (3, 3)}
        product = polarmap.coded_matmul(data.T, data, executor=losing(1), **grid)
        np.testing.assert_allclose(product.array, data.T @ data, rtol=1e-7, atol=1e-7)
    gram = polarmap.coded_gram(REAL, blocks=3, tasks=4, executor=losing(0))
    np.testing.assert_allclose(gram.array, REAL.T @ REAL, rtol=1e-7, atol=1e-7)
    total = polarmap.coded_sum(np.exp, list(REAL), tolerate=2, executor=losing(1, 7))
    np.testing.assert_allclose(total.value, np.exp(REAL).sum(axis=0), rtol=1e-9)
    late = FaultyExecutor(ReplayExecutor(), {2: Fault("sleep", 60)})
    hedged = polarmap.hedged_map(np.exp, REAL, blocks=4, executor=late)
    np.testing.assert_array_equal(list(hedged), np.split(np.exp(REAL), 4))

    # Worker processes must also run without assertions.
    killing = FaultyExecutor(None, {1: Fault("kill", attempts=9)})
    for data in (REAL, WHOLE):
        here = polarmap.coded_map(linear, data, blocks=6, retries=0, executor=killing)
        np.testing.assert_allclose(list(here), np.split(linear(data), 6), rtol=1e-7, atol=1e-7)
    if list(polarmap.hedged_map(abs, range(-300, 300))) != list(map(abs, range(-300, 300))):
        raise SystemExit("a map of many items is wrong")
    with polarmap.CodedOperator(REAL, executor=killing) as operator:
        np.testing.assert_allclose(operator @ np.ones(5), REAL.sum(axis=1), rtol=1e-7, atol=1e-7)
    print("right")
""")


@pytest.mark.filterwarnings("ignore")
def test_maps_with_every_code_are_correct_without_assertions() -> None:
    ended = subprocess.run(
        [sys.executable, "-O", "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "right\n"), ended.stderr
